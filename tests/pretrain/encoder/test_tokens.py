"""The encoder run by itself: blocks that are computed again for the backward pass."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from data.settings import UserError
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.recompute import recompute_blocks
from pretrain.objective.config import CorruptionConfig, DecoderConfig, TargetConfig
from pretrain.objective.model import MaskedPatchModel
from pretrain.training.config import RECOMPUTATIONS
from scripts._describe.measuring import count_saved_bytes


def make_model(sees_masked: bool, **more: Any) -> MaskedPatchModel:
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224",
        patch_size=4,
        embed_dim=32,
        depth=4,
        num_heads=2,
        args={"drop_path_rate": 0.3, "proj_drop_rate": 0.1},
        **more,
    )
    decoder = None if sees_masked else DecoderConfig()
    return MaskedPatchModel(
        make_encoder(config, (16, 16)), CorruptionConfig(), TargetConfig(), decoder
    )


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return {"image": images, "weight": torch.ones(4), "random_key": torch.arange(4)}


@pytest.mark.parametrize("position", ["learned_1d", "learned_2d", "relative"])
@pytest.mark.parametrize("sees_masked", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_blocks_computed_again_give_the_same_gradients(
    position: str, sees_masked: bool, precision: torch.dtype
) -> None:
    """To the bit, drop-path and dropout included; and less is kept."""
    found: list[dict[str, Tensor]] = []
    kept: list[int] = []
    for kind in RECOMPUTATIONS:
        model = make_model(sees_masked, position=position)
        recompute_blocks(model.encoder, kind)
        kept.append(count_saved_bytes(model, batch(), "fp32"))
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = model(batch()).loss
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append(gradients | {"loss": loss.detach()})
    plain, *others = found
    for again in others:
        assert plain.keys() == again.keys()
        for name, gradient in plain.items():
            assert torch.equal(gradient, again[name]), name
    assert kept[1] < 0.75 * kept[0]
    assert kept[2] < 0.6 * kept[0]


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("true", "; true is now full"), ("false", "; false is now none"), ("x", "")],
)
def test_a_kind_that_there_is_not_is_refused(kind: str, remedy: str) -> None:
    with pytest.raises(UserError, match=rf"is not one of none, selective, full{remedy}$"):
        load(PretrainConfig, ["data.shards=a.tar", f"run.grad_checkpointing={kind}"])


def test_what_is_no_transformer_is_refused() -> None:
    with pytest.raises(UserError, match=r"run\.grad_checkpointing=full is for vision .*ResNet;"):
        recompute_blocks(timm.create_model("resnet18"), "full")
