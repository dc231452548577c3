"""Operations are counted by the formula, whichever attention kernel torch chooses."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretrain.machine.operations import FUSED, count_flops

B, HEADS, T, S, D = 2, 3, 17, 9, 8
PRODUCT = 2 * B * HEADS * T * S * D  # query @ key
MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "cpu": nullcontext,
    "fake": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "meta": lambda: torch.device("meta"),
}


def inputs(dtype: torch.dtype, *, has_grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (
        torch.zeros(B, HEADS, tokens, D, dtype=dtype, requires_grad=has_grad)
        for tokens in (T, S, S)
    )
    return query, key, value


def train(query: Tensor, key: Tensor, value: Tensor) -> None:
    torch.autograd.backward(F.scaled_dot_product_attention(query, key, value).sum())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_plain", [False, True])
def test_attention_follows_the_formula(mode: str, dtype: torch.dtype, is_plain: bool) -> None:
    plain = sdpa_kernel(SDPBackend.MATH) if is_plain else nullcontext()
    with MODES[mode](), plain:
        q, k, v = inputs(dtype)
        assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * PRODUCT
        found = count_flops(partial(train, *inputs(dtype, has_grad=True)))
    # forward 2 products, backward 4; a fused kernel computes query @ key again
    is_taken_apart = is_plain or mode == "meta"
    assert found == (6 if is_taken_apart else 7) * PRODUCT


@pytest.mark.parametrize("name", FUSED)
def test_each_fused_attention_is_counted(name: str) -> None:
    """Also those of GPUs; the meta device has their shapes."""
    operator = getattr(torch.ops.aten, f"_scaled_dot_product_{name}", None)
    if operator is None:
        pytest.skip("this torch has none")
    more = {
        "efficient_attention": (None, True),
        "cudnn_attention": (None, True),
        "fused_attention_overrideable": (None,),
    }
    with torch.device("meta"):
        values = (*inputs(torch.bfloat16), *more.get(name, ()))
    try:
        operator(*values)
    except NotImplementedError:
        pytest.skip("it has no shapes without its device")
    assert count_flops(lambda: operator(*values)) == 2 * PRODUCT


def test_products_and_convolutions_are_counted() -> None:
    convolution, layer = torch.nn.Conv2d(3, 5, 2, 2, bias=False), torch.nn.Linear(5, 7)
    image = torch.zeros(1, 3, 8, 8)
    found = count_flops(lambda: layer(convolution(image).flatten(2).transpose(1, 2)))
    assert found == 2 * (16 * 3 * 4 * 5 + 16 * 5 * 7)
