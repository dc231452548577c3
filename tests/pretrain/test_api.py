"""The Python calls: the command line's numbers to the bit, and a program that is left as it was."""

import json
import logging
import multiprocessing
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

import pretrain.run
from data.index.open import open_manifest
from data.storage.locations import Storage
from pretrain.api import RunStopped, UserError, embed, finetune, load_encoder
from pretrain.api import pretrain as start
from pretrain.machine.host import within_program
from pretrain.machine.signals import Interrupt
from pretrain.records.checkpoint import hash_file
from pretrain.training import trainer as loop
from tests.conftest import signal_does

pytestmark = pytest.mark.slow


def keys_of(arguments: list[str]) -> dict[str, Any]:
    """Turn a command's arguments into keyword arguments, as values of Python."""
    pairs = (argument.split("=", 1) for argument in arguments)
    return {name: _value(text) for name, text in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def losses(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if not k.startswith("speed/")} for r in records]


def weights(run: Path) -> str:
    return hash_file(run / "encoder/model.safetensors")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """Run the command itself, in this process."""
    run = tmp_path_factory.mktemp("command") / "run"
    pretrain.run.main([*tiny, "optim.steps=12", f"run.dir={run}"])
    AcceleratorState._reset_state(reset_partial_state=True)
    return run


def state_of_process() -> list[Any]:
    """List what a run changes for its whole process."""
    return [
        [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        dict(os.environ),
        [list(logging.getLogger().handlers), logging.getLogger().level],
        [logging.getLogger(name).level for name in ("data", "pretrain", "timm")],
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),  # noqa: NPY002 - what timm draws from
        random.getstate(),
        torch.are_deterministic_algorithms_enabled(),
        list(warnings.filters),
        [child.pid for child in multiprocessing.active_children()],
        [dict(PartialState._shared_state), dict(AcceleratorState._shared_state)],
        {thread.name for thread in threading.enumerate()},
    ]


def test_a_call_gives_the_numbers_of_the_command_and_leaves_the_process_as_it_was(
    tmp_path: Path, tiny: list[str], command: Path
) -> None:
    own = keys_of(tiny) | {"optim.steps": 12, "data.workers": 1, "run.deterministic": False}
    shards = own.pop("data.shards")
    before = state_of_process()
    result = start(shards, run_dir=tmp_path / "run", **own)
    assert state_of_process() == before
    assert losses(result.run_dir) == losses(command)
    assert weights(result.run_dir) == weights(command)
    assert (result.run_dir, result.steps) == (tmp_path / "run", 12)
    assert result.figures.items() >= losses(command)[-1].items()
    assert load_encoder(result.encoder).embed_dim == 32


def test_calls_follow_each_other_in_one_process(
    tmp_path: Path, tiny: list[str], shards: Path, command: Path
) -> None:
    own = keys_of(tiny) | {"optim.steps": 12}
    first = start(run_dir=tmp_path / "a", **own)
    again = start(run_dir=tmp_path / "a", **own)  # finished before: measured, and nothing written
    assert again.steps == 12
    assert again.figures["val/loss"] == first.figures["val/loss"]
    half = start(run_dir=tmp_path / "b", **own | {"run.precision": "bf16", "optim.steps": 4})
    assert half.figures["train/loss"] != first.figures["train/loss"]
    assert weights(start(run_dir=tmp_path / "c", **own).run_dir) == weights(command)
    labelled = (f"{shards}/train-*.tar", f"{shards}/val-0.tar")
    quick = {"optim.steps": 2, "optim.batch_size": 8, "optim.warmup_steps": 0, "data.workers": 0}
    tuned = finetune(first, *labelled, run_dir=tmp_path / "tuned", **quick)
    assert tuned.steps == 2
    assert (
        tuned.figures["val/accuracy"]
        == json.loads((tmp_path / "tuned/result.json").read_text())["accuracy"]
    )


def test_another_programs_accelerator_stays(tmp_path: Path, tiny: list[str]) -> None:
    theirs = Accelerator(cpu=True, mixed_precision="bf16")
    start(run_dir=tmp_path / "run", **keys_of(tiny) | {"optim.steps": 4})
    assert theirs.state.mixed_precision == Accelerator(cpu=True).state.mixed_precision == "bf16"


def test_a_configuration_file_and_keys_over_it(tmp_path: Path, tiny: list[str]) -> None:
    config = tmp_path / "mine.yaml"
    lines = [f"{name}: {json.dumps(value)}" for name, value in keys_of(tiny).items()]
    config.write_text("\n".join(lines))
    result = start(config=config, run_dir=tmp_path / "run", optim={"steps": np.int64(4)})
    assert result.steps == 4


