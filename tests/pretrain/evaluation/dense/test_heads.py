"""A linear layer and a logistic regression on patches, held to what they are made of."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.segmented import IGNORED
from data.settings import UserError
from pretrain.evaluation.classifiers import Scale, logistic, silent
from pretrain.evaluation.dense.heads import (
    Fit,
    LinearSettings,
    fit_linear,
    fit_logistic,
    keep_patches,
)
from pretrain.evaluation.dense.patches import Patches, majorities

FIT = Fit(3, torch.device("cpu"), silent)


def make(number: int, seed: int = 0) -> Patches:
    """Make patches of 2x2 pixels whose features tell the class, with noise; some are ignored."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 3, (number, 3, 4))
    masks = classes.repeat(2, 1).repeat(2, 2).astype(np.uint8)
    masks[generator.random(masks.shape) < 0.3] = IGNORED
    values = np.eye(8)[classes.reshape(number, 12)] + generator.normal(size=(number, 12, 8)) / 4
    return Patches(torch.from_numpy(values).float(), torch.from_numpy(masks), (3, 4))


def test_logistic_is_todays_logistic_on_the_majorities() -> None:
    train, val = make(30), make(5, seed=1)
    [found] = fit_logistic(train, [0.01], FIT, most=10_000)(val.values)

    classes = majorities(train.pixels().flatten(0, 1), 3)
    known = classes != IGNORED
    values = train.values.flatten(0, 1)[known]
    scale = Scale.of(values)
    weights = logistic(scale(values), classes[known], 3, 0.01)
    inputs = scale(val.values.flatten(0, 1)).double()
    expected = (inputs @ weights[:-1] + weights[-1]).argmax(1).view(5, 3, 4)
    assert torch.equal(found, expected.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_patches_that_are_kept_are_a_choice_drawn_once() -> None:
    train = make(30)
    every = keep_patches(train, 3, 10_000)
    assert IGNORED not in every.classes
    assert torch.equal(majorities(every.pixels, 3), every.classes)
    some, again = keep_patches(train, 3, 50), keep_patches(train, 3, 50)
    assert torch.equal(some.values, again.values)
    places = [int((every.values == one).all(1).nonzero()[0]) for one in some.values]
    assert len(set(places)) == 50
    assert places == sorted(places)
    assert max(places) > 200  # from all images
    assert torch.equal(some.pixels, every.pixels[places])


def test_a_linear_layer_is_adamw_on_enlarged_logits() -> None:
    """The same steps, written out: torch's AdamW is what it is held to only in its name."""
    train, val = make(20), make(4, seed=1)
    settings = LinearSettings(0.02, 0.1, 3)
    generator = np.random.default_rng(0)
    torch.manual_seed(5)  # no generator of torch's has a say
    [found] = fit_linear(train, [settings], FIT)(val.values)

    weight = torch.zeros(3, 9, dtype=torch.float64, requires_grad=True)
    first, second = torch.zeros(3, 9).double(), torch.zeros(3, 9).double()

    def logits(images: Patches) -> torch.Tensor:
        ones = torch.ones_like(images.values[..., :1])
        maps = torch.cat([images.values, ones], dim=2).double() @ weight.T
        maps = maps.transpose(1, 2).reshape(-1, 3, 3, 4)
        return F.interpolate(maps, (6, 8), mode="bilinear")

    step, num_steps = 0, 6
    for _ in range(3):
        for part in torch.from_numpy(generator.permutation(20)).split(16):
            images = train.at(part)
            is_known = images.masks != IGNORED
            chances = logits(images).log_softmax(1).movedim(1, 3)[is_known]
            loss = -chances[torch.arange(len(chances)), images.masks[is_known].long()].mean()
            [gradient] = torch.autograd.grad(loss, weight)
            rate = settings.rate * (1 + np.cos(np.pi * step / num_steps)) / 2
            step += 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            move = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            weight = (weight * (1 - rate * settings.weight_decay) - rate * move).detach()
            weight.requires_grad_(True)
    expected = logits(val).argmax(1)
    assert (found == expected).float().mean() > 0.999  # float32 against float64
    is_known = val.masks != IGNORED
    assert (found == val.masks)[is_known].float().mean() > 0.7


@pytest.mark.parametrize("number", [1, 2])
def test_each_setting_has_its_answer(number: int) -> None:
    train, val = make(12), make(3, seed=1)
    settings = [LinearSettings(rate, 0.0, 2) for rate in (0.01, 1e-6)[:number]]
    found = fit_linear(train, settings, FIT)(val.values)
    assert [answer.shape for answer in found] == [(3, 6, 8)] * number
    alone = [fit_linear(train, [one], FIT)(val.values)[0] for one in settings]
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


def test_patches_without_a_class_are_refused() -> None:
    train = make(3)
    train.masks.fill_(IGNORED)
    with pytest.raises(UserError, match=r"data.train: no patch has a class on most of its pixels"):
        keep_patches(train, 3, 10)
