"""Each format by itself: what comes back is what went in, and what it cannot hold is named."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, ViTForImageClassification, ViTModel

from data.settings import UserError
from finetune.config import HeadConfig
from finetune.head import Classifier
from pretrain.encoder import EncoderConfig, load_encoder, make_encoder
from pretrain.encoder.facts import image_data
from scripts._export import hugging_face, timm_folder
from scripts._export.format import Format
from scripts._export.graph_files import ONNX, TORCH
from scripts._export.source import Source

pytestmark = pytest.mark.slow

NAMES = ["cat", "dog", "owl"]
SIZE = (16, 32)
FORMATS = [timm_folder.FORMAT, hugging_face.FORMAT, ONNX, TORCH]


def name_of(value: object) -> str | None:
    return value.name if isinstance(value, Format) else None


def scatter(model: torch.nn.Module) -> None:
    """Make every parameter matter, also those that start at zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)


def encoder(
    size: tuple[int, int] = SIZE,
    name: str = "vit_tiny_patch16_224",
    channels: int = 3,
    position: str | None = None,
    position_at: str | None = None,
    stem: str | None = None,
    **args: Any,
) -> Any:
    config = EncoderConfig(
        name=name,
        patch_size=4,
        embed_dim=32,
        depth=2,
        num_heads=2,
        position=position,
        position_at=position_at,
        stem=stem,
        args=args,
    )
    mean, std = ((tuple(first + 0.1 * n for n in range(channels))) for first in (0.4, 0.2))
    made = make_encoder(config, size, mean, std, channels).eval()
    scatter(made)
    return made


def bare(**args: Any) -> Source:
    return Source("runs/mine", encoder(**args), None, {})


def classifier(model: Any = None, is_multi_label: bool = False, **head: Any) -> Source:
    made = Classifier(model or encoder(), NAMES, HeadConfig(**head), is_multi_label=is_multi_label)
    scatter(made.head or made.encoder.get_classifier())
    return Source("runs/mine", made.encoder, made.eval(), {})


