"""Pairs beside what the model answers: how sure it is that they match, and its guesses of words."""

from typing import NamedTuple

from data.text import count, percent
from pretrain.pictures.page import card, cards, lead, quote, table
from pretrain.vilt.pictures.answers import HiddenWord, guess_words, match_ratios
from scripts._report.figures import Section
from scripts._report.pairs.shown import Shown, as_picture

TITLE = "Pairs and what the model answers"
_RIGHT = " ✓"


class _Scores(NamedTuple):
    """How sure the model is that captions belong to an image, in 0..1.

    Attributes:
        own: The image's.
        other: Another image's; None where there is none that differs.
        text: That caption.
    """

    own: float
    other: float | None
    text: str


def answers(shown: Shown) -> Section:
    """Show each image with its caption and what the model answers."""
    model, batch = shown.vilt.model, shown.batch
    scores = _score(shown) if model.matching is not None else []
    hidden = guess_words(model, shown.vilt.vocabulary, batch) if model.words is not None else []
    boxes: list[str] = []
    for number, caption in enumerate(shown.captions):
        body = quote(caption)
        body += _matching(scores[number]) if scores else ""
        body += _guesses(hidden[number]) if hidden else ""
        picture = as_picture(shown.image(number), f"The image of: {caption}")
        boxes.append(card(shown.names[number], picture, body))
    start = f"{count(len(boxes), f'{shown.split} image')}, evenly spread and not chosen."
    texts = [start, *([_prefer(scores)] if scores else []), *([_count(hidden)] if hidden else [])]
    return Section(TITLE, lead(*texts) + cards(boxes))


def _score(shown: Shown) -> list[_Scores]:
    """Score each image's own caption, and that of the next image."""
    model, batch, texts = shown.vilt.model, shown.batch, shown.captions
    own = match_ratios(model, batch, batch["tokens"]).tolist()
    other = match_ratios(model, batch, batch["tokens"].roll(-1, 0)).tolist()
    following = [*texts[1:], texts[0]]
    return [
        _Scores(own[i], other[i] if text != texts[i] else None, text)
        for i, text in enumerate(following)
    ]


def _matching(scores: _Scores) -> str:
    rows = [["the image's own, above", percent(scores.own)]]
    if scores.other is not None:
        rows.append([f"another's: “{scores.text}”", percent(scores.other)])
    return table(["Caption", "Match"], rows)


def _guesses(words: list[HiddenWord]) -> str:
    rows = [[w.right, *(_mark(guess, w.right) for guess in (w.guess, w.blank))] for w in words]
    return table(["Hidden word", "Guess", "Without the image"], rows, is_text=True)


def _mark(guess: str, right: str) -> str:
    return guess + _RIGHT * (guess == right)


def _prefer(scores: list[_Scores]) -> str:
    pairs = [(s.own, s.other) for s in scores if s.other is not None]
    number = sum(own > other for own, other in pairs)
    images = count(len(pairs), "image")
    preferred = f" The model prefers the own caption for {number} of {images}." if pairs else ""
    return (
        "Match: how sure the model is that a caption belongs to the image. Perfect would be 100 % "
        "for the image's own and 0 % for another's, which is that of the next image here; 50 % is "
        f"a guess.{preferred}"
    )


def _count(hidden: list[list[HiddenWord]]) -> str:
    words = [word for of_image in hidden for word in of_image]
    right, blank = (sum(getattr(w, name) == w.right for w in words) for name in ("guess", "blank"))
    return (
        "Hidden words: they are left out of the caption, and the model fills the gaps, once with "
        "the image and once with a blank one, which shows what the text alone gives away. ✓ is "
        f"right: {right} of {count(len(words), 'word')} with the image, {blank} without it."
    )
