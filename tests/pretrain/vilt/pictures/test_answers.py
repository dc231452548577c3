"""What a model answers: of each pair alone, and of hidden words without seeing them."""

import pytest
import torch
from torch import Tensor

from data.captions.vocabulary import Vocabulary
from pretrain.vilt.model import ViltModel
from pretrain.vilt.pictures.answers import guess_words, match_ratios
from tests.pairs import CAPTIONS, LENGTH, make_batch, make_model, make_vocabulary

Made = tuple[ViltModel, Vocabulary, dict[str, Tensor]]


@pytest.fixture(scope="module", params=[False, True], ids=["one size", "own aspect"])
def made(request: pytest.FixtureRequest) -> Made:
    vocabulary = make_vocabulary()
    model = make_model(vocabulary, has_aspect=request.param)
    return model, vocabulary, make_batch(vocabulary, has_aspect=request.param)


def test_a_score_is_that_of_the_pair_alone(made: Made) -> None:
    model, _, batch = made
    scores = match_ratios(model, batch, batch["tokens"])
    alone = [match_ratios(model, one, one["tokens"]) for one in each(batch)]
    torch.testing.assert_close(scores, torch.cat(alone))
    assert ((scores > 0) & (scores < 1)).all()
    logits = model.match(model.fuse(batch["tokens"], model.image_tokens(batch)))
    assert torch.equal(scores > 0.5, logits[:, 1] > logits[:, 0])
    assert not torch.equal(scores, match_ratios(model, batch, batch["tokens"].roll(1, 0)))


def test_words_are_hidden_whole_and_named_as_written(made: Made) -> None:
    found = guess_words(*made)
    assert len(found) == 3
    for caption, words in zip(CAPTIONS, found, strict=True):
        assert words
        for word in words:
            assert word.right in caption or word.right == "[UNK]"
    assert [word.right for word in found[2]] == ["red"]


def test_a_guess_knows_nothing_of_the_word_itself(made: Made) -> None:
    """`fish` in the place of `red`, both of one piece, is taken for the same."""
    model, vocabulary, batch = made
    [red] = guess_words(model, vocabulary, batch)[2]
    tokens = batch["tokens"].clone()
    tokens[2] = torch.from_numpy(vocabulary.encode("fish", LENGTH).tokens)
    [fish] = guess_words(model, vocabulary, batch | {"tokens": tokens})[2]
    assert (red.right, fish.right) == ("red", "fish")
    assert (red.guess, red.blank) == (fish.guess, fish.blank)


def test_without_the_image_a_guess_is_the_same_for_any(made: Made) -> None:
    model, vocabulary, batch = made
    other = batch | {"image": 255 - batch["image"]}
    found = [guess_words(model, vocabulary, images) for images in (batch, other)]
    words = [[word for of_image in images for word in of_image] for images in found]
    assert [word.blank for word in words[0]] == [word.blank for word in words[1]]
    assert [word.guess for word in words[0]] != [word.guess for word in words[1]]


def each(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{name: values[i : i + 1] for name, values in batch.items()} for i in range(3)]
