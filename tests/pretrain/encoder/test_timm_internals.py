"""The private parts of timm that this project needs are there, and do what it takes them for."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer

from pretrain.encoder.timm_internals import add_positions, save_config_for_hf, update_model_args

CHANGED = "timm has changed: mend pretrain/encoder/timm_internals.py"


def make() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(16, 4, embed_dim=32, depth=1, num_heads=2, num_classes=0)


def test_positions_and_prefix_tokens_are_those_of_the_forward_pass() -> None:
    encoder = make().eval()
    patches = encoder.patch_embed(torch.rand(2, 3, 16, 16))
    tokens = add_positions(encoder, patches)
    prefix = cast(Any, encoder.cls_token) + cast(Any, encoder.pos_embed)[:, :1]
    assert tokens.shape == (2, 17, 32), CHANGED
    assert torch.equal(tokens[:, :1], prefix.expand(2, -1, -1)), CHANGED
    assert torch.equal(tokens[:, 1:], patches + cast(Any, encoder.pos_embed)[:, 1:]), CHANGED


def test_arguments_of_a_changed_model_are_what_is_saved(tmp_path: Path) -> None:
    encoder: Any = make()
    encoder.pretrained_cfg = {"architecture": "vit", "input_size": (3, 16, 16)}
    update_model_args(encoder, pos_embed="learn", pool_include_prefix=False)
    path = tmp_path / "config.json"
    save_config_for_hf(encoder, str(path), {"additions": {"a": 1}}, {"depth": 1}, {"mean": [0.5]})
    saved = json.loads(path.read_text())
    assert saved["additions"] == {"a": 1}, CHANGED
    wanted = {"pos_embed": "learn", "pool_include_prefix": False, "depth": 1}
    assert saved["model_args"].items() >= wanted.items(), CHANGED
