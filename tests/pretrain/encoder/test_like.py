"""`encoder.like`: what an encoder was before its first step, and nothing that it has learnt."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from transformers import ViTConfig, ViTModel

import finetune.fewshot
import finetune.probe
import finetune.run
import pretrain.run
from data.settings import UserError
from pretrain.encoder import EncoderConfig, load_encoder, make_encoder, save_encoder
from pretrain.encoder.extensions import extensions_of
from pretrain.encoder.facts import grid_size, image_data, image_size
from scripts._describe.building import build
from tests.pretrain.test_errors import refusal

TINY: dict[str, Any] = {"name": "vit_tiny_patch16_224", "embed_dim": 32, "depth": 2, "num_heads": 2}
SIZE = (16, 24)
KINDS: dict[str, dict[str, Any]] = {
    "learned_1d": {},
    "sincos_2d, jax": {"position": "sincos_2d", "args": {"weight_init": "jax"}},
    "learned_2d, registers": {"position": "learned_2d", "args": {"reg_tokens": 2}},
    "relative": {"position": "relative", "args": {"qkv_bias": False}},
    "every_layer": {"position_at": "every_layer", "args": {"init_values": 0.1}},
    "none": {"position": "none", "args": {"class_token": False, "mlp_ratio": 2}},
    "stem": {"stem": "resnet18", "stem_stride": 4},
}


def begin(config: EncoderConfig, size: tuple[int, int] | None = None, seed: int = 7) -> Any:
    torch.manual_seed(seed)
    return make_encoder(config, size)


def spoil(encoder: Any) -> None:
    """Stand in for training."""
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=3.0)


def assert_equal(found: Any, wanted: Any) -> None:
    own = wanted.state_dict()
    assert found.state_dict().keys() == own.keys()
    for name, value in found.state_dict().items():
        assert torch.equal(value, own[name]), name


# ---------------------------------------------------------------- how it begins


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_it_begins_to_the_bit_as_the_other_did(tmp_path: Path, kind: str, num_classes: int) -> None:
    """Also as the encoder of a classifier, whose head would draw from the same generator."""
    config = EncoderConfig(patch_size=8, **TINY, **KINDS[kind])
    trained = begin(config, SIZE)
    image_data(trained).update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), label_names=["a"] * 3)
    spoil(trained)
    trained.reset_classifier(num_classes)
    save_encoder(trained, tmp_path / "encoder")
    found, wanted = begin(EncoderConfig(like=str(tmp_path))), begin(config, SIZE)
    assert_equal(found, wanted)
    assert extensions_of(found) == extensions_of(wanted)
    assert (image_size(found), found.num_classes, found.global_pool) == (SIZE, 0, "avg")
    assert image_data(found)["mean"] == pytest.approx((0.1, 0.2, 0.3))
    assert image_data(found)["std"] == pytest.approx((0.4, 0.5, 0.6))
    assert "label_names" not in image_data(found)
    other = begin(EncoderConfig(like=str(tmp_path)), seed=8)
    assert not torch.equal(other.blocks[0].mlp.fc1.weight, found.blocks[0].mlp.fc1.weight)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_at_another_size_it_is_the_same_function(tmp_path: Path, kind: str) -> None:
    """As a pretrained encoder's, positions are interpolated, or computed anew."""
    config = EncoderConfig(patch_size=8, **TINY, **KINDS[kind])
    save_encoder(begin(config, SIZE), tmp_path)
    as_loaded = make_encoder(EncoderConfig(init=str(tmp_path)), (32, 24)).eval()
    found = begin(EncoderConfig(like=str(tmp_path)), (32, 24)).eval()
    assert grid_size(found) == (4, 3)
    assert_equal(found, as_loaded)
    images = torch.rand(2, 3, 32, 24)
    assert torch.equal(found(images), as_loaded(images))


def test_what_is_begun_like_it_may_be_a_model_too(tmp_path: Path) -> None:
    config = EncoderConfig(patch_size=8, **TINY, **KINDS["sincos_2d, jax"])
    save_encoder(begin(config, SIZE), tmp_path / "first")
    save_encoder(begin(EncoderConfig(like=str(tmp_path / "first"))), tmp_path / "second")
    assert_equal(begin(EncoderConfig(like=str(tmp_path / "second"))), begin(config, SIZE))


