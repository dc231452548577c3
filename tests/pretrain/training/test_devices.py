"""Devices: one without float64, such as Apple's MPS; what is copied to them, and when.

There is none here. The CPU plays one: what is the host's own work is known by its function.
"""

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import finetune.run
import pretrain.run
from data import devices
from data.batch import Batch
from data.settings import UserError
from data.stream import Parcel, TrainingStream
from finetune.head import Classifier
from finetune.tuning.metrics import Scores
from pretrain.evaluation.probe import Probe
from pretrain.objective import corruption, words
from pretrain.objective.config import CorruptionConfig
from pretrain.objective.model import MaskedPatchModel
from pretrain.objective.statistics import summarise
from pretrain.records.logs import read_records
from pretrain.records.traces import SKIPPED
from pretrain.training.config import RunConfig
from pretrain.training.contract import Output
from pretrain.training.device import Copies, Totals, to_device
from pretrain.training.launch import choose_device

# what is done on the host where the device has no float64
ON_HOST: tuple[Any, ...] = (
    corruption.draw,
    Totals._fetch,
    Totals.reduce,
    summarise,
    Classifier.summarise,
    Scores.__init__,
    Scores.update,
    Scores.compute,
    Probe._figures,
    words.fit,
)
HOST_CODES = {function.__code__ for function in ON_HOST}