def test_mistakes_are_errors_with_the_commands_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^optim.stps is no key; did you mean optim.steps\?$"):
        start("photos", run_dir=tmp_path, **{"optim.stps": 1})
    with pytest.raises(UserError, match=r"^optim.lr=<.*> is a function, which no configur"):
        start("photos", run_dir=tmp_path, **{"optim.lr": keys_of})
    with pytest.raises(UserError, match=r"^data.val is missing; "):
        finetune("runs/mine", "labelled", run_dir=tmp_path)


# ---------------------------------------------------------------- signals


def at_step(number: int, do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the midst of a step."""
    forward = loop.Trainer._forward
    seen: list[int] = []

    def watched(self: loop.Trainer, batch: Any) -> Any:
        seen.append(1)
        if len(seen) == number:
            do()
        return forward(self, batch)

    monkeypatch.setattr(loop.Trainer, "_forward", watched)


def send(number: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


def test_ctrl_c_commits_and_raises_and_the_next_call_resumes(
    tmp_path: Path, tiny: list[str], command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = keys_of(tiny) | {"optim.steps": 12}
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        at_step(5, send(signal.SIGINT), patch)
        with pytest.raises(KeyboardInterrupt, match="SIGINT came; step 6 is committed"):
            start(run_dir=tmp_path / "run", **own)
    assert signal.getsignal(signal.SIGINT) is before
    assert weights(start(run_dir=tmp_path / "run", **own).run_dir) == weights(command)
    assert losses(tmp_path / "run") == losses(command)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])  # the latter as a terminal is closed
def test_a_signal_commits_and_raises_and_is_not_ignored_afterwards(
    name: str, tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = signal.Signals[name]
    at_step(5, send(number), monkeypatch)
    with signal_does(number, signal.SIG_DFL):
        with pytest.raises(RunStopped, match=f"{name} came; step 6 is committed") as stopped:
            start(run_dir=tmp_path / "run", **keys_of(tiny))
        assert signal.getsignal(number) is signal.SIG_DFL
    assert stopped.value.status == 75


def test_a_closed_terminal_does_not_end_a_run_behind_nohup(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = keys_of(tiny) | {"optim.steps": 8}
    at_step(5, send(signal.SIGHUP), monkeypatch)
    with signal_does(signal.SIGHUP, signal.SIG_IGN):
        assert start(run_dir=tmp_path / "run", **own).steps == 8
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_second_ctrl_c_in_a_notebook_raises_and_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(status: int) -> None:
        raise AssertionError(f"left with {status}")

    monkeypatch.setattr(os, "_exit", ended)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with within_program(), Interrupt() as interrupt:
        interrupt.has_begun = True
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupt.name == "SIGINT"


def test_a_call_in_another_thread_trains(tmp_path: Path, tiny: list[str], command: Path) -> None:
    own = keys_of(tiny) | {"optim.steps": 12, "run.dir": str(tmp_path / "run")}
    thread = threading.Thread(target=lambda: start(**own))
    thread.start()
    thread.join()
    assert weights(tmp_path / "run") == weights(command)


def test_an_error_of_the_program_gives_the_folder_back(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = keys_of(tiny) | {"optim.steps": 8, "data.workers": 1}

    def fail() -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        at_step(3, fail, patch)
        with pytest.raises(ZeroDivisionError):
            start(run_dir=tmp_path / "run", **own)
    assert multiprocessing.active_children() == []
    assert start(run_dir=tmp_path / "run", **own).steps == 8


# ---------------------------------------------------------------- features


def test_features_are_of_the_images_that_they_name(
    command: Path, shards: Path, tmp_path: Path
) -> None:
    before = state_of_process()
    found = embed(command, f"{shards}/train-*.tar", workers=0, batch_size=5)
    assert state_of_process() == before
    assert found.values.shape == (35, 32)  # 022 is no image
    assert found.values.dtype == np.float32
    assert found.keys[:2] == ["train-0.tar/000", "train-0.tar/001"]
    assert "train-1.tar/022" not in found.keys
    alone = embed(load_encoder(command), f"{shards}/train-2.tar", workers=0)
    assert alone.keys == found.keys[-9:]
    assert np.allclose(alone.values, found.values[-9:], atol=1e-5)
    both = embed(command, f"{shards}/val-0.tar", workers=0, layer=1, pooling="both")
    assert both.values.shape == (10, 64)
    with pytest.raises(UserError, match=r"layer=3 is not in 1..2"):
        embed(command, f"{shards}/val-0.tar", layer=3)
    assert open_manifest(f"{shards}/val-0.tar", "x", Storage()).num_samples == 10