def test_a_folder_of_timms_with_its_own_head(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", global_pool="token", num_classes=5, init_values=0.2)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    found = begin(EncoderConfig(like=str(tmp_path)))
    wanted = begin(EncoderConfig(name="test_vit", args={"init_values": 0.2}), (160, 160))
    assert_equal(found, wanted)
    assert_equal(begin(EncoderConfig(like="test_vit")), begin(EncoderConfig(name="test_vit")))


def test_a_folder_that_transformers_wrote(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes: dict[str, Any] = {"intermediate_size": 64, "image_size": 16, "patch_size": 8}
    ViTModel(ViTConfig(**shape, **sizes)).save_pretrained(tmp_path)
    found = begin(EncoderConfig(like=str(tmp_path)))
    args = {"mlp_ratio": 2}
    wanted = begin(EncoderConfig(patch_size=8, args=args, **TINY), (16, 16))
    loaded = load_encoder(tmp_path)
    assert found.state_dict().keys() == loaded.state_dict().keys()
    assert torch.equal(found.blocks[1].mlp.fc2.weight, wanted.blocks[1].mlp.fc2.weight)


def test_a_description_allocates_nothing(tmp_path: Path) -> None:
    config = EncoderConfig(patch_size=8, **TINY, **KINDS["sincos_2d, jax"])
    save_encoder(begin(config, SIZE), tmp_path)
    model = build([f"encoder.like={tmp_path}", "data.train=a.tar", "data.image_size=32"], 3).model
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert extensions_of(model.encoder).position == "sincos_2d"


# ---------------------------------------------------------------- through the entry points


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """Give a run whose encoder began otherwise than timm's, and has learnt nothing: rate 0."""
    run = tmp_path_factory.mktemp("runs") / "words"
    keys = ["encoder.position=sincos_2d", "encoder.args.weight_init=jax", "run.seed=3"]
    free = ["encoder.sees_masked=false", "corruption.mask_ratio=1", "corruption.random_ratio=0"]
    mean = ["data.mean=[0.4,0.4,0.4]", "data.std=[0.2,0.2,0.2]"]
    rest = ["optim.lr=0", "optim.steps=1", "optim.warmup_steps=0", f"run.dir={run}"]
    pretrain.run.main([*tiny, *keys, *free, *mean, *rest])
    return run


def test_fine_tuning_from_scratch_begins_as_pretraining_did(
    tmp_path: Path, words: Path, tiny_finetune: list[str]
) -> None:
    own = [a for a in tiny_finetune if not a.startswith(("encoder.", "data.image_size"))]
    rest = ["run.seed=3", "optim.lr=0", "optim.steps=1", "optim.warmup_steps=0"]
    told = [*own, *rest, f"encoder.like={words}"]
    finetune.run.main([*told, f"run.dir={tmp_path}/run"])
    found, wanted = load_encoder(tmp_path / "run"), load_encoder(words)
    assert_equal(found, wanted)
    assert image_size(found) == (16, 16)
    assert tuple(image_data(found)["mean"]) == (0.4, 0.4, 0.4)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["encoder.like"], result["encoder.init"]) == (str(words), "none")
    finetune.run.main([*told, f"run.dir={tmp_path}/run"])  # finished: nothing is refused
    finetune.run.main([*told, "data.image_size=24", f"run.dir={tmp_path}/larger"])
    assert grid_size(load_encoder(tmp_path / "larger")) == (6, 6)


def test_frozen_encoders_are_measured_untrained(
    tmp_path: Path, words: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At seed 0, as all measures of a frozen encoder."""
    data = [f"data.train={shards}/train-*.tar", f"data.val={shards}/val-0.tar", "data.workers=0"]
    told = [*data, f"encoder.like={words}"]
    shots = ["fewshot.shots=[5]", f"fewshot.dir={tmp_path}/fewshot"]
    finetune.fewshot.main([*told, *shots])
    finetune.probe.main([*told, "probe.penalties=[0.1]", f"probe.dir={tmp_path}/probe"])
    for name in ("fewshot", "probe"):
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert (result["encoder.like"], result["encoder.init"]) == (str(words), "none")
    assert f"random weights, like {words}: 10 images" in capsys.readouterr().out


@torch.no_grad()
def test_timm_loads_what_a_run_with_fixed_sines_leaves(words: Path) -> None:
    images, ours = torch.rand(2, 3, 16, 16), load_encoder(words).eval()
    for folder in (words / "encoder", words / "checkpoints/step-00000001/encoder"):
        by_timm: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert torch.equal(by_timm.eval().forward_features(images), ours.forward_features(images))
    assert extensions_of(ours).position == "sincos_2d"
    assert "pos_embed" not in dict(ours.named_parameters())


@pytest.mark.parametrize("position", ["relative", "sincos_2d"])
def test_what_timm_cannot_load_is_said_at_the_end(
    tmp_path: Path, tiny: list[str], caplog: pytest.LogCaptureFixture, position: str
) -> None:
    told = [f"encoder.position={position}", "optim.steps=1", "optim.warmup_steps=0"]
    with caplog.at_level("INFO"):
        pretrain.run.main([*tiny, *told, f"run.dir={tmp_path}/run"])
    said = f"timm alone cannot load {tmp_path}/run/encoder, since it has no encoder.position=rel"
    assert (said in caplog.text) == (position == "relative")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("encoder.init={0}", "encoder.like={0} begins with random weights, and encoder.init={0}"),
        ("encoder.embed_dim=64", "=64, but the encoder of encoder.like={0} has 32"),
        ("encoder.position=relative", "=relative, but the encoder of encoder.like={0} has sincos"),
        ("encoder.name=vit_base_patch16_224", "encoder of encoder.like={0} is a vit_tiny_patch16"),
        ("encoder.args.mlp_ratio=2", "encoder.args.mlp_ratio=2 with encoder.like={0}, which says"),
        ("encoder.args.weight_init=moco", "encoder.args.weight_init=moco with encoder.like={0}"),
        ("data.channels=1", "encoder.like={0} takes images of 3 channels, and data.channels=1"),
        (
            "encoder.like=nothing",
            "encoder.like=nothing is no run or folder with an encoder, and no",
        ),
        (
            "encoder.like=resnet18",
            "encoder.like=resnet18 is no VisionTransformer that timm knows; ",
        ),
    ],
)
def test_another_encoder_beside_it_is_refused(
    tmp_path: Path, words: Path, shards: Path, argument: str, text: str
) -> None:
    data = [f"data.train={shards}/train-*.tar", f"data.val={shards}/val-0.tar"]
    told = [*data, f"encoder.like={words}", argument.format(words), f"run.dir={tmp_path}/run"]
    assert text.format(words) in refusal(finetune.run.main, told)
    assert not (tmp_path / "run").exists()


def test_what_is_equal_or_of_training_alone_may_stand_beside_it(words: Path) -> None:
    args = {"weight_init": "jax", "drop_path_rate": 0.5}
    config = EncoderConfig(like=str(words), embed_dim=32, position="sincos_2d", args=args)
    encoder: Any = make_encoder(config)
    assert encoder.blocks[1].drop_path1.drop_prob == 0.5


@pytest.mark.parametrize("entry", [finetune.run, finetune.fewshot, finetune.probe])
def test_random_weights_have_to_be_asked_for(tmp_path: Path, shards: Path, entry: Any) -> None:
    told = [f"data.train={shards}/train-*.tar", f"data.val={shards}/val-0.tar"]
    key = "run.dir" if entry is finetune.run else f"{entry.__name__.removeprefix('finetune.')}.dir"
    found = refusal(entry.main, [*told, f"{key}={tmp_path}/out", "data.image_size=32"])
    assert found.startswith("encoder.init is missing; give encoder.init=RUN to start from its")
    for remedy in ("encoder.like=RUN", "encoder.init=none"):
        assert remedy in found
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"encoder\.init is missing"):
        build(["head.kind=mlp"], 3)
