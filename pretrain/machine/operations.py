"""Floating-point operations of whatever runs, counted as it runs: the one place that counts them.

torch's `FlopCounterMode` knows matrix products and convolutions, but not each fused attention in
each version: up to 2.14 the CPU's was left out, or taken apart. What is asked for here is told to
it, so that the count is the formula's, whichever kernel is chosen.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]

FUSED = (
    "flash_attention",
    "flash_attention_for_cpu",
    "efficient_attention",
    "cudnn_attention",
    "fused_attention_overrideable",
    "attention_math_for_mps",  # has no backward pass
)


def count_flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of one call, a multiply-add as two.

    Matrix products, convolutions and attention. Fused attention computes its scores a second time
    in the backward pass; those count.
    """
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        work()
    return counter.get_total_flops()


def count_flops_once(work: Callable[[], object]) -> int:
    """Count the same without the scores that fused attention computes a second time."""
    with sdpa_kernel(SDPBackend.MATH):
        return count_flops(work)


def _formulas() -> dict[Any, Callable[..., int]]:
    """Map each fused attention that this version of torch has to its formula."""
    formulas: dict[Any, Callable[..., int]] = {}
    for name in FUSED:
        for suffix, formula in (("", _forward), ("_backward", _backward)):
            operator = getattr(torch.ops.aten, f"_scaled_dot_product_{name}{suffix}", None)
            if operator is not None:
                formulas[operator] = formula
    return formulas


def _forward(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Count query @ key and scores @ value; shapes are (B, heads, T, D / heads)."""
    return _scores(query, key) * (query[-1] + value[-1])


def _backward(_: Shape, query: Shape, key: Shape, value: Shape, *__: Any, **___: Any) -> int:
    """Count the scores again, and the gradients of values, scores, queries and keys."""
    return _scores(query, key) * (3 * query[-1] + 2 * value[-1])


def _scores(query: Shape, key: Shape) -> int:
    batch, heads, tokens, _ = query
    return 2 * batch * heads * tokens * key[-2]
