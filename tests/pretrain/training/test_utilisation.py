"""The MFU of a run: what is counted, where it is told, and that nothing else changes for it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import finetune.run
import pretrain.run
from finetune.backbone import make_backbone
from finetune.config import HeadConfig, MixConfig
from finetune.head import Classifier
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.recompute import recompute_blocks
from pretrain.machine.operations import count_flops_once
from pretrain.objective.model import MaskedPatchModel
from pretrain.records.logs import read_records
from pretrain.records.words import speed
from pretrain.training import trainer
from pretrain.training.examples import example_batch
from pretrain.training.utilisation import Limit, flops_per_image
from tests.launching import run_ranks

CPU = Accelerator(cpu=True)
KINDS = [
    [],
    ["target.kind=words", "target.num_words=16", "encoder.sees_masked=false"],
    ["target.kind=normalised_pixels", "encoder.args.drop_path_rate=0.2"],
]


def model_of(arguments: list[str]) -> MaskedPatchModel:
    config = load(PretrainConfig, [*arguments, "data.shards=unread"])
    encoder = make_encoder(config.encoder, config.data.size)
    recompute_blocks(encoder, config.run.grad_checkpointing)
    return MaskedPatchModel(encoder, config.corruption, config.target, config.light_decoder)


def flops_of(model: Any, num_images: int = 4) -> float:
    counted = flops_per_image(CPU, model, num_images)
    assert counted is not None
    return counted


# ---------------------------------------------------------------- what is counted


@pytest.mark.parametrize("own", KINDS)
def test_operations_are_those_of_a_real_pass(encoder: list[str], own: list[str]) -> None:
    model = model_of([*encoder, *own])
    counted = flops_of(model)
    batch = example_batch(model.encoder, 4)
    assert 4 * counted == count_flops_once(lambda: model.train()(batch).loss.backward()) > 1e6


def test_operations_follow_the_formula(encoder: list[str]) -> None:
    model = model_of([*encoder, "corruption.ratio=1.0"])
    width, depth, tokens, classes = 32, 2, 17, 512
    linear, attention = 12 * tokens * width**2, 2 * tokens**2 * width
    asked = 1 - 16 / 17  # the class token is not asked in the last block
    last = linear - asked * tokens * 10 * width**2, attention * (1 - asked)
    whole = (depth - 1) * (linear + attention) + sum(last) + 16 * width * classes
    embedding = 16 * (3 * 4 * 4) * width  # its images have no gradient
    assert flops_of(model) == pytest.approx(2 * (3 * whole + 2 * embedding), rel=1e-9)


def test_what_is_computed_again_is_left_out(encoder: list[str]) -> None:
    expected = flops_of(model_of(encoder))
    for kind in ("selective", "full"):
        model: Any = model_of([*encoder, f"run.grad_checkpointing={kind}"])
        assert flops_of(model) == expected
        assert model.encoder.grad_checkpointing == kind


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_classifiers_are_counted(is_multi_label: bool) -> None:
    config = EncoderConfig("vit_tiny_patch16_224", "none", 4, 32, 2, 2)
    vit = make_backbone(config, (16, 16))
    mix = MixConfig(mixup=0.8)
    model = Classifier(vit, ["a", "b"], HeadConfig(), is_multi_label=is_multi_label, mix=mix)
    assert flops_of(model) > 1e6
    resnet = make_backbone(EncoderConfig("resnet18", "none"), (32, 32))
    assert flops_of(Classifier(resnet, ["a", "b"], HeadConfig())) > 1e8


def test_counting_changes_neither_model_nor_generators(encoder: list[str]) -> None:
    model = model_of([*encoder, "encoder.args.drop_path_rate=0.3"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 - timm draws from it
    flops_of(model.eval())
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_equal(np.random.get_state(), states[1])  # noqa: NPY002
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_model_that_cannot_be_followed_has_no_figure(encoder: list[str]) -> None:
    model: Any = model_of(encoder)
    state = torch.get_rng_state()

    def reads_a_value(batch: dict[str, torch.Tensor]) -> None:
        torch.rand(1)
        np.random.rand()  # noqa: NPY002
        raise ValueError(f"a model that reads values: {batch['image'].float().mean().item()}")

    model.forward = reads_a_value
    assert flops_per_image(CPU, model, 4) is None
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- in a run


def told(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return read_records(run / "metrics.jsonl"), read_records(run / "starts.jsonl")


def assert_told(run: Path, step: int = 0) -> None:
    records, starts = told(run)
    for record in records:
        assert 0 < record["speed/mfu"] <= 1.2
    start = starts[-1]
    assert start["step"] == step
    assert {"device", "processes", "threads", "precision"} <= start.keys()
    share = records[-1]["speed/images_per_second"] * start["gflop_per_image"]
    assert records[-1]["speed/mfu"] == pytest.approx(share / start["matrix_gflop_per_second"])


def test_a_run_tells_it_and_a_resume_measures_again(
    tmp_path: Path, tiny: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    larger = ["encoder.embed_dim=128", "encoder.num_heads=4", "data.val_shards=null"]
    arguments = [*tiny, *larger, f"run.dir={tmp_path}"]
    pretrain.run.main(arguments)
    assert_told(tmp_path)
    assert "GFLOP an image; matrix products " in caplog.text
    assert "images/s  MFU " in caplog.text
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    pretrain.run.main(arguments)
    assert_told(tmp_path, step=35)
    assert [start["step"] for start in told(tmp_path)[1]] == [0, 35]


def test_losses_and_weights_are_the_same_without_it(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["encoder.args.drop_path_rate=0.2", "run.grad_checkpointing=selective", "optim.steps=6"]
    arguments = [*tiny, *own, "run.deterministic=true"]
    pretrain.run.main([*arguments, f"run.dir={tmp_path}/with"])

    def unknown(*_: object) -> None:
        return None

    monkeypatch.setattr(trainer, "flops_per_image", unknown)
    pretrain.run.main([*arguments, f"run.dir={tmp_path}/without"])
    kept: list[list[dict[str, float]]] = []
    for name in ("with", "without"):
        records, [start] = told(tmp_path / name)
        assert all(("speed/mfu" in record) == (name == "with") for record in records)
        assert ("gflop_per_image" in start) == (name == "with")
        kept.append([{k: v for k, v in r.items() if "speed/" not in k} for r in records])
    assert kept[0] == kept[1]
    weights = [
        load_file(tmp_path / name / "checkpoints/step-00000006/model.safetensors")
        for name in ("with", "without")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_fine_tuning_and_image_text_runs_tell_it(
    tmp_path: Path, tiny_finetune: list[str], vilt_run: Path
) -> None:
    finetune.run.main([*tiny_finetune, "encoder.init=none", f"run.dir={tmp_path}"])
    assert_told(tmp_path)
    assert_told(vilt_run)


@pytest.mark.slow
@pytest.mark.parametrize("own", [[], ["run.parallel=fsdp"]])
def test_two_ranks_add_their_peaks_up(tmp_path: Path, tiny: list[str], own: list[str]) -> None:
    keys = [*tiny, "optim.steps=2", "optim.warmup_steps=0", "run.eval_every=0"]
    pretrain.run.main([*keys, f"run.dir={tmp_path}/one"])
    run_ranks([*keys, *own, f"run.dir={tmp_path}/two"], 2, tmp_path / "ranks")
    for name in ("one", "two"):
        assert_told(tmp_path / name)
    one, two = (told(tmp_path / name)[1][0] for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["gflop_per_image"] == two["gflop_per_image"]


# ---------------------------------------------------------------- in words


def test_the_share_is_operations_over_the_peak() -> None:
    limit = Limit(flops=2e9, peak=1e12)
    assert limit.share(250) == 0.5
    assert str(limit) == "2 GFLOP an image; matrix products 1 TFLOP/s"
    assert str(Limit(5e6, 2.5e10)) == "0.005 GFLOP an image; matrix products 25 GFLOP/s"


def test_the_console_shows_it_where_a_record_has_it() -> None:
    record = {"speed/images_per_second": 99.0, "speed/data_wait_ratio": 0.031}
    assert speed(record) == ["   99 images/s", "waiting for data  3 %"]
    assert speed(record | {"speed/mfu": 0.483})[1] == "MFU 48 %"
