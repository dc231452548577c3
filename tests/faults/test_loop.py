"""Steps that are not finite, data that is bad, two runs in one folder, restarts without end."""

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

import pretrain.run
from data.batch import Request
from data.index.open import open_manifest
from data.samples import Samples
from data.settings import RunStopped, UserError
from data.shards import ImageFile, write_shard
from pretrain.encoder import load_encoder
from pretrain.objective.model import MaskedPatchModel
from pretrain.records import checkpoint
from pretrain.records.logs import read_records
from pretrain.records.traces import SKIPPED
from pretrain.training import state
from pretrain.training.contract import Output
from tests.conftest import make_png
from tests.faults.test_ranks import figures, global_batches, stop_after
from tests.launching import SERVER, Ranks, run_ranks

pytestmark = pytest.mark.timeout(600)


def step_folder(run: Path, step: int) -> Path:
    return run / f"checkpoints/step-{step:08d}"


def tensors(run: Path, step: int, name: str) -> dict[str, Tensor]:
    return load_file(step_folder(run, step) / f"{name}.safetensors")


# ---------------------------------------------------------------- nan_loss


def _poison(kind: str, steps: tuple[int, ...], rank_only: bool) -> None:
    """Make the model's loss infinite or NaN in some steps, on one rank where there are several."""
    import os

    calls = 0
    plain = MaskedPatchModel.forward
    is_hit = not rank_only or os.environ.get("RANK", "0") == "1"

    def forward(self: MaskedPatchModel, batch: dict[str, Tensor]) -> Output:
        nonlocal calls
        output = plain(self, batch)
        if not self.training or isinstance(output.loss, FakeTensor):  # the count of memory
            return output
        calls += 1
        return (
            output._replace(loss=output.loss + float(kind)) if calls in steps and is_hit else output
        )

    MaskedPatchModel.forward = forward


@pytest.mark.parametrize(
    ("kind", "world", "more"),
    [
        ("inf", 1, []),
        ("nan", 2, []),
        ("inf", 2, ["run.parallel=fsdp"]),
        ("nan", 2, ["run.parallel=fsdp", "optim.algorithm=sgd"]),
        ("nan", 1, ["optim.algorithm=sgd", "optim.grad_clip=0"]),
    ],
)
def test_nan_loss(tmp_path: Path, tiny: list[str], kind: str, world: int, more: list[str]) -> None:
    """A step whose loss is not finite changes no weight on any rank, and its samples are named.

    `inf + loss` has a finite gradient: the gradient alone would not show it.
    """
    bad = (1, 7) if world == 1 else (7,)
    arguments = [*tiny, *more, "optim.steps=12", "run.checkpoint_every=1", "run.log_every=2"]
    prepare = partial(_poison, kind, bad, world > 1)
    run = tmp_path / "run"
    run_ranks([*arguments, f"run.dir={run}"], world, tmp_path / "logs", prepare=prepare)
    for name in ("model", "optimizer"):
        before, after = tensors(run, 6, name), tensors(run, 7, name)
        assert all(torch.equal(before[key], after[key]) for key in before), name
    assert all(bool(value.isfinite().all()) for value in tensors(run, 12, "optimizer").values())
    moved = tensors(run, 8, "model")
    assert any(
        not torch.equal(moved[key], value) for key, value in tensors(run, 7, "model").items()
    )
    ledger = [line for line in read_records(run / "bad_samples.jsonl") if line["reason"] == SKIPPED]
    named: dict[int, set[str]] = {step: set() for step in bad}
    for line in ledger:
        named[line["step"]].add(f"{line['shard']}/{line['key']}")
    assert named == {step: set(global_batches(run)[step]) for step in bad}


