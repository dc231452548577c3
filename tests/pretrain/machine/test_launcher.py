"""What launchers set unasked: what of it is followed, and what is refused."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import finetune.fewshot
import finetune.probe
import finetune.run
import pretrain.run
from data.devices import num_cores
from data.settings import UserError
from pretrain.training.config import RunConfig
from pretrain.training.launch import describe_start, start

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
SAY = "from pretrain.machine.launcher import why_threads; print(why_threads(0))"
ENTRY_POINTS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "pretrain": (pretrain.run.main, "run"),
    "finetune": (finetune.run.main, "run"),
    "fewshot": (finetune.fewshot.main, "fewshot"),
    "probe": (finetune.probe.main, "probe"),
}


@pytest.fixture(params=ENTRY_POINTS)
def entry_point(
    request: pytest.FixtureRequest, shards: Path, encoder: list[str], tmp_path: Path
) -> tuple[Callable[[list[str]], None], str, list[str]]:
    """Give an entry point, where its keys of a run are, and arguments that it would follow."""
    main, group = ENTRY_POINTS[request.param]
    data = [f"data.train={shards}/train-0.tar", f"data.val={shards}/val-0.tar"]
    if request.param == "pretrain":
        data = [f"data.shards={shards}/train-0.tar"]
    own = [f"{group}.dir={tmp_path}/run", "encoder.init=none", "data.workers=0"]
    return main, group, [*encoder, *data, *own]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("DYNAMO_BACKEND", "INDUCTOR", "for dynamo_backend=inductor; leave it out of its"),
        ("DYNAMO_BACKEND", "eager", "for dynamo_backend=eager; leave it out of its"),
        ("USE_FSDP", "true", "for FSDP; leave it out of its configuration"),
        ("USE_DEEPSPEED", "true", "for DEEPSPEED; leave it out of its configuration"),
        ("USE_MEGATRON_LM", "true", "for MEGATRON_LM; leave it out of its configuration"),
        ("USE_PARALLELISM_CONFIG", "true", "for PARALLELISM_CONFIG; leave it out of its"),
        ("GRADIENT_ACCUMULATION_STEPS", "4", "for gradient_accumulation_steps=4; leave it out"),
        ("MIXED_PRECISION", "fp8", "for mixed_precision=fp8, but {}.precision=fp32; leave it out"),
        ("MIXED_PRECISION", "bf16", "for mixed_precision=bf16, but {}.precision=fp32; set {}.p"),
    ],
)
def test_what_accelerate_would_change_is_refused(
    entry_point: tuple[Callable[[list[str]], None], str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    text: str,
) -> None:
    main, group, arguments = entry_point
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(UserError) as caught:
        main(arguments)
    message = str(caught.value)
    assert message.startswith(f"accelerate is configured {text.format(group, group)}")
    assert group == "run" or "run." not in message


def test_what_accelerate_says_of_itself_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch` sets where it is told nothing."""
    given = {"MIXED_PRECISION": "no", "DYNAMO_BACKEND": "NO", "DYNAMO_MODE": "default"}
    for name, value in {**given, "DYNAMO_USE_DYNAMIC": "False", "USE_CPU": "False"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    start(RunConfig())


# ---------------------------------------------------------------- the device


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_a_cpu_computes_in_bf16_though_accelerate_says_that_it_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    accelerator = start(RunConfig(precision="bf16"))
    assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", "bf16")


@pytest.mark.parametrize("has_gpu", [False, True])
def test_half_precision_is_refused_on_a_cpu_beside_a_gpu_too(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(has_gpu))  # with a GPU, it is `--cpu`
    with pytest.raises(UserError, match=r"^run.precision=fp16 needs a GPU; use fp32 or bf16"):
        start(RunConfig(precision="fp16"))


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize(
    ("asked", "variable", "text"),
    [(2, "1", "2 threads (as asked)"), (0, "1", "1 thread (OMP_NUM_THREADS)"), (0, None, "all")],
)
def test_the_users_threads_hold(
    monkeypatch: pytest.MonkeyPatch, asked: int, variable: str | None, text: str
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as torch does at OMP_NUM_THREADS=1
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    try:
        run = RunConfig(threads=asked)
        line = describe_start(start(run), run, 3)
        assert torch.get_num_threads() == (asked or (1 if variable else num_cores()))
    finally:
        torch.set_num_threads(before)
    assert text in line
    assert re.fullmatch(r"CPU, \d+ threads? \(.*\), 3 loader processes, .*JPEG .*, fp32", line)


def said(command: list[str], folder: Path, **environment: str) -> str:
    without = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "OMP_"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**without, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


# as accelerate does: in a process of its own, with a variable more
LAUNCHER = f"""
import os, subprocess, sys
own = {{"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}} | os.environ
sys.exit(subprocess.run([sys.executable, "-c", {SAY!r}], env=own).returncode)
"""


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, "all cores, shared by the processes"),
        ([], {"OMP_NUM_THREADS": "1"}, "OMP_NUM_THREADS"),
        ([], {"OMP_NUM_THREADS": "3"}, "OMP_NUM_THREADS"),
        (["--num-cpu-threads-per-process", "1"], {}, "OMP_NUM_THREADS"),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_a_launchers_thread_is_told_from_the_users(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], expected: str
) -> None:
    launcher = [sys.executable, "-c", LAUNCHER, *arguments]
    assert said(launcher, tmp_path, **environment) == expected


@pytest.mark.parametrize(
    "launcher",
    [["accelerate", "launch"], ["torchrun", "--standalone", "--nproc-per-node", "2"]],
    ids=["accelerate", "torchrun"],
)
@pytest.mark.faults
def test_real_launchers_are_told_from_the_user(tmp_path: Path, launcher: list[str]) -> None:
    (tmp_path / "say.py").write_text(SAY)
    command = [str(BIN / launcher[0]), *launcher[1:], "say.py"]
    assert set(said(command, tmp_path).splitlines()) == {"all cores, shared by the processes"}
    assert set(said(command, tmp_path, OMP_NUM_THREADS="1").splitlines()) == {"OMP_NUM_THREADS"}
