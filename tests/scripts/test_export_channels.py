"""Exports of grey and N-channel encoders, and of those that timm's own format does not hold."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import scripts.export
from data.settings import UserError
from pretrain.encoder import load_encoder, save_encoder
from scripts._export import hugging_face, timm_folder
from scripts._export.format import Format
from scripts._export.graph_files import ONNX, TORCH
from scripts._export.source import Source
from tests.scripts.test_export_formats import encoder, name_of, photographs, round_trip

pytestmark = pytest.mark.slow

TIMM, HF = timm_folder.FORMAT, hugging_face.FORMAT


def source(**told: Any) -> Source:
    return Source("runs/mine", encoder(**told), None, {})


def run_usage(form: Format, of: Source, place: Path) -> dict[str, Any]:
    """Run what the card says, beside a photograph and an array."""
    before = Path.cwd()
    image = photographs(of.size, 1, of.channels)[0].permute(1, 2, 0).numpy()
    os.chdir(place.parent)
    try:
        np.save("image.npy", image)
        if of.channels in (1, 3):
            Image.fromarray(image.squeeze()).save("photo.jpg", "PNG")  # without loss
        names: dict[str, Any] = {}
        exec(form.usage(of, place.name), names)
        return names
    finally:
        os.chdir(before)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("form", [TIMM, ONNX, TORCH], ids=name_of)
def test_an_encoder_of_other_channels_comes_back(
    form: Format, channels: int, tmp_path: Path
) -> None:
    made = source(channels=channels)
    round_trip(form, made, tmp_path / "out")
    assert any({1: "grey", 5: "5"}[channels] in line for line in form.describe(made))
    names = run_usage(form, made, tmp_path / "out")
    found = names["output"] if form is TIMM else names["features"]
    expected = made.outputs(photographs(made.size, 1, channels))["features"]
    assert (torch.as_tensor(found) - expected).abs().max() < 2e-5


def test_timm_itself_knows_the_channels(tmp_path: Path) -> None:
    timm_folder.FORMAT.write(source(channels=5), tmp_path / "out")
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.pretrained_cfg["input_size"] == (5, 16, 32)
    assert model.pretrained_cfg["mean"] == pytest.approx((0.4, 0.5, 0.6, 0.7, 0.8))


def test_transformers_takes_grey_images_and_no_others(tmp_path: Path) -> None:
    made = source(channels=1)
    round_trip(HF, made, tmp_path / "out")
    features = run_usage(HF, made, tmp_path / "out")["features"]
    expected = made.outputs(photographs(made.size, 1, 1))["tokens"][:, 1:].mean(1)
    assert (features - expected).abs().max() < 2e-5
    with pytest.raises(UserError, match="RGB or grey images, and those of runs/mine have 5 chann"):
        HF.check(source(channels=5))


@pytest.mark.parametrize("channels", [1, 5])
def test_the_export_as_a_user_runs_it(
    channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_encoder(encoder(channels=channels), tmp_path / "run/encoder")
    scripts.export.main([str(tmp_path / "run"), str(tmp_path / "out")])
    assert "exported " in capsys.readouterr().out
    card = (tmp_path / "out/README.md").read_text()
    assert {1: "images 16x32, grey", 5: "images 16x32, 5 channels"}[channels] in card
    assert ("np.load" if channels == 5 else '.convert("L")') in card
    again = load_encoder(tmp_path / "out").eval()
    images = torch.rand(2, channels, 16, 32)
    assert torch.equal(again(images), load_encoder(tmp_path / "run").eval()(images))


def test_arrays_can_be_named_for_the_comparison(tmp_path: Path) -> None:
    save_encoder(encoder(channels=5), tmp_path / "run/encoder")
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images/0.npy", photographs(channels=5)[0].permute(1, 2, 0).numpy())
    options = ["--images", str(tmp_path / "images")]
    scripts.export.main([str(tmp_path / "run"), str(tmp_path / "out"), *options])
    np.save(tmp_path / "images/0.npy", np.zeros((4, 4, 2), np.uint8))
    with pytest.raises(UserError, match=r"0.npy: has 2 channels, data.channels=5; name other"):
        scripts.export.main([str(tmp_path / "run"), str(tmp_path / "other"), *options])


# ---------------------------------------------------------------- positions and stems

TABLES: list[dict[str, Any]] = [
    {"position": "learned_2d"},
    {"position": "sincos_2d"},
]
OTHERS: list[dict[str, Any]] = [
    {"position": "relative"},
    {"position": "learned_2d", "position_at": "every_layer"},
]


@pytest.mark.parametrize("told", TABLES, ids=str)
@pytest.mark.parametrize("form", [TIMM, HF], ids=name_of)
def test_a_table_at_the_stem_becomes_timms(
    form: Format, told: dict[str, Any], tmp_path: Path
) -> None:
    round_trip(form, source(**told), tmp_path / "out")
    if form is TIMM:
        plain: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        assert plain.pos_embed.abs().max() > 0


@pytest.mark.parametrize("told", OTHERS, ids=str)
@pytest.mark.parametrize("form", [ONNX, TORCH], ids=name_of)
def test_a_graph_holds_any_positions(form: Format, told: dict[str, Any], tmp_path: Path) -> None:
    round_trip(form, source(**told), tmp_path / "out")


def test_a_graph_holds_a_stem(tmp_path: Path) -> None:
    round_trip(TORCH, source(stem="test_resnet"), tmp_path / "out")


@pytest.mark.parametrize("form", [TIMM, HF], ids=name_of)
@pytest.mark.parametrize(
    ("told", "what"),
    [
        (OTHERS[0], "encoder.position=relative"),
        (OTHERS[1], "encoder.position=learned_2d with encoder.position_at=every_layer"),
        ({"stem": "test_resnet"}, "encoder.stem=test_resnet"),
    ],
    ids=str,
)
def test_what_timm_does_not_hold_is_refused_in_one_line(
    form: Format, told: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError) as caught:
        form.check(source(**told))
    assert str(caught.value).startswith(f"--to {form.name} cannot hold {what}")
    assert "--to onnx" in str(caught.value)
    assert "\n" not in str(caught.value)
