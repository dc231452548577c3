"""Attention distance and rollout: equal to a slow float64 reference, and nothing is left behind."""

import copy
import math
from typing import Any, cast

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder, positions
from pretrain.encoder.facts import grid_size, image_size, patch_size
from pretrain.pictures import attention
from pretrain.pictures.attention import distances, rollout

SIZES = {"embed_dim": 24, "depth": 3, "num_heads": 3}


def make(
    size: tuple[int, int] = (16, 16),
    patch: int | tuple[int, int] = 4,
    position: tuple[str, str] | None = None,
    **more: Any,
) -> VisionTransformer:
    """Make an encoder whose attention is far from even."""
    torch.manual_seed(0)
    if position is not None:
        more["pos_embed"] = "none"
    arguments: dict[str, Any] = {
        "patch_size": patch,
        "img_size": size,
        "num_classes": 0,
        "global_pool": "avg",
    }
    arguments |= {"fc_norm": False, **SIZES, **more}
    encoder: Any = timm.create_model("vit_tiny_patch16_224", **arguments)
    encoder.pretrained_cfg.update(input_size=(3, *size))
    if position is not None:
        positions.install(encoder, *position)
    for block in encoder.blocks:
        block.attn.qkv.weight.data *= 30
    for parameter in positions.parameter_names(encoder):
        encoder.get_parameter(parameter).data *= 30
    return encoder.eval()


def make_images(encoder: VisionTransformer, num: int = 3) -> Tensor:
    size = (num, 3, *image_size(encoder))
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


ENCODERS: dict[str, dict[str, Any]] = {
    "square": {},
    "rectangular": {"size": (12, 20)},
    "registers": {"size": (20, 12), "reg_tokens": 3},
    "no prefix": {"class_token": False},
    "tall patches": {"size": (24, 12), "patch": (8, 2)},
    "normalised queries": {"qk_norm": True},
    "relative": {"size": (12, 20), "reg_tokens": 2, "position": ("relative", "stem")},
    "in every layer": {"position": ("learned_2d", "every_layer")},
}


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> VisionTransformer:
    return make(**ENCODERS[request.param])


# ---------------------------------------------------------------- the reference