class WithoutFloat64(TorchDispatchMode):
    """Refuses float64 tensors that are made in no part of `ON_HOST`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if any(tensor.dtype == torch.float64 for tensor in made):
            assert is_on_host(), f"{func} made float64 on the device"
        return result


def is_on_host() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code in HOST_CODES:
            return True
        frame = frame.f_back
    return False


def never(*_: object) -> bool:
    return False


def always(*_: object) -> bool:
    return True


def records_of(main: Callable[[list[str]], None], arguments: list[str], run: Path) -> list[Any]:
    main([*arguments, f"run.dir={run}"])
    records = read_records(run / "metrics.jsonl")
    keys = ("train/", "val/", "probe/", "optim/")
    return [{k: v for k, v in record.items() if k.startswith(keys)} for record in records]


def pretraining(tiny: list[str], shards: Path) -> list[str]:
    """Have what adds up the most: a validation by distance, a probe, averaged weights."""
    return [
        *tiny,
        "optim.steps=6",
        "run.eval_every=3",
        "optim.ema=0.9",
        "run.checkpoint_every=3",
        f"probe.train={shards}/train-0.tar",
        f"probe.val={shards}/train-2.tar",
        "probe.shots=[1]",
        "probe.neighbours=3",
    ]


@pytest.mark.parametrize(
    "own",
    [
        [],
        ["target.kind=normalised_pixels", "corruption.kind=coarse"],
        ["target.kind=words", "target.num_words=16", "corruption.predicted_ratio=0.5"],
        ["encoder.sees_masked=false", "corruption.ratio=0.75", "corruption.kind=block"],
    ],
)
def test_pretraining_asks_for_no_float64(
    tmp_path: Path,
    tiny: list[str],
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: list[str],
) -> None:
    arguments = [*pretraining(tiny, shards), *own]
    assert_needs_no_float64(pretrain.run.main, arguments, tmp_path, monkeypatch)


@pytest.mark.parametrize("own", [[], ["mix.mixup=0.8", "optim.algorithm=sgd"]])
def test_fine_tuning_asks_for_no_float64(
    tmp_path: Path, tiny_finetune: list[str], monkeypatch: pytest.MonkeyPatch, own: list[str]
) -> None:
    arguments = [*tiny_finetune, "encoder.init=none", "optim.steps=6", *own]
    assert_needs_no_float64(finetune.run.main, arguments, tmp_path, monkeypatch)


def assert_needs_no_float64(
    main: Callable[[list[str]], None],
    arguments: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = records_of(main, arguments, folder / "usual")
    monkeypatch.setattr(devices, "has_float64", never)
    with WithoutFloat64():
        found = records_of(main, arguments, folder / "without")
    assert_alike(found, usual)
    assert_equal_weights(folder)


def assert_alike(found: list[Any], usual: list[Any]) -> None:
    """Figures are made of sums: in float32 within a batch, and so equal but for rounding."""
    assert len(found) == len(usual) == 6
    for own, other in zip(found, usual, strict=True):
        assert own == pytest.approx(other, rel=2e-6, abs=1e-6)
        assert own["optim/grad_norm"] == other["optim/grad_norm"]


def assert_equal_weights(folder: Path) -> None:
    usual, without = (
        (folder / name / "checkpoints/step-00000006/model.safetensors").read_bytes()
        for name in ("usual", "without")
    )
    assert usual == without


def test_a_bad_step_is_skipped_where_the_optimizer_would_take_it(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*tiny, "optim.steps=6", "run.checkpoint_every=3", "run.threads=1"]
    forward, calls = MaskedPatchModel.forward, itertools.count()

    def poisoned(self: MaskedPatchModel, batch: dict[str, Tensor]) -> Output:
        output = forward(self, batch)
        is_trained = self.training and not isinstance(output.loss, FakeTensor)  # nor counted
        is_bad = is_trained and next(calls) % 6 == 3
        return output._replace(loss=output.loss * math.nan) if is_bad else output

    monkeypatch.setattr(MaskedPatchModel, "forward", poisoned)
    pretrain.run.main([*arguments, f"run.dir={tmp_path / 'usual'}"])
    take = torch.optim.AdamW.step

    def step(self: Any, *rest: Any) -> Any:
        self.found_inf = None  # as if it were not heeded
        return take(self, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    monkeypatch.setattr("pretrain.training.trainer.skips_bad_steps", never)
    pretrain.run.main([*arguments, f"run.dir={tmp_path / 'without'}"])
    assert_equal_weights(tmp_path)
    usual, found = (
        read_records(tmp_path / name / "bad_samples.jsonl") for name in ("usual", "without")
    )
    assert found == usual
    assert SKIPPED in {line["reason"] for line in found}


def test_the_watch_sees_what_a_device_would_refuse() -> None:
    with WithoutFloat64(), pytest.raises(AssertionError, match="made float64 on the device"):
        torch.ones(2).double()


def test_keys_stay_where_float64_is(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {
        "image": torch.zeros(2, 3, 8, 8),
        "random_key": torch.arange(2),
        "weight": torch.ones(2),
    }
    meta = torch.device("meta")
    assert {t.device.type for t in to_device(batch, meta).values()} == {"meta"}
    monkeypatch.setattr(devices, "has_float64", torch.device("cpu").__eq__)
    moved = to_device(batch, meta)
    assert {k: t.device.type for k, t in moved.items()} == {
        "image": "meta",
        "random_key": "cpu",
        "weight": "meta",
    }
    drawn = corruption.draw(moved["random_key"], (4, 4), CorruptionConfig()).to(meta)
    assert all(part.device == meta for part in drawn[:3])


def test_sums_are_fetched_many_at_a_time_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "has_float64", never)
    fetches: list[int] = []
    fetch = Totals._fetch

    def counted(self: Totals) -> None:
        fetches.append(1)
        fetch(self)

    monkeypatch.setattr(Totals, "_fetch", counted)
    totals = Totals()
    values = torch.rand(150, 3, generator=torch.Generator().manual_seed(0))
    for value in values:
        totals.add({"b": value, "a": value.sum()})
    assert len(fetches) == 2  # of 64 batches each
    found = totals.reduce(Accelerator(cpu=True))
    assert found["b"].dtype == torch.float64
    assert torch.equal(found["b"], values.double().sum(0))
    assert float(found["a"]) == pytest.approx(float(values.double().sum()))


# ---------------------------------------------------------------- copies


def test_nothing_is_taken_ahead_of_its_step(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    steps, copy = TrainingStream.steps, Copies.__call__

    def counted(self: TrainingStream, first: int, last: int) -> Iterator[list[Batch]]:
        for batches in steps(self, first, last):
            events.append("taken")
            yield batches

    def copied(self: Copies, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        events.append("copied")
        return copy(self, tensors)

    monkeypatch.setattr(TrainingStream, "steps", counted)
    monkeypatch.setattr(Copies, "__call__", copied)
    own = ["optim.steps=3", "optim.warmup_steps=0", "run.micro_batch_size=4", "data.val_shards="]
    pretrain.run.main([*tiny, *own, f"run.dir={tmp_path}"])
    assert events == ["taken", "copied", "copied"] * 3


def test_all_of_a_batch_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    tensors = {"image": torch.rand(2, 3), "weight": torch.ones(2), "random_key": torch.arange(2)}
    batch = Parcel.of(Batch(tensors, [], [])).pin_memory().batch()
    places = {tensor.data_ptr() for tensor in pinned}
    assert {tensor.data_ptr() for tensor in batch.tensors.values()} == places
    assert all(torch.equal(batch.tensors[name], tensors[name]) for name in tensors)


# ---------------------------------------------------------------- the choice of a device


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let torch say that it has MPS, on macOS 14."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("data.devices.is_macos_or_newer", always)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "is_on_cpu"),
    [({}, False), ({"WORLD_SIZE": "1"}, False), ({"WORLD_SIZE": "2"}, True)],
)
def test_mps_is_for_one_process(
    mac: pytest.MonkeyPatch, environment: dict[str, str], is_on_cpu: bool
) -> None:
    for name, value in environment.items():
        mac.setenv(name, value)
    choose_device(RunConfig(precision="bf16"))
    assert ("ACCELERATE_USE_CPU" in os.environ) == is_on_cpu


def test_what_mps_cannot_do_is_refused(mac: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^run.precision=fp16 needs a CUDA device; use fp32 or bf"):
        choose_device(RunConfig(precision="fp16"))
    mac.setattr("data.devices.is_macos_or_newer", never)
    with pytest.raises(UserError, match=r"^run.precision=bf16 needs macOS 14 on MPS; use fp32$"):
        choose_device(RunConfig(precision="bf16"))
    mac.setenv("ACCELERATE_USE_CPU", "true")
    choose_device(RunConfig(precision="bf16"))


def test_mps_is_where_float64_is_not() -> None:
    mps, cpu = torch.device("mps"), torch.device("cpu")
    assert devices.exact_device(mps) == cpu
    assert devices.exact_device(cpu) == cpu
    assert devices.sum_dtype(mps) == torch.float32
    assert devices.sum_dtype(cpu) == torch.float64
    assert not devices.skips_bad_steps(mps)


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs Apple's MPS")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_mps_trains_on_the_choices_of_a_cpu(
    tmp_path: Path, tiny: list[str], shards: Path, precision: str
) -> None:
    arguments = [*pretraining(tiny, shards), f"run.precision={precision}", "data.workers=1"]
    found = records_of(pretrain.run.main, arguments, tmp_path / "mps")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    AcceleratorState._reset_state(reset_partial_state=True)
    usual = records_of(pretrain.run.main, arguments, tmp_path / "cpu")
    first = ("train/loss", "train/accuracy_neighbour", "train/class_entropy")
    rel = 1e-4 if precision == "fp32" else 2e-2
    for own, other in zip(found, usual, strict=True):
        for name in first:  # the last two depend on choices and images alone
            assert own[name] == pytest.approx(other[name], rel=rel if name == first[0] else 1e-5)