def test_too_many_bad_steps(tmp_path: Path, tiny: list[str]) -> None:
    """Real divergence: the run stops, and the last good checkpoint is intact."""
    arguments = [*tiny, "run.max_bad_steps=3", "run.checkpoint_every=5", f"run.dir={tmp_path}/run"]
    prepare = partial(_poison, "nan", tuple(range(12, 99)), rank_only=False)
    with Ranks(arguments, 2, tmp_path / "logs", prepare=prepare) as ranks:
        assert ranks.wait() == [1, 1]
        output = ranks.output
    assert output.count("stopped: the loss or its gradient was not finite in 3 steps in a row") == 1
    assert f"up to step 14; {step_folder(tmp_path / 'run', 10)} is intact; try" in output
    assert "Traceback" not in output
    assert checkpoint.recover_newest(tmp_path / "run") == step_folder(tmp_path / "run", 10)
    run_ranks(arguments, 2, tmp_path / "logs")  # the fault gone, it goes on
    run_ranks([*arguments, f"run.dir={tmp_path}/whole"], 2, tmp_path / "logs")
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_a_rate_that_diverges_stops_the_run(tmp_path: Path, tiny: list[str]) -> None:
    arguments = [*tiny, "optim.lr=1e30", "optim.grad_clip=0", "run.max_bad_steps=5"]
    with pytest.raises(RunStopped, match=r"there is no checkpoint yet|is intact"):
        pretrain.run.main([*arguments, f"run.dir={tmp_path}/run"])
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert any(json.loads(line, parse_constant=pytest.fail)["train/loss"] is None for line in lines)


# ---------------------------------------------------------------- bad_on_one_rank


def gradient_norm(
    samples: Samples, model: MaskedPatchModel, request: Request
) -> tuple[float, float]:
    """Return loss and gradient norm over the good samples of a batch alone."""
    tensors = samples[request].tensors
    good = tensors["weight"] > 0
    output = model({name: value[good] for name, value in tensors.items()})
    loss = output.loss / good.sum()
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return float(loss.detach()), float(norm)


