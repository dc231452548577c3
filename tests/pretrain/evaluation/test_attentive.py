"""Heads over patches, against slow loops in float64; what they learn, and how they are chosen."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.evaluation.attentive import (
    Attentive,
    Efficient,
    Sweep,
    attentive_probe,
    logits,
    make_head,
    num_attentive_heads,
)
from pretrain.evaluation.classifiers import linear_probe, silent
from pretrain.evaluation.config import PATCH_HEADS
from pretrain.evaluation.features import Features

SWEEP = Sweep(rates=(1e-3, 1e-2), decays=(1e-3,), steps=150, queries=4, seed=0)


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values) / np.exp(values).sum()


def slow_attentive(head: Attentive, patches: np.ndarray) -> np.ndarray:
    """Project each patch to a key and a value, as CAPI's code does; one head after another."""
    query, keys, values, bias, last = map(
        numbers, (head.query, head.keys, head.values, head.value_bias, head.last)
    )
    read: list[float] = []
    for part in range(len(query)):
        own = [keys[part] @ patch for patch in patches]
        weights = softmax(np.array([query[part] @ key for key in own]) / math.sqrt(len(query[0])))
        parts = [values[part] @ patch + bias[part] for patch in patches]
        read += list(weights @ np.array(parts))
    return last @ np.array(read) + numbers(head.bias)


def slow_efficient(head: Efficient, patches: np.ndarray) -> np.ndarray:
    """Project each patch to all values; each query sums its own share of them."""
    tokens, values, last = map(numbers, (head.tokens, head.values, head.last))
    everything = values.reshape(-1, patches.shape[1])
    share = len(everything) // len(tokens)
    read: list[float] = []
    for number, token in enumerate(tokens):
        weights = softmax(patches @ token / math.sqrt(len(token)))
        own = everything[number * share : (number + 1) * share]
        read += [sum(w * (row @ x) for w, x in zip(weights, patches, strict=True)) for row in own]
    return last @ np.array(read) + numbers(head.bias)


def numbers(parameter: Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()


@pytest.mark.parametrize(("width", "queries"), [(128, 4), (48, 3), (192, 32)])
def test_the_heads_against_slow_loops(width: int, queries: int) -> None:
    sweep = SWEEP._replace(queries=queries)
    attentive, efficient = (make_head(kind, width, 5, sweep) for kind in PATCH_HEADS)
    assert isinstance(attentive, Attentive)
    assert isinstance(efficient, Efficient)
    heads = [attentive.double(), efficient.double()]
    generator = torch.Generator().manual_seed(1)
    for head in heads:
        for parameter in head.parameters():  # of a size at which attention is far from even
            torch.nn.init.normal_(parameter, 0, 0.3, generator)
    patches = 2 * torch.randn(3, 7, width, dtype=torch.float64, generator=generator)
    found = logits(heads, patches)
    for head, scores, slow in (
        (attentive, found[0], partial(slow_attentive, attentive)),
        (efficient, found[1], partial(slow_efficient, efficient)),
    ):
        expected = np.array([slow(image) for image in patches.numpy()])
        assert np.allclose(scores.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
        alone = logits([head], patches)[0]
        assert torch.allclose(alone, scores, rtol=1e-12, atol=1e-12)


def test_a_width_is_split_into_heads_of_64_or_the_next_that_divides_it() -> None:
    split = {32: 1, 64: 1, 96: 1, 128: 2, 160: 2, 192: 3, 384: 6, 768: 12, 1024: 16, 1408: 22}
    assert {width: num_attentive_heads(width) for width in split} == split


def needles(num: int, seed: int) -> Features:
    """Draw images of 16 patches, one of which tells the class; the others cancel it on average.

    The telling patch has a mark (feature 0). Each other patch has one of the other classes'
    directions, so that the average over patches says little.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 4
    told = torch.randint(0, 4, (num, 16), generator=generator)
    place = torch.randint(0, 16, (num,), generator=generator)
    told[torch.arange(num), place] = labels
    values = 0.5 * torch.randn(num, 16, 32, generator=generator)
    values += 3 * torch.eye(32)[1 + told]
    values[torch.arange(num), place, 0] += 4
    return Features(values.bfloat16(), labels, torch.arange(num))


def average(features: Features) -> Features:
    return Features(features.values.float().mean(1), features.labels, features.positions)


@pytest.mark.parametrize("kind", PATCH_HEADS)
def test_a_head_finds_the_patch_that_tells_the_class(kind: str) -> None:
    train, val = needles(1200, 0), needles(400, 1)
    told: list[int] = []
    probe = attentive_probe(kind, train, SWEEP._replace(steps=400), told.append)
    assert probe.accuracy(val).top1 > 0.95
    assert probe.held_out < 0.2
    assert sum(told) == 3  # two of the sweep, and the last
    linear = linear_probe(average(train))
    assert linear.classifier.accuracy(average(val)).top1 < 0.6
    assert linear.held_out > 1


def test_equal_seeds_give_equal_bits_and_others_do_not() -> None:
    train, sweep = needles(300, 0), SWEEP._replace(steps=5)
    states = [
        attentive_probe("efficient", train, sweep._replace(seed=seed), silent).head.state_dict()
        for seed in (3, 3, 4)
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        assert not torch.equal(value, states[2][name]), name


def test_the_held_out_tenth_alone_chooses() -> None:
    train = needles(300, 0)
    sweep = Sweep((1e-2, 1e-9), (0.0, 0.1), 60, 4, 0)
    probe = attentive_probe("attentive", train, sweep, silent)
    assert probe.rate == 1e-2  # the other learns nothing
    alone = [
        attentive_probe("attentive", train, sweep._replace(rates=[rate], decays=[decay]), silent)
        for rate, decay in sweep.pairs
    ]
    chosen = min(alone, key=lambda one: one.held_out)
    assert probe.held_out == pytest.approx(chosen.held_out, rel=1e-4)
    assert (probe.rate, probe.decay) == (chosen.rate, chosen.decay)
    # and the last fit is on all images: the same as of that pair alone
    assert all(map(torch.equal, probe.head.parameters(), chosen.head.parameters()))


def test_too_few_images_hold_none_out() -> None:
    probe = attentive_probe("attentive", needles(12, 0), SWEEP._replace(steps=2), silent)
    assert (probe.rate, probe.decay) == (1e-3, 1e-3)
    assert math.isinf(probe.held_out)
