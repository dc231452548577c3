"""scripts/status.py says how far a run is, whether it lives, and how it ended."""

import subprocess
import sys
from pathlib import Path

import pytest

import pretrain.run
from data.settings import RunStopped, UserError
from pretrain.records.lock import lock_run, read_holder, unlock_run
from scripts import status
from tests.launching import ROOT


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    run = tmp_path_factory.mktemp("status") / "run"
    pretrain.run.main([*tiny, "optim.steps=6", f"run.dir={run}"])
    return run


def test_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(finished.iterdir())
    status.main([str(finished)])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"{finished}: step 6 of 6 (100.0 %), finished"
    assert rest[0].startswith("  training: loss ")
    assert rest[0].endswith("(step 6)")
    assert "(baseline " in rest[1]
    assert rest[-1] == f"  kept: {finished}/checkpoints/step-00000006" or "not used" in rest[-1]
    assert sorted(finished.iterdir()) == before


def test_a_run_that_lives_was_killed_or_has_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """POSIX locks are no obstacle to their own process: another one holds it."""
    (tmp_path / "config.yaml").write_text("optim: {steps: 100, batch_size: 10}\n")
    record = '{"step": 40, "train/loss": 1.5, "speed/images_per_second": 20.0}\n'
    (tmp_path / "metrics.jsonl").write_text(record)
    code = f"""
from pathlib import Path
from pretrain.records.lock import lock_run
lock_run(Path({str(tmp_path)!r}))
print("held", flush=True)
input()
"""
    held = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert held.stdout is not None
    assert held.stdout.readline() == "held\n"
    status.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert f"step 40 of 100 (40.0 %), running as process {held.pid} on " in out
    assert "about 30 s left" in out
    held.kill()
    held.communicate()
    with pytest.raises(SystemExit, match="1"):
        status.main([str(tmp_path)])
    assert f"killed (process {held.pid} on " in capsys.readouterr().out
    unlock_run(lock_run(tmp_path), "stopped: SIGTERM came; step 40 is committed")
    with pytest.raises(SystemExit, match="1"):
        status.main([str(tmp_path)])
    assert "(40.0 %), stopped: SIGTERM came; step 40 is committed\n" in capsys.readouterr().out


def test_how_far_a_run_is_that_stopped_between_two_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its newest checkpoint is ahead of its last record, or there is no record yet."""
    (tmp_path / "config.yaml").write_text("optim: {steps: 100, batch_size: 10}\n")
    (tmp_path / "checkpoints/step-00000046").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000046-mine").mkdir()
    for log in ("", '{"step": 40, "train/loss": 1.5, "speed/images_per_second": 20.0}\n'):
        (tmp_path / "metrics.jsonl").write_text(log)
        with pytest.raises(SystemExit, match="1"):
            status.main([str(tmp_path)])
        assert ": step 46 of 100 (46.0 %), not running\n" in capsys.readouterr().out


def test_a_run_writes_down_how_it_ended(
    finished: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = read_holder(finished)
    assert holder is not None
    assert (holder.is_alive, holder.text, holder.was_killed) == (False, "finished", False)

    def stop(*_: object) -> None:
        raise RunStopped("the disk\nis full")

    monkeypatch.setattr("pretrain.training.trainer.Trainer.train", stop)
    with pytest.raises(RunStopped):
        pretrain.run.main([*tiny, f"run.dir={tmp_path}/run"])
    holder = read_holder(tmp_path / "run")
    assert holder is not None
    assert holder.text == "stopped: the disk is full"


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run: it has no config.yaml"):
        status.main([str(tmp_path)])
    assert read_holder(tmp_path) is None
