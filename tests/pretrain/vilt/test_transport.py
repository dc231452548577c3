"""The transport of words to patches: against a linear program, and a slow loop in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.vilt.transport import find_plan, transport


def parts(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Make costs (3, 6, 8) of fewer words in the first, and fewer patches in the second."""
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(3, 6, 8, generator=generator, dtype=torch.float64)
    is_word, is_patch = torch.ones(3, 6, dtype=torch.bool), torch.ones(3, 8, dtype=torch.bool)
    is_word[0, 4:] = False
    is_patch[1, 5:] = False
    return costs.masked_fill(~(is_word[:, :, None] & is_patch[:, None]), 0), is_word, is_patch


def slow_plan(costs: np.ndarray, beta: float, number: int) -> np.ndarray:
    """Algorithm 2 of Xie et al. 2020, one image, loops and all, in float64."""
    num_words, num_patches = costs.shape
    nearness = np.exp(-costs / beta)
    plan = np.ones_like(costs)
    b = np.full(num_patches, 1 / num_patches)
    for _ in range(number):
        kernel = nearness * plan
        a = np.array([1 / (num_words * sum(k * b)) for k in kernel])
        b = np.array([1 / (num_patches * sum(k * a)) for k in kernel.T])
        plan = np.array(
            [[a[i] * kernel[i, j] * b[j] for j in range(num_patches)] for i in range(num_words)]
        )
    return plan


@pytest.mark.parametrize("number", [1, 5, 50])
def test_the_plan_is_that_of_a_slow_loop(number: int) -> None:
    costs, is_word, is_patch = parts()
    plans = find_plan(costs, is_word, is_patch, num_iterations=number)
    for cost, plan, words, patches in zip(costs, plans, is_word, is_patch, strict=True):
        wanted = torch.zeros_like(cost)
        inner = slow_plan(cost[words][:, patches].numpy(), 0.5, number)
        wanted[words.nonzero(), patches.nonzero().T] = torch.from_numpy(inner)
        torch.testing.assert_close(plan, wanted, rtol=1e-9, atol=1e-12)
    in_fp32 = find_plan(costs.float(), is_word, is_patch, num_iterations=number)
    torch.testing.assert_close(in_fp32.double(), plans, rtol=0, atol=1e-6)


def test_fifty_iterations_find_nearly_the_least_cost() -> None:
    linprog = pytest.importorskip("scipy.optimize").linprog
    costs, is_word, is_patch = parts()
    plans = find_plan(costs, is_word, is_patch)
    cost = costs[2].numpy()
    num_words, num_patches = cost.shape
    rows = np.kron(np.eye(num_words), np.ones(num_patches))
    columns = np.kron(np.ones(num_words), np.eye(num_patches))
    sums = np.r_[np.full(num_words, 1 / num_words), np.full(num_patches, 1 / num_patches)]
    least = linprog(cost.ravel(), A_eq=np.r_[rows, columns], b_eq=sums).fun
    found = float((costs[2] * plans[2]).sum())
    assert least - 1e-9 <= found < least * 1.02


def test_parts_of_the_plan_are_equal_and_what_is_not_there_has_none() -> None:
    costs, is_word, is_patch = parts()
    plans = find_plan(costs, is_word, is_patch)
    torch.testing.assert_close(plans.sum((1, 2)), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(plans[0].sum(0), torch.full((8,), 1 / 8, dtype=torch.float64))
    assert plans[0, 4:].eq(0).all()
    assert plans[1, :, 5:].eq(0).all()


def test_words_lie_on_the_patches_that_are_like_them() -> None:
    patches = torch.eye(4)[None]
    found = transport(patches[:, [2, 0, 3, 1]], patches, *(torch.ones(1, 4, dtype=torch.bool),) * 2)
    assert found.plan[0].argmax(1).tolist() == [2, 0, 3, 1]
    assert found.distance.item() == pytest.approx(0, abs=1e-5)


def test_no_word_costs_nothing_and_gradients_are_numbers() -> None:
    words = torch.randn(2, 5, 8, requires_grad=True)
    patches = torch.randn(2, 6, 8, requires_grad=True)
    is_word, is_patch = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)
    is_word[0] = False
    distance = transport(words, patches, is_word, is_patch).distance
    distance.sum().backward()
    assert distance[0] == 0
    assert words.grad is not None
    assert words.grad.isfinite().all()
    assert words.grad[0].eq(0).all()
    assert words.grad[1].abs().sum() > 0


def test_it_is_computed_in_fp32_whatever_autocast_says() -> None:
    words, patches = torch.randn(1, 5, 8), torch.randn(1, 6, 8)
    masks = torch.ones(1, 5, dtype=torch.bool), torch.ones(1, 6, dtype=torch.bool)
    plain = transport(words, patches, *masks)
    with torch.autocast("cpu", torch.bfloat16):
        again = transport(words, patches, *masks)
    assert torch.equal(plain.distance, again.distance)
    assert again.plan.dtype == torch.float32