def maps(encoder: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Run a float64 copy by timm's plain attention; the maps are what its dropout is given."""
    found: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        found.append(output)

    slow = copy.deepcopy(encoder).double().eval()
    for block in slow.blocks:
        layer: Any = cast(Any, block).attn
        layer.fused_attn = False
        layer.attn_drop.register_forward_hook(keep)
    with torch.no_grad():
        slow.forward_features(images.double())
    return found


def slow_distances(encoder: VisionTransformer, images: Tensor) -> Tensor:
    (_, columns), (height, width) = grid_size(encoder), patch_size(encoder)
    prefix = encoder.num_prefix_tokens
    rows: list[list[float]] = []
    for probabilities in maps(encoder, images):
        rows.append([])
        for head in range(probabilities.shape[1]):
            means: list[float] = []
            for image in probabilities[:, head]:
                for query, weights in enumerate(image[prefix:, prefix:].tolist()):
                    y, x = divmod(query, columns)
                    far = [
                        math.hypot((k // columns - y) * height, (k % columns - x) * width)
                        for k in range(len(weights))
                    ]
                    pairs = zip(weights, far, strict=True)
                    means.append(sum(w * d for w, d in pairs) / sum(weights))
            rows[-1].append(sum(means) / len(means))
    return torch.tensor(rows, dtype=torch.float64)


def slow_rollout(encoder: VisionTransformer, images: Tensor, row: str) -> Tensor:
    prefix = encoder.num_prefix_tokens
    num_tokens = prefix + math.prod(grid_size(encoder))
    flow = torch.eye(num_tokens, dtype=torch.float64).expand(len(images), -1, -1)
    for probabilities in maps(encoder, images):
        mixed = probabilities.mean(1) + torch.eye(num_tokens, dtype=torch.float64)
        flow = torch.einsum("bij,bjk->bik", mixed / mixed.sum(2, keepdim=True), flow)
    relevance = flow[:, 0] if row == "class" else flow[:, prefix:].mean(1)
    relevance = relevance[:, prefix:]
    return (relevance / relevance.sum(1, keepdim=True)).unflatten(1, grid_size(encoder))


def test_distances_are_those_of_the_reference(encoder: VisionTransformer) -> None:
    images = make_images(encoder)
    found = distances(encoder, images)
    assert found.shape == (3, 3)
    assert found.dtype == torch.float32
    assert found.std() > 0.05
    torch.testing.assert_close(found.double(), slow_distances(encoder, images), atol=0, rtol=1e-5)


@pytest.mark.parametrize("row", attention.ROWS)
def test_rollout_is_that_of_the_reference(encoder: VisionTransformer, row: str) -> None:
    if row == "class" and encoder.cls_token is None:
        pytest.skip("has no class token")
    images = make_images(encoder)
    found = rollout(encoder, images, row)
    assert found.shape == (3, *grid_size(encoder))
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))
    torch.testing.assert_close(
        found.double(), slow_rollout(encoder, images, row), atol=1e-7, rtol=1e-5
    )


def test_a_hybrid_has_the_pixels_of_its_whole_stem() -> None:
    config = EncoderConfig(name="vit_tiny_r_s16_p8_224", args=SIZES)
    encoder = make_encoder(config, (64, 96))
    images = make_images(encoder)
    assert patch_size(encoder) == (32, 32)
    found = distances(encoder, images)
    torch.testing.assert_close(found.double(), slow_distances(encoder, images), atol=0, rtol=1e-5)
    assert rollout(encoder, images).shape == (3, 2, 3)


def test_even_attention_has_the_mean_distance() -> None:
    encoder = make()
    for block in encoder.blocks:
        cast(Any, block).attn.qkv.weight.data.zero_()
    found = distances(encoder, make_images(encoder))
    places = [(4.0 * y, 4.0 * x) for y in range(4) for x in range(4)]
    expected = sum(math.dist(a, b) for a in places for b in places) / len(places) ** 2
    torch.testing.assert_close(found, torch.full((3, 3), expected))
    torch.testing.assert_close(
        rollout(encoder, make_images(encoder)), torch.full((3, 4, 4), 1 / 16)
    )


# ---------------------------------------------------------------- nothing is left behind


def state(encoder: VisionTransformer) -> list[Any]:
    """Return all that a module holds beside its weights."""
    names = ("training", "fused_attn", "_forward_hooks", "_forward_pre_hooks")
    return [
        (name, {key: copy.copy(getattr(module, key, None)) for key in names}, sorted(vars(module)))
        for name, module in encoder.named_modules()
    ]


@pytest.mark.parametrize("is_fused", [True, False])
def test_the_encoder_is_as_it_was(is_fused: bool) -> None:
    encoder = make(proj_drop_rate=0.1).train()
    for block in encoder.blocks:
        cast(Any, block).attn.fused_attn = is_fused
    encoder.norm.eval()  # frozen by somebody: it has to stay so
    images = make_images(encoder)

    def train_pass() -> list[Tensor]:
        torch.manual_seed(3)
        encoder.zero_grad()
        output = encoder.forward_features(images)
        output.sum().backward()
        return [
            output.detach(),
            *(p.grad.clone() for p in encoder.parameters() if p.grad is not None),
        ]

    before, outputs = state(encoder), train_pass()
    torch.manual_seed(5)
    random = torch.get_rng_state()
    distances(encoder, images)
    rollout(encoder, images)
    assert torch.equal(torch.get_rng_state(), random)
    assert state(encoder) == before
    for one, other in zip(train_pass(), outputs, strict=True):
        assert torch.equal(one, other)


def test_hooks_are_removed_after_an_exception() -> None:
    encoder = make().train()
    before = state(encoder)
    with pytest.raises(AssertionError):  # timm's own, of the image's size
        distances(encoder, torch.zeros(1, 3, 8, 8))

    def fail(*_: Any) -> None:
        raise OSError("in the middle")

    handle = cast(Any, encoder.blocks[1]).register_forward_hook(fail)
    with pytest.raises(OSError, match="in the middle"):
        rollout(encoder, make_images(encoder))
    handle.remove()
    assert state(encoder) == before


def test_the_precision_around_does_not_matter() -> None:
    encoder = make()
    images = make_images(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        found = distances(encoder, images), rollout(encoder, images)
    assert torch.equal(found[0], distances(encoder, images))
    assert torch.equal(found[1], rollout(encoder, images))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1, 3000, 2**16])
def test_small_batches_and_chunks_give_the_same(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make(reg_tokens=2)
    images = make_images(encoder, 5)
    whole = distances(encoder, images), rollout(encoder, images)
    monkeypatch.setattr(attention, "BUDGET", budget)
    torch.testing.assert_close(distances(encoder, images), whole[0])
    torch.testing.assert_close(rollout(encoder, images), whole[1])


# ---------------------------------------------------------------- mistakes


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make(class_token=False)
    images = make_images(encoder)
    with pytest.raises(UserError, match="row=class, but the encoder has no class token; use patch"):
        rollout(encoder, images, "class")
    with pytest.raises(UserError, match="row=cls is not one of patches, class"):
        rollout(encoder, images, "cls")
    monkeypatch.setattr(attention, "MOST_TOKENS", 15)
    with pytest.raises(UserError, match=r"rollout of 16 tokens .* smaller data.image_size"):
        rollout(encoder, images)


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"attn_layer": "diff", "num_heads": 2}, "DiffAttention"),
        ({"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, "ParallelScalingBlock"),
    ],
)
def test_another_attention_is_refused(more: dict[str, Any], kind: str) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"patch_size": 4, "img_size": 16, **SIZES, **more}
    encoder: Any = timm.create_model("vit_tiny_patch16_224", **arguments)
    assert not attention.is_supported(encoder)
    for function in (distances, rollout):
        with pytest.raises(UserError, match=f"timm's {kind}, whose maps are not known"):
            function(encoder, torch.zeros(1, 3, 16, 16))