def resnet() -> Any:
    model: Any = timm.create_model("resnet18", num_classes=0)
    image_data(model).update(input_size=(3, *SIZE), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    return model.eval()


def photographs(size: tuple[int, int] = SIZE, number: int = 3, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (number, channels, *size), generator=generator).to(torch.uint8)


def round_trip(form: Format, source: Source, folder: Path) -> dict[str, torch.Tensor]:
    """Write a source, run it, compare it, and return what came back."""
    form.check(source)
    form.write(source, folder)
    images = photographs(source.size, channels=source.channels)
    found, expected = form.run(folder, images), source.outputs(images)
    for name, value in found.items():
        assert value.shape == expected[name].shape
        assert (value - expected[name]).abs().max() < 2e-5, name
        assert value.std() > 0.01  # so that the comparison says something
    return found


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("form", FORMATS, ids=name_of)
@pytest.mark.parametrize("size", [(16, 16), SIZE])
def test_an_encoder_comes_back(form: Format, tmp_path: Path, size: tuple[int, int]) -> None:
    found = round_trip(form, bare(size=size), tmp_path / "out")
    kept = {"tokens"} if form.name == "transformers" else {"tokens", "features"}
    assert found.keys() == kept


@pytest.mark.parametrize("form", FORMATS, ids=name_of)
def test_a_classifier_of_the_class_token_comes_back(form: Format, tmp_path: Path) -> None:
    assert round_trip(form, classifier(pooling="class"), tmp_path / "out")["logits"].shape == (3, 3)


@pytest.mark.parametrize("form", [timm_folder.FORMAT, TORCH], ids=name_of)
def test_a_classifier_of_the_patch_average_comes_back(form: Format, tmp_path: Path) -> None:
    assert "logits" in round_trip(form, classifier(), tmp_path / "out")


@pytest.mark.parametrize(
    ("form", "head"),
    [
        (ONNX, {"pooling": "both", "kind": "mlp"}),
        (TORCH, {"pooling": "both"}),
        (TORCH, {"kind": "mlp"}),
    ],
    ids=name_of,
)
def test_a_graph_holds_any_head(form: Format, tmp_path: Path, head: dict[str, Any]) -> None:
    assert "logits" in round_trip(form, classifier(**head), tmp_path / "out")
    assert (tmp_path / "out/classes.txt").read_text() == "cat\ndog\nowl\n"


@pytest.mark.parametrize(
    ("form", "has_head"),
    [
        (timm_folder.FORMAT, False),
        (timm_folder.FORMAT, True),
        (TORCH, False),
        (ONNX, True),
    ],
    ids=name_of,
)
def test_a_baseline_comes_back(form: Format, tmp_path: Path, has_head: bool) -> None:
    model = resnet()
    source = classifier(model) if has_head else Source("runs/mine", model, None, {})
    found = round_trip(form, source, tmp_path / "out")
    assert ("logits" in found) == has_head
    assert "tokens" not in found


@pytest.mark.parametrize(
    "args",
    [
        {"reg_tokens": 2},
        {"class_token": False},
        {"init_values": 0.1, "qk_norm": True},
        {"pre_norm": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", [timm_folder.FORMAT, TORCH], ids=name_of)
def test_other_encoders_come_back(form: Format, tmp_path: Path, args: dict[str, Any]) -> None:
    round_trip(form, bare(**args), tmp_path / "out")


# ---------------------------------------------------------------- ONNX


def test_onnx_is_one_file_of_named_inputs_and_outputs(tmp_path: Path) -> None:
    source = bare()
    round_trip(ONNX, source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    onnx.checker.check_model(onnx.load(tmp_path / "out/model.onnx"), full_check=True)
    session: Any = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    [given] = session.get_inputs()
    assert (given.name, given.shape[1:], given.type) == ("images", [3, 16, 32], "tensor(float)")
    assert isinstance(given.shape[0], str)  # the batch's size is free
    assert [output.name for output in session.get_outputs()] == ["tokens", "features"]
    for number in (1, 2, 5):
        images = photographs(number=number)
        [features] = session.run(["features"], {"images": (images / 255).numpy()})
        expected = source.outputs(images)["features"].numpy()
        np.testing.assert_allclose(features, expected, atol=2e-5)


def test_normalisation_is_inside_the_graph(tmp_path: Path) -> None:
    source = bare()
    TORCH.write(source, tmp_path / "out")
    graph = torch.export.load(tmp_path / "out/model.pt2").module()
    grey = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1).expand(2, 3, *SIZE)  # the mean
    with torch.no_grad():
        expected = source.encoder(torch.zeros(2, 3, *SIZE))
        torch.testing.assert_close(graph(grey)["features"], expected, atol=2e-5, rtol=0)


# ---------------------------------------------------------------- transformers


def test_transformers_reads_names_sizes_and_pixels(tmp_path: Path) -> None:
    source = classifier(pooling="class")
    hugging_face.FORMAT.write(source, tmp_path)
    model: Any = ViTForImageClassification.from_pretrained(tmp_path)
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.label2id["owl"] == 2
    assert model.config.problem_type == "single_label_classification"
    assert tuple(model.config.image_size) == SIZE
    assert model.config.layer_norm_eps == 1e-6
    processor: Any = AutoImageProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(photographs()[0].permute(1, 2, 0).numpy())
    pixels = processor(picture, return_tensors="pt").pixel_values
    expected = source.classifier.normalise(photographs()[:1]) if source.classifier else None
    torch.testing.assert_close(pixels, expected)


def test_many_labels_are_said_so(tmp_path: Path) -> None:
    source = classifier(pooling="class", is_multi_label=True)
    hugging_face.FORMAT.write(source, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).problem_type == "multi_label_classification"


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"])
def test_activations_are_translated_both_ways(tmp_path: Path, act: str) -> None:
    source = bare(act_layer=act, qkv_bias=False, mlp_ratio=2.5)
    expected = round_trip(hugging_face.FORMAT, source, tmp_path / "out")["tokens"]
    back = load_encoder(tmp_path / "out").eval()
    with torch.no_grad():
        found = Source("", back, None, {}).outputs(photographs())["tokens"]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_what_transformers_wrote_needs_no_pooler(tmp_path: Path) -> None:
    hugging_face.FORMAT.write(bare(), tmp_path)
    kind: Any = ViTModel
    _, told = kind.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not any(told.values())


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"reg_tokens": 2}, "register tokens"),
        ({"class_token": False}, "an encoder without a class token"),
        ({"init_values": 0.1}, "LayerScale"),
        ({"qk_norm": True}, "qk_norm"),
        ({"pre_norm": True}, "pre_norm"),
        ({"position": "none"}, "without position embeddings"),
        ({"no_embed_class": True}, "no_embed_class"),
        ({"dynamic_img_size": True}, "dynamic_img_size"),
        ({"act_layer": "mish"}, "the activation Mish"),
        ({"norm_layer": "rmsnorm"}, "another norm than LayerNorm"),
        ({"proj_bias": False}, "proj_bias"),
        ({"scale_mlp_norm": True}, "scale_mlp_norm"),
        ({"final_norm": False}, "final_norm"),
        ({"name": "vit_small_patch14_reg4_dinov2"}, "register tokens"),
        ({"name": "vit_small_patch16_18x2_224"}, "other blocks"),
        ({"name": "vit_giant_patch14_dinov2"}, "other blocks"),
    ],
    ids=str,
)
def test_what_its_vit_cannot_hold_is_named(args: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as raised:
        hugging_face.FORMAT.check(bare(**args))
    message = str(raised.value)
    assert message.startswith("--to transformers: ViTModel cannot hold ")
    assert text in message
    assert message.endswith("of runs/mine; give --to timm or onnx")
    assert "\n" not in message


def test_a_baseline_is_no_vit() -> None:
    with pytest.raises(UserError, match="cannot hold the architecture resnet18 of runs/mine"):
        hugging_face.FORMAT.check(Source("runs/mine", resnet(), None, {}))


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize("form", FORMATS[:2], ids=name_of)
@pytest.mark.parametrize(
    ("head", "what"),
    [
        ({"pooling": "both"}, "a head on two poolings"),
        ({"kind": "mlp"}, "a head with a hidden layer"),
    ],
)
def test_a_head_that_a_format_cannot_hold(form: Format, head: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError) as raised:
        form.check(classifier(**head))
    assert str(raised.value) == (
        f"--to {form.name} cannot hold {what} (head.kind, head.pooling of runs/mine); "
        "give --no-head, or --to onnx"
    )


def test_transformers_reads_the_class_token_alone() -> None:
    with pytest.raises(UserError, match=r"reads the class token alone, .* give --no-head"):
        hugging_face.FORMAT.check(classifier())
