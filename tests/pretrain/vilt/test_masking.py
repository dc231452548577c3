"""Masked words: whole, as many as asked, equal on any batch."""

import pytest
import torch
from torch import Tensor

from pretrain.vilt.config import TextConfig
from pretrain.vilt.masking import mask_words, num_places

PAD, CLS, SEP, MASK, OTHERS = 0, 2, 3, 4, torch.arange(5, 100)
LENGTH = 40


def captions(number: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Make keys, pieces and words; words have 1 to 3 pieces."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((number, LENGTH), PAD)
    words = torch.full((number, LENGTH), -1)
    for row in range(number):
        place = 1
        tokens[row, 0] = CLS
        for word in range(int(torch.randint(1, 16, (1,), generator=generator))):
            size = int(torch.randint(1, 4, (1,), generator=generator))
            if place + size >= LENGTH:
                break
            tokens[row, place : place + size] = torch.randint(5, 100, (size,), generator=generator)
            words[row, place : place + size] = word
            place += size
        tokens[row, place] = SEP
    keys = torch.randint(-(2**62), 2**62, (number,), generator=generator)
    return keys, tokens, words


def chosen(text: Tensor, places: Tensor, is_predicted: Tensor) -> Tensor:
    return torch.zeros_like(text, dtype=torch.bool).scatter(1, places, is_predicted)


def test_whole_words_are_masked_and_no_more_than_asked() -> None:
    keys, tokens, words = captions(300)
    masked = mask_words(keys, tokens, words, TextConfig(mask_ratio=1, random_ratio=0), MASK, OTHERS)
    is_chosen = chosen(tokens, masked.places, masked.is_predicted)
    assert masked.places.shape[1] == num_places(TextConfig(), LENGTH) == 8
    assert torch.equal(masked.tokens == MASK, is_chosen)
    assert torch.equal(masked.tokens[~is_chosen], tokens[~is_chosen])
    for row in range(len(tokens)):
        of_chosen = set(words[row][is_chosen[row]].tolist())
        assert -1 not in of_chosen
        of_others = set(words[row][~is_chosen[row]].tolist())
        assert not of_chosen & of_others, "a word is masked whole or not at all"
        most = int((words[row] >= 0).sum() * 0.15 + 0.5)
        assert len(of_chosen) == 1 or is_chosen[row].sum() <= most
        assert of_chosen, "one word at least"


def test_kinds_are_as_asked_and_one_for_each_word() -> None:
    keys, tokens, words = captions(4000)
    masked = mask_words(keys, tokens, words, TextConfig(ratio=0.5), MASK, OTHERS)
    is_chosen = chosen(tokens, masked.places, masked.is_predicted)
    is_masked = is_chosen & (masked.tokens == MASK)
    is_random = is_chosen & (masked.tokens != MASK) & (masked.tokens != tokens)
    total = is_chosen.sum()
    assert abs(is_masked.sum() / total - 0.8) < 0.02
    assert abs(is_random.sum() / total - 0.1 * 94 / 95) < 0.015
    assert set(masked.tokens[is_random].tolist()) == set(OTHERS.tolist())
    for row in range(200):  # pieces of one word are all masked, or none is
        for word in set(words[row][is_masked[row]].tolist()):
            assert is_masked[row][words[row] == word].all()


def test_a_caption_is_masked_alike_in_any_batch_and_by_another_key_otherwise() -> None:
    keys, tokens, words = captions(50)
    config = TextConfig()
    whole = mask_words(keys, tokens, words, config, MASK, OTHERS)
    parts = [
        mask_words(keys[rows], tokens[rows], words[rows], config, MASK, OTHERS)
        for rows in (slice(20), slice(20, 50))
    ]
    for own, *others in zip(whole, *parts, strict=True):
        assert torch.equal(own, torch.cat(others))
    again = mask_words(keys + 1, tokens, words, config, MASK, OTHERS)
    assert not torch.equal(again.tokens, whole.tokens)


def test_a_caption_without_words_has_nothing_to_predict() -> None:
    keys, tokens, words = captions(2)
    words[0] = -1
    masked = mask_words(keys, tokens, words, TextConfig(), MASK, OTHERS)
    assert torch.equal(masked.tokens[0], tokens[0])
    assert masked.is_predicted.any(1).tolist() == [False, True]


@pytest.mark.parametrize("length", [5, 40, 200])
def test_a_long_word_is_masked_whole_and_predicted_as_far_as_there_is_room(length: int) -> None:
    tokens = torch.randint(5, 100, (1, length))
    words = torch.zeros(1, length, dtype=torch.int64)
    config = TextConfig(mask_ratio=1, random_ratio=0)
    masked = mask_words(torch.tensor([3]), tokens, words, config, MASK, OTHERS)
    assert (masked.tokens == MASK).all()
    assert (
        masked.is_predicted.sum()
        == num_places(config, length)
        == min(length, max(8, length * 3 // 20))
    )