@pytest.fixture(scope="module")
def bad_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 24 images of which 14 are none, so that in each batch whole micro-batches are bad."""
    folder = tmp_path_factory.mktemp("bad")
    images = [
        ImageFile(f"{n:02d}", "png", make_png(n) if n % 12 in (0, 3, 4, 7, 9) else b"none", 0)
        for n in range(24)
    ]
    write_shard(folder / "train-0.tar", images)
    return folder


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 1), (2, 4), (2, 1), (4, 1)])
def test_bad_on_one_rank(
    tmp_path: Path, tiny: list[str], bad_shards: Path, world: int, micro: int
) -> None:
    """No hang where all of a rank's samples are bad; the gradient is that of the good ones."""
    run = tmp_path / "run"
    arguments = [*tiny, f"data.shards={bad_shards}/train-0.tar", "data.max_bad_ratio=1"]
    arguments += ["optim.steps=3", "optim.warmup_steps=0", "optim.lr=0"]
    arguments += [f"run.micro_batch_size={micro}", f"run.dir={run}"]
    run_ranks(arguments, world, tmp_path / "logs")
    pretrain.run.main([*arguments, f"run.dir={tmp_path}/weights", "run.micro_batch_size=0"])
    manifest = open_manifest(f"{bad_shards}/train-0.tar", "data.shards")
    samples = Samples(manifest, (16, 16), seed=0, crop_area=(0.08, 1.0))
    num_bad = 0
    for step, record in enumerate(read_records(run / "metrics.jsonl")):
        model = untrained(tmp_path / "weights")
        request = Request(0, step * 8, step * 8 + 8)
        loss, norm = gradient_norm(samples, model, request)
        num_bad += len(samples[request].bad)
        assert record["train/loss"] == pytest.approx(loss, rel=1e-5)
        assert record["optim/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert num_bad == len(read_records(run / "bad_samples.jsonl")) == 14


def untrained(run: Path) -> MaskedPatchModel:
    """Return the model of a run that was trained at rate 0."""
    from pretrain.objective.config import CorruptionConfig, TargetConfig

    model = MaskedPatchModel(load_encoder(run), CorruptionConfig(), TargetConfig())
    newest = checkpoint.recover_newest(run)
    assert newest is not None
    state.load_weights(model, newest)
    return model.train()


def test_data_that_is_too_bad(tmp_path: Path, tiny: list[str], bad_shards: Path) -> None:
    arguments = [*tiny, f"data.shards={bad_shards}/train-0.tar", "run.checkpoint_every=1"]
    with Ranks([*arguments, f"run.dir={tmp_path}/run"], 2, tmp_path / "logs") as ranks:
        assert ranks.wait() == [1, 1]
        output = ranks.output
    assert output.count("stopped: ") == 1
    assert "58.3% of the samples cannot be used (14 of 24), more than data.max_bad_ratio=" in output
    assert "Traceback" not in output
    assert checkpoint.recover_newest(tmp_path / "run") is not None


def test_fewer_samples_than_ranks(tmp_path: Path, tiny: list[str]) -> None:
    """Some ranks have padding alone, in each step."""
    write_shard(tmp_path / "few.tar", [ImageFile(str(n), "png", make_png(n)) for n in range(2)])
    arguments = [*tiny, f"data.shards={tmp_path}/few.tar", "optim.steps=4", "optim.batch_size=4"]
    run_ranks([*arguments, f"run.dir={tmp_path}/run"], 4, tmp_path / "logs")
    assert {tuple(sorted(keys)) for keys in global_batches(tmp_path / "run").values()} == {
        ("few.tar/0", "few.tar/1")
    }


# ---------------------------------------------------------------- manifest_changed


def test_manifest_changed(tmp_path: Path, tiny: list[str], shards: Path) -> None:
    """A run goes on only with the data it began with."""
    own = tmp_path / "shards"
    shutil.copytree(shards, own)
    arguments = [*tiny, f"data.shards={own}/train-*.tar", f"run.dir={tmp_path}/run"]
    pretrain.run.main([*arguments, "optim.steps=40", "run.checkpoint_every=5"])
    for folder in sorted((tmp_path / "run/checkpoints").iterdir())[2:]:
        shutil.rmtree(folder)
    before = (own / "train-0.tar").read_bytes()
    write_shard(own / "train-0.tar", [ImageFile(str(n), "png", make_png(n)) for n in range(20)])
    with pytest.raises(UserError, match=r"another stream: content of the shards \(sha256\) was"):
        pretrain.run.main(arguments)
    (own / "train-0.tar").unlink()
    with pytest.raises(UserError, match=r"another stream: content of the shards \(sha256\) was"):
        pretrain.run.main(arguments)
    (own / "train-0.tar").write_bytes(before)
    pretrain.run.main(arguments)


# ---------------------------------------------------------------- two runs on one directory


def test_the_second_run_in_a_folder_is_refused(tmp_path: Path, tiny: list[str]) -> None:
    arguments = [*tiny, "optim.steps=100000", "run.eval_every=0", f"run.dir={tmp_path}/run"]
    with Ranks(arguments, 2, tmp_path / "first") as first:

        def try_another(first: Ranks) -> None:
            pid = first.processes[0].pid
            with Ranks(arguments, 1, tmp_path / "second") as second:
                assert second.wait() == [2]
                assert f"run.dir={tmp_path}/run is in use by process {pid} on " in second.output
                assert "Traceback" not in second.output
            assert first.is_alive

        stop_after(first, tmp_path / "run", 5, try_another)
        first.kill()
    few = [*arguments, "optim.steps=100000"]
    with Ranks(few, 1, tmp_path / "third") as third:  # a killed run leaves no lock behind
        stop_after(third, tmp_path / "run", 1, Ranks.kill)


# ---------------------------------------------------------------- evil_checkpoint


class _Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_evil_checkpoint(tmp_path: Path, tiny: list[str], name: str) -> None:
    """A checkpoint is data: a pickle in it is refused, and nothing in it runs."""
    arguments = [*tiny, "optim.steps=4", f"run.dir={tmp_path}/run"]
    pretrain.run.main(arguments)
    trap = tmp_path / "sprung"
    folder = step_folder(tmp_path / "run", 4)
    (folder / name).write_bytes(pickle.dumps(_Evil(trap)))
    manifest = folder / "manifest.json"
    hashes = json.loads(manifest.read_text())
    hashes[name] = checkpoint.hash_file(folder / name)  # whoever can write one can write both
    manifest.write_text(json.dumps(hashes))
    with pytest.raises(UserError, match="step-00000004"):
        pretrain.run.main([*arguments, "optim.steps=4"])
    assert not trap.exists()


def test_an_encoder_that_is_a_pickle_is_refused(tmp_path: Path, tiny: list[str]) -> None:
    pretrain.run.main([*tiny, "optim.steps=4", f"run.dir={tmp_path}/run"])
    shutil.copytree(tmp_path / "run/encoder", tmp_path / "encoder")
    (tmp_path / "encoder/model.safetensors").unlink()
    trap = tmp_path / "sprung"
    (tmp_path / "encoder/pytorch_model.bin").write_bytes(pickle.dumps(_Evil(trap)))
    with pytest.raises(UserError, match="encoder"):
        load_encoder(tmp_path / "encoder")
    assert not trap.exists()


# ---------------------------------------------------------------- leaks


def _restart(arguments: list[str], run: Path, times: int, answer: Path) -> None:
    """Start a run again and again in one process; note what it holds after each."""
    from accelerate.state import AcceleratorState

    held: list[dict[str, int]] = []
    for number in range(times):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        more = ["data.workers=1"] if number % 2 else []
        pretrain.run.main([*arguments, *more])
        AcceleratorState._reset_state(reset_partial_state=True)
        status = Path("/proc/self/status").read_text().split()
        held.append(
            {
                "memory (KiB)": int(status[status.index("VmRSS:") + 1]),
                "descriptors": len(list(Path("/proc/self/fd").iterdir())),
                "threads": int(status[status.index("Threads:") + 1]),
                "shared memory": len(list(Path("/dev/shm").iterdir())),
            }
        )
    answer.write_text(json.dumps(held))


@pytest.mark.parametrize("times", [8, pytest.param(100, marks=pytest.mark.faults)])
def test_leaks(tmp_path: Path, tiny: list[str], times: int) -> None:
    """Restarts, with loader processes in every other, take no more and more."""
    run = tmp_path / "run"
    arguments = [*tiny, "optim.steps=4", "run.eval_every=0", f"run.dir={run}"]
    answer = tmp_path / "held.json"
    process = SERVER.Process(target=_restart, args=(arguments, run, times, answer))
    process.start()
    process.join()
    assert process.exitcode == 0
    held = json.loads(answer.read_text())
    early, late = held[times // 4 : times // 4 + 2], held[-2:]  # with loader processes and without
    print(f"restarts: {times}; after {times // 4}: {early}; after all: {late}")
    names = ["descriptors", "threads"]
    if "PYTEST_XDIST_WORKER" not in os.environ:  # of the whole machine: no other test may run
        names.append("shared memory")
    for name in names:
        before, after = max(one[name] for one in early), min(one[name] for one in late)
        assert after <= before, (name, [one[name] for one in held])
    assert late[1]["memory (KiB)"] - early[0]["memory (KiB)"] < 100 * times + 8_000


def test_nothing_waits_forever(tmp_path: Path, tiny: list[str]) -> None:
    """A rank that dies ends the other one within a launcher's grace."""
    arguments = [*tiny, "optim.steps=100000", "data.workers=1", f"run.dir={tmp_path}/run"]
    with Ranks(arguments, 2, tmp_path / "logs") as ranks:
        stop_after(ranks, tmp_path / "run", 3, lambda ranks: ranks.processes[1].kill())
        start = time.monotonic()
        ranks.wait()
        assert time.monotonic() - start < 15
