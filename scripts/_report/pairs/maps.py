"""Where the model finds the words of captions in their images."""

from functools import partial

import torch
from torch import Tensor

from data.settings import UserError
from pretrain.pictures import draw
from pretrain.pictures.page import lead, pictures_table
from pretrain.vilt.pictures.heatmaps import WordMaps, choose_words, paint, word_maps
from scripts._report.drawing import as_file
from scripts._report.figures import Figure, Section
from scripts._report.pairs.shown import Shown, as_picture

_TITLE = "Where the words are"
_NUM_IMAGES, _NUM_WORDS = 4, 5
_COLUMNS = ("transport plan", "attention")


def maps(shown: Shown) -> Section:
    """Show heat maps of some words of the first images; a note says why there are none."""
    num = min(_NUM_IMAGES, len(shown.names))
    batch = {name: values[:num] for name, values in shown.batch.items()}
    try:
        found = word_maps(shown.vilt.model, shown.vilt.vocabulary, batch)
    except UserError as error:
        return Section(_TITLE, notes=(f"None: {error}.",))
    chosen = choose_words(found, _NUM_WORDS)
    figures = [_figure(shown, i, found[i], places) for i, places in enumerate(chosen)]
    return Section(_TITLE, lead(_reading(shown)), tuple(figures))


def _figure(shown: Shown, number: int, found: WordMaps, chosen: list[int]) -> Figure:
    """Draw an image's words, a row a word."""
    image, patch = shown.image(number), shown.vilt.model.patch
    painted = torch.stack([paint(image, part[chosen], patch) for part in found[1:]], dim=1)
    words = [found.words[place] for place in chosen]
    rows = {word: _cells(word, pictures) for word, pictures in zip(words, painted, strict=True)}
    return Figure(
        shown.names[number],
        f"words-{number + 1}",
        pictures_table(["word", *_COLUMNS], rows),
        f"“{shown.captions[number]}”",
        partial(as_file, partial(draw.sheet, painted, words, _COLUMNS)),
    )


def _cells(word: str, pictures: Tensor) -> list[str]:
    named = zip(_COLUMNS, pictures, strict=True)
    return [as_picture(picture, f"{word}: {name}") for name, picture in named]


def _reading(shown: Shown) -> str:
    weight = shown.vilt.config.loss.alignment
    trained = "" if weight else " Nothing has trained the plan here, as loss.alignment is 0."
    return (
        f"A row is a word of the caption, of those {_NUM_WORDS} that the fewest of these captions "
        "have. Transport plan: all words of the caption are moved to the patches at the least "
        "cost, and red is where this one goes. Attention: red is what this word looks at in the "
        "last block, the mean over its heads. A good sign is red on what the word names; words "
        "such as 'the' name nothing, and their red may lie anywhere. An even, pale red is a word "
        "that has no place. Each picture has its own scale, so compare shades within one alone."
        f"{trained}"
    )
