"""What a configuration costs, counted without data and without weights."""

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch

from data.settings import UserError
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from pretrain.training.config import OptimConfig
from scripts._describe.building import build
from scripts._describe.measuring import Costs, count_saved_bytes, count_state_bytes, measure
from scripts._describe.tables import summary
from scripts.describe import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "configs/pretrain/cifar10-mask-tokens.yaml")
PRESETS = sorted((ROOT / "configs/encoder").glob("*.yaml"))
PATCHES = (16, 14, 32)  # a preset's own, and others
SOME = (("ti", 16), ("b", 32), ("h", 14))  # a model of each takes seconds
# width, depth, heads and millions of parameters as published, patch 16 (g: 14), with a head of
# 1000 classes. Dosovitskiy et al. 2021, Table 1; DeiT, Table 1; Zhai et al. 2022, Table 2.
PUBLISHED = {
    "ti": (192, 12, 3, 5.7),
    "s": (384, 12, 6, 22),
    "b": (768, 12, 12, 86),
    "l": (1024, 24, 16, 307),
    "h": (1280, 32, 16, 632),
    "g": (1408, 40, 16, 1011),
}
OTHER = ["encoder.name=resnet18", "data.image_size=32"] + [
    f"encoder.{key}=null" for key in ("patch_size", "embed_dim", "depth", "num_heads")
]
SMALL = ["data.image_size=32", "encoder.patch_size=8", "encoder.depth=2"]


def preset(name: str) -> str:
    return str(ROOT / f"configs/encoder/{name}.yaml")


def costs(arguments: list[str], batch: int = 2) -> Costs:
    return measure(build(arguments, num_classes=10), batch)


# ---------------------------------------------------------------- the presets


def test_there_is_a_preset_for_each_size() -> None:
    assert {path.stem for path in PRESETS} == set(PUBLISHED)


@pytest.mark.parametrize(
    ("path", "patch"),
    [
        pytest.param(
            path,
            patch,
            marks=[] if (path.stem, patch) in SOME else pytest.mark.faults,
            id=f"{path.stem}{patch}",
        )
        for path in PRESETS
        for patch in PATCHES
    ],
)
def test_a_presets_header_gives_what_describe_counts(path: Path, patch: int) -> None:
    arguments = [str(path), *([f"encoder.patch_size={patch}"] if patch != PATCHES[0] else [])]
    counted = summary(measure(build(arguments, num_classes=10), 32, has_step=False))
    before = "" if patch == PATCHES[0] else f"patch {patch}: "
    assert f"#          {before}{counted}\n" in path.read_text()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_presets_header_gives_its_commands_and_its_source(path: Path) -> None:
    text = path.read_text()
    assert f"scripts/describe.py configs/encoder/{path.name}" in text
    assert f"configs/encoder/{path.name} data.shards=" in text
    assert "\n# source:" in text


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_holds_a_whole_encoder_and_nothing_else(path: Path) -> None:
    """So that no size of the recipe before it is left over."""
    config = load(PretrainConfig, [RECIPE, str(path), "data.image_size=224"])
    alone = load(PretrainConfig, [str(path), "data.shards=a.tar"])
    assert config.encoder == alone.encoder
    assert config.optim == load(PretrainConfig, [RECIPE]).optim
    assert (config.encoder.embed_dim, config.encoder.depth, config.encoder.num_heads) == (
        PUBLISHED[path.stem][:3]
    )
    assert config.encoder.patch_size == PATCHES[0]


@pytest.mark.parametrize(
    ("size", "patch", "name"),
    [
        ("s", 32, "vit_small_patch32_224"),
        ("b", 32, "vit_base_patch32_224"),
        ("l", 14, "vit_large_patch14_224"),
        ("l", 32, "vit_large_patch32_224"),
    ],
)
def test_a_patch_size_makes_the_encoder_that_timm_has_by_a_name_of_its_own(
    size: str, patch: int, name: str
) -> None:
    key = f"encoder.patch_size={patch}"
    own, other = (
        load(PretrainConfig, [preset(size), key, "encoder.depth=1", "data.shards=a.tar", *more])
        for more in ([], [f"encoder.name={name}"])
    )
    weights: list[dict[str, torch.Tensor]] = []
    for config in (own, other):
        torch.manual_seed(0)
        weights.append(make_encoder(config.encoder, (224, 224)).state_dict())
    assert weights[0].keys() == weights[1].keys()
    for key, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][key])


@pytest.mark.parametrize(("size", "published"), PUBLISHED.items())
def test_presets_are_as_large_as_published(size: str, published: tuple[float, ...]) -> None:
    width, millions = int(published[0]), published[3]
    encoder = build([preset(size)], 10).model.encoder
    assert all(parameter.is_meta for parameter in encoder.parameters())
    number = sum(parameter.numel() for parameter in encoder.parameters()) + 1000 * (width + 1)
    assert number == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize("size", ["ti", "s"])
def test_parameters_are_those_of_timms_model(size: str) -> None:
    name = {"ti": "vit_tiny_patch16_224", "s": "vit_small_patch16_224"}[size]
    real = timm.create_model(name, num_classes=0)
    number = sum(parameter.numel() for parameter in cast(Any, real).parameters())
    assert costs([preset(size)]).encoder_parameters == number


# ---------------------------------------------------------------- operations


def test_operations_follow_the_formula() -> None:
    width, depth, tokens = 384, 12, 197
    found = costs([preset("s")])
    embedding = (tokens - 1) * 3 * 16 * 16 * width
    linear = depth * 12 * tokens * width**2
    attention = depth * 2 * tokens**2 * width
    assert found.encoder_flops == 2 * (embedding + linear + attention)
    asked = 98  # corrupted patches: in the last block of training, queries, projection, MLP
    head = (asked * width) * 512
    linear -= 10 * (tokens - asked) * width**2
    attention -= 2 * tokens * (tokens - asked) * width
    # backward: twice, but for the images' gradient
    step = 3 * (linear + attention + head) + 2 * embedding
    assert found.step_flops == 2 * step
    for kind in ("selective", "full"):  # what is computed again is left out
        assert costs([preset("s"), f"run.grad_checkpointing={kind}"]).step_flops == 2 * step


def test_masked_patches_that_do_not_enter_cost_less() -> None:
    whole, fewer = (costs([RECIPE, f"encoder.sees_masked={value}"]) for value in ("true", "false"))
    assert whole.transformer is not None
    assert fewer.transformer is not None
    assert whole.transformer.tokens_in_training == whole.transformer.tokens == 65
    assert fewer.transformer.tokens_in_training == 65 - 26  # 80 % of 32 corrupted
    assert fewer.encoder_flops == whole.encoder_flops
    assert fewer.other_parameters > whole.other_parameters


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["random", "block"])
def test_saved_bytes_are_those_of_real_tensors(precision: str, kind: str) -> None:
    arguments = [RECIPE, f"corruption.kind={kind}"]
    real = build(arguments, 10)
    real.model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*real.model.parameters(), *real.model.buffers()]:
            tensor.zero_()
    expected = count_saved_bytes(real.model, real.make_batch(3), precision)
    assert costs(arguments, 3).saved_bytes[precision] == expected > 1_000_000


def test_adamw_takes_16_bytes_a_parameter_and_what_is_frozen_four() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(9, 10), torch.nn.Linear(9, 10))
    assert count_state_bytes(model, OptimConfig()) == 16 * 200
    assert count_state_bytes(model, OptimConfig(ema=0.9)) == 20 * 200
    assert count_state_bytes(model, OptimConfig(algorithm="sgd")) == 12 * 200
    model[0].requires_grad_(False)
    assert count_state_bytes(model, OptimConfig()) == 4 * 100 + 16 * 100


def test_a_billion_parameters_take_no_memory() -> None:
    """ViT-g's weights alone are 3.8 GiB; torch and timm take 0.8."""
    program = (
        "import sys; from scripts.describe import main; main(sys.argv[1:]);"
        # not getrusage's, which counts the memory of the process that started this one
        "[peak] = [line for line in open('/proc/self/status') if line.startswith('VmHWM')];"
        "print(peak.split()[1])"
    )
    command = [sys.executable, "-c", program, "--table", preset("g"), "encoder.patch_size=14"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "1011 M" in done.stdout
    assert int(done.stdout.splitlines()[-1]) < 2_000_000  # KiB


# ---------------------------------------------------------------- what is printed


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    main(list(arguments))
    return capsys.readouterr().out.splitlines()


def test_a_configuration_is_described_a_figure_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, RECIPE, preset("ti"), "data.image_size=[32,64]", "--batch", "4")
    assert "encoder           vit_tiny_patch16_224" in lines
    assert "image             32 x 64 pixels" in lines
    assert "grid              2 x 4 = 8 patches" in lines
    assert "tokens            9" in lines
    assert "  of the encoder  5.49 M" in lines  # of 5.52 M, 188 fewer positions
    assert "batch 4" in "\n".join(lines)
    assert lines[-1].startswith("5.49 M parameters, ")


def test_a_table_has_a_row_for_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "--table", preset("ti"), RECIPE, *SMALL)
    assert lines[0].startswith("| preset | width | depth | heads | tokens | parameters |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| ti", "| cifar10-mask-tokens"]
    assert [line.split(" | ")[4] for line in lines[2:]] == ["17", "17"]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ([str(ROOT / "configs/finetune/cifar10.yaml"), "encoder.like=test_vit"], "Classifier"),
        ([preset("ti"), "head.kind=mlp"], "Classifier"),
        ([preset("ti"), "data.train=a.tar"], "Classifier"),
        ([RECIPE], "MaskedPatchModel"),
        ([str(ROOT / "configs/pretrain/vit_base.yaml")], "MaskedPatchModel"),
    ],
)
def test_fine_tuning_is_told_by_its_keys(arguments: list[str], kind: str) -> None:
    assert type(build(arguments, 10).model).__name__ == kind


@pytest.mark.parametrize(
    ("arguments", "other"),
    [
        (["head.kind=mlp"], 192 * 193 + 193 * 10),
        (["head.tuned_blocks=1", "mix.mixup=0.8"], 0),  # the head is the encoder's own
        (["data.multi_label=true", "head.pooling=both"], 385 * 10),
    ],
)
def test_fine_tuning_is_measured(arguments: list[str], other: int) -> None:
    found = costs([preset("ti"), "data.train=a.tar", *SMALL, *arguments], batch=4)
    assert found.other_parameters == other
    assert found.step_flops is not None
    assert found.step_flops > found.encoder_flops > 0


def test_another_model_of_timm_has_no_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, preset("ti"), *OTHER, "data.train=a.tar", "--classes", "10")
    assert "encoder           resnet18" in lines
    assert not any(line.startswith("tokens") for line in lines)


def test_a_loaded_encoder_is_described_as_it_was_saved(tmp_path: Path) -> None:
    config = EncoderConfig("vit_tiny_patch16_224", "none", 8, 32, 2, 2)
    encoder = make_encoder(config, (32, 32))
    save_encoder(encoder, tmp_path)
    arguments = [f"encoder.init={tmp_path}", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"]
    (tmp_path / "empty.yaml").write_text("run:\n  seed: 0\n")
    found = costs([str(tmp_path / "empty.yaml"), *arguments])
    assert found.transformer is not None
    assert (found.transformer.width, found.transformer.depth) == (32, 2)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing.yaml"], "nothing.yaml: no such configuration file; see configs/"),
        (["optim.steps=3"], "no CONFIG.yaml stands before optim.steps=3"),
        ([], "the following arguments are required"),
        ([RECIPE, "--batch", "0"], "--batch=0 must be above 0"),
        ([RECIPE, "--size"], "unrecognized arguments: --size; see --help"),
        ([RECIPE, "optim.stepz=1"], "optim.stepz is no key; did you mean optim.steps?"),
        ([RECIPE, "encoder.patch_size=7"], "is not a multiple of encoder.patch_size=7"),
        (["--table", RECIPE, "optim.steps=300", RECIPE], "stands after a key.sub=value"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_leaves_with_status_2() -> None:
    command = [sys.executable, str(ROOT / "scripts/describe.py"), "nothing.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: nothing.yaml: no such configuration file; see configs/\n"
    assert done.stdout == ""


# ---------------------------------------------------------------- images and captions


def test_captions_cost_their_tokens_embeddings_and_heads() -> None:
    pieces, tokens = 200, 10
    keys = [f"data.vocabulary_size={pieces}", f"data.max_tokens={tokens}"]
    alone, found = (costs([preset("ti"), *SMALL, *more]) for more in ([], keys))
    assert alone.transformer is not None
    assert found.transformer is not None
    assert found.transformer.tokens == alone.transformer.tokens
    assert found.transformer.tokens_in_training == alone.transformer.tokens + tokens
    assert found.encoder_parameters == alone.encoder_parameters
    width = found.transformer.width
    text = (pieces + tokens + 1 + 2) * width
    matching = width**2 + width + 2 * width + 2
    words = width**2 + width + 2 * width + pieces
    assert found.other_parameters == text + matching + words
    assert found.step_flops is not None
    assert found.step_flops > 2 * found.encoder_flops  # two passes, forward and backward


def test_what_cannot_be_described_is_refused_by_its_name() -> None:
    with pytest.raises(UserError, match="fine-tuning on images and sentences is not described"):
        build([preset("ti"), *SMALL, "text.dropout=0.1", "head.label_smoothing=0.1"], 10)
