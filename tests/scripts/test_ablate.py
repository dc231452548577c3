"""The ablations as a user has them: killed and gone on with, added to, refused, failing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import pretrain.run
from data import commands
from data.settings import UserError
from data.storage.locations import take_lock
from pretrain.records.logs import read_records
from scripts import ablate, benchmark
from scripts._ablate.table import _cell
from scripts._benchmark import learn as learning
from scripts._benchmark.installed import Package
from tests.launching import Forked

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(300)
Content = dict[str, Any]


def typed(plan: Path, *arguments: str) -> list[str]:
    return [str(plan), f"--output={plan.with_suffix('')}", *arguments]


@contextmanager
def started(plan: Path, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """Start the script in a process of its own, and end it."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/ablate.py"), *typed(plan, *arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def fork_children(patch: pytest.MonkeyPatch) -> None:
    """Fork what ablations in this process start; those of `started` start new interpreters."""
    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "STDOUT")}
    patch.setattr(commands, "subprocess", SimpleNamespace(Popen=Forked, **names))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_children(monkeypatch)


def wait_for(is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_held(lock: Path) -> bool:
    try:
        os.close(take_lock(lock))
    except BlockingIOError:
        return True
    return False


def num_records(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(read_records(path)) if path.is_file() else 0


def table(plan: Path) -> dict[str, Content]:
    """Return table.json's rows by name."""
    rows = json.loads((plan.with_suffix("") / "table.json").read_text())["rows"]
    return {row["row"]: row for row in rows}


def write(plan: Path, content: Content) -> Path:
    plan.write_text(yaml.safe_dump(content, sort_keys=False))
    return plan


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the inode and the time of each file of a pretraining run."""
    kept = [path for path in folder.rglob("*") if path.is_file() and "seed-" in str(path)]
    stats = {path.relative_to(folder): path.stat() for path in kept}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Content:
    """Give a plan of two rows and two seeds, without measures."""
    short = ["optim.steps=8", "optim.warmup_steps=2", "run.eval_every=0", "run.checkpoint_every=2"]
    common = dict(argument.split("=", 1) for argument in [*tiny, *short])
    base = tmp_path_factory.mktemp("base") / "base.yaml"
    base.write_text("optim: {weight_decay: 0.05}\n")
    return {
        "config": str(base),
        "common": {key: yaml.safe_load(value) for key, value in common.items()},
        "seeds": [0, 1],
        "rows": {
            "half": {"set": {"corruption": {"ratio": 0.5}}, "paper": 0.64},
            "less": {"set": {"corruption.ratio": 0.25}},
        },
    }


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, content: Content) -> Path:
    """Kill an ablation in its second row, and start it again; return its plan."""
    plan = write(tmp_path_factory.mktemp("killed") / "mine.yaml", content)
    slow = {"common": content["common"] | {"optim.steps": 30}}
    folder = plan.with_suffix("")
    with started(write(plan, content | slow)):
        wait_for(lambda: num_records(folder / "less/seed-0") > 4)
        done = files(folder / "half")
    wait_for(lambda: not is_held(folder / "less/seed-0/.lock"))  # its run commits, and leaves
    with pytest.MonkeyPatch.context() as patch:
        fork_children(patch)
        ablate.main(typed(plan))
    assert files(folder / "half") == done
    return plan


def test_a_killed_ablation_gives_the_table_of_runs_typed_by_hand(
    tmp_path: Path, killed: Path, content: Content
) -> None:
    found = table(killed)
    assert list(found) == ["half", "less"]
    base = [str(content["config"])] + [f"{k}={v}" for k, v in content["common"].items()]
    for name, ratio in {"half": 0.5, "less": 0.25}.items():
        values: list[float] = []
        for seed in (0, 1):
            run = tmp_path / f"{name}-{seed}"
            own = [f"corruption.ratio={ratio}", f"run.seed={seed}", f"run.dir={run}"]
            pretrain.run.main([*base, "optim.steps=30", *own])
            values.append(read_records(run / "metrics.jsonl")[-1]["val/loss"])
        figure = found[name]["figures"]["val/loss"]
        assert figure["values"] == values
        assert figure["mean"] == pytest.approx(sum(values) / 2)
        assert figure["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        assert found[name]["states"] == {"0": "finished", "1": "finished"}
        assert found[name]["figures"]["steps"]["mean"] == 30
        assert found[name]["figures"]["images_per_second"]["mean"] > 0


@pytest.fixture
def finished(tmp_path: Path, killed: Path) -> Path:
    """Copy the finished ablation; its plan has what it was run with."""
    copytree(killed.parent, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy/mine.yaml"


def change(plan: Path, **parts: Content) -> Path:
    return write(plan, yaml.safe_load(plan.read_text()) | parts)


def test_the_table_is_printed_without_running_anything(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = yaml.safe_load(finished.read_text())["rows"] | {"more": {"set": {"encoder.depth": 1}}}
    before = files(finished.with_suffix(""))
    ablate.main(typed(change(finished, rows=rows), "--table"))
    printed = capsys.readouterr().out
    assert files(finished.with_suffix("")) == before
    assert printed == finished.with_suffix("").joinpath("table.md").read_text()
    lines = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")]
    header, _, half, _, more = ([cell.strip() for cell in line] for line in lines)
    assert header[:3] == ["row", "paper", "val/loss"]
    assert header[-4:] == ["steps", "images/s", "minutes", "seeds"]
    assert (half[1], half[-4], half[-1]) == ("0.64", "30", "2")
    assert "±" in half[2]
    assert set(more[2:-1]) == {"missing"}
    assert more[-1] == "0 of 2, missing"


@pytest.mark.usefixtures("forked")
def test_other_keys_are_refused_by_name(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = finished.read_text()
    rows = {"half": {"set": {"corruption.ratio": 0.5}}, "less": {"set": {"corruption.ratio": 0.3}}}
    change(finished, rows=rows)
    ablate.main(typed(finished, "--table"))
    assert table(finished)["less"]["states"] == {"0": "unfinished", "1": "unfinished"}
    assert "val/loss" not in table(finished)["less"]["figures"]
    with pytest.raises(SystemExit):
        ablate.main(typed(finished, "--seeds=0"))
    folder = finished.with_suffix("") / "less/seed-0"
    text = f"{folder} failed: status 2: error: run.dir={folder} holds a run of another "
    text += "configuration: corruption.ratio was 0.25, now 0.3; give the same keys to resume it, or"
    assert capsys.readouterr().err.startswith(text)
    metrics = (folder / "metrics.jsonl").read_bytes()
    finished.write_text(own)
    ablate.main(typed(finished))
    assert table(finished)["less"]["states"] == {"0": "finished", "1": "finished"}
    assert (folder / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.usefixtures("forked")
def test_a_row_that_another_process_is_at_is_left_to_it(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished.with_suffix("") / "less"
    rows = yaml.safe_load(finished.read_text())["rows"] | {"more": {"untrained": True}}
    program = (
        "from pathlib import Path; from data.storage.locations import take_lock; "
        f"take_lock(Path({str(folder)!r}, '.ablation.lock')); print(flush=True); input()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        other.stdout.readline()
        ablate.main(typed(change(finished, rows=rows), "--seeds=0"))
        other.kill()
    assert f"{folder}/seed-0: another process is at this row" in capsys.readouterr().out
    assert table(finished)["more"]["states"] == {"0": "finished"}


@pytest.mark.usefixtures("forked")
def test_measures_are_added_to_what_is_finished(
    finished: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"data.train": f"{shards}/train-*.tar", "data.val": f"{shards}/val-0.tar"}
    keys |= {"data.workers": 0, "fewshot.shots": [1, 5], "fewshot.threads": 1}
    few = {"script": "fewshot", "set": keys | {"fewshot.layers": [1, 2]}, "show": ["5shot"]}
    rows = yaml.safe_load(finished.read_text())["rows"]
    run = finished.with_suffix("") / "half/seed-0"
    before = files(run)
    change(finished, rows=rows, measures={"few": few})
    ablate.main(typed(finished, "--rows=half", "--seeds=0"))
    assert before.items() <= files(run).items()
    assert "| few/5shot layer 1 | few/5shot layer 2 | steps" in capsys.readouterr().out
    found = table(finished)
    result = json.loads((run / "few/result.json").read_text())
    assert result["encoder.init"] == str(run)
    for cell in result["cells"]:
        figure = found["half"]["figures"][f"few/5shot@{cell['layer']}"]
        assert figure["values"] == [cell["accuracy/5shot"]]
        assert figure["deviation"] is None
    assert not (run / "features").exists()
    assert "few/5shot@1" not in found["less"]["figures"]


@pytest.mark.usefixtures("forked")
def test_a_row_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, content: Content, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"bad": {"set": {"encoder.num_heads": 3}}, "untrained": {"untrained": True}}
    plan = write(tmp_path / "mine.yaml", content | {"rows": rows})
    with pytest.raises(SystemExit) as left:
        ablate.main(typed(plan, "--seeds=0"))
    assert left.value.code == 1
    printed, said = capsys.readouterr()
    [failure] = said.splitlines()
    start = f"{plan.with_suffix('')}/bad/seed-0 failed: "
    assert failure.startswith(f"{start}status 2: error: ")
    assert failure.removeprefix(start) in printed
    found = table(plan)
    assert found["bad"]["states"]["0"].startswith("failed: status 2")
    assert found["untrained"]["states"] == {"0": "finished"}
    assert found["untrained"]["figures"]["steps"]["mean"] == 1
    assert "| 0 of 1, failed |" in printed
    mended = rows | {"bad": {"set": {"encoder.num_heads": 4}}}
    ablate.main(typed(change(plan, rows=mended), "--seeds=0"))
    assert table(plan)["bad"]["states"] == {"0": "finished"}


def test_a_signal_is_handed_on_and_leaves_a_checkpoint(tmp_path: Path, content: Content) -> None:
    long = {"optim.steps": 100_000, "run.checkpoint_every": 0}
    plan = write(tmp_path / "mine.yaml", content | {"common": content["common"] | long})
    run = plan.with_suffix("") / "half/seed-0"
    with started(plan, "--rows=half", "--seeds=0") as process:
        wait_for(lambda: num_records(run) > 3)
        assert not (run / "checkpoints").is_dir()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "stopped: SIGINT came; the same command goes on where this one was\n"
    assert len(list(run.glob("checkpoints/step-*"))) == 1
    assert table(plan)["half"]["states"] == {"0": "unfinished"}


@pytest.mark.usefixtures("forked")
def test_equal_wall_time_measures_the_speed_once(
    tmp_path: Path, content: Content, capsys: pytest.CaptureFixture[str]
) -> None:
    common = content["common"] | {"optim.steps": 100, "optim.warmup_steps": 10}
    plan = write(tmp_path / "mine.yaml", content | {"common": common, "budget": {"minutes": 0.02}})
    ablate.main(typed(plan, "--rows=half"))
    printed = capsys.readouterr().out
    assert printed.count("measuring the speed") == 1
    assert "equal training time: 0.02 minutes" in printed
    folder = plan.with_suffix("") / "half"
    kept = json.loads((folder / "speed/ablation.json").read_text())
    assert kept["steps"] == round(kept["images_per_second"] * 0.02 * 60 / 8)
    assert kept["warmup_steps"] == round(kept["steps"] / 10)
    assert not (folder / "speed/run").exists()
    found = table(plan)["half"]["figures"]["steps"]
    assert found["values"] == [kept["steps"], kept["steps"]]


@pytest.fixture
def learn(tmp_path: Path, content: Content, tiny_finetune: list[str]) -> Path:
    """Write a plan of the benchmark `learn`: ours and two alternatives, equal wall time."""
    base = tmp_path / "base.yaml"
    base.write_text("optim: {warmup_steps: 2}\n")
    tuned = dict(argument.split("=", 1) for argument in [*tiny_finetune, "optim.steps=2"])
    mae = {"alternative.name": "mae", "mae.decoder_depth": 1}
    mae |= {"mae.decoder_width": 32, "mae.decoder_heads": 2}
    mpp = {"alternative.name": "mpp"}
    content = content | {
        "config": str(base),
        "budget": {"minutes": 1},
        "measures": {
            "finetune": {"set": {key: yaml.safe_load(value) for key, value in tuned.items()}},
        },
        "rows": {
            "ours": {"set": {"encoder.sees_masked": False}},
            "mae": {"script": "alternative", "set": mae},
            "mpp": {"script": "alternative", "set": mpp},
        },
    }
    return write(tmp_path / "short.yaml", content)


@pytest.mark.usefixtures("forked")
@pytest.mark.timeout(600)  # starts six processes
def test_the_benchmark_learn_divides_ours_by_the_others(
    tmp_path: Path,
    learn: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    is_there = property(lambda package: package.name == "transformers")
    monkeypatch.setattr(Package, "is_installed", is_there)
    arguments = ["learn", f"--plan={learn}", f"--output={tmp_path / 'runs'}", "--minutes=0.003"]
    benchmark.main([*arguments, "--seeds=0", f"--json={tmp_path / 'learn.json'}"])
    printed, said = capsys.readouterr()
    assert said.startswith(
        "left out: mpp needs vit-pytorch, which is not installed; run pip install"
    )
    assert len(said.splitlines()) == 1
    assert "equal training time: 0.003 minutes" in printed
    record = json.loads((tmp_path / "learn.json").read_text())
    assert list(record["ratios"]) == ["finetune_vs_mae"]
    rows = {row["row"]: row for row in record["table"]["rows"]}
    assert list(rows) == ["ours", "mae"]
    top1 = {name: row["figures"]["finetune/accuracy"]["values"] for name, row in rows.items()}
    assert record["spread"]["finetune_vs_mae"]["rounds"] == [top1["ours"][0] / top1["mae"][0]]
    assert record["finetune_accuracy"]["mae"]["rounds"] == top1["mae"]
    steps = {name: row["figures"]["steps"]["mean"] for name, row in rows.items()}
    for name, num in steps.items():
        kept = json.loads((tmp_path / f"runs/{name}/speed/ablation.json").read_text())
        assert num == kept["steps"] == max(1, round(kept["images_per_second"] * 0.003 * 60 / 8))
    config = (tmp_path / "runs/mae/seed-0/config.yaml").read_text()
    assert "decoder_width: 32" in config
    benchmark.main([*arguments, "--seeds=0", "--against=mae"])  # nothing is run again
    printed = capsys.readouterr().out
    assert "/seed-0\n" not in printed
    assert "finetune_vs_mae" in printed


@pytest.mark.usefixtures("forked")
def test_the_benchmark_learn_leaves_with_status_1_where_a_row_failed(
    tmp_path: Path, content: Content, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"bad": {"set": {"encoder.num_heads": 3}}, "ours": {"untrained": True}}
    plan = write(tmp_path / "mine.yaml", content | {"rows": rows})
    arguments = ["learn", f"--plan={plan}", "--seeds=0", f"--output={tmp_path / 'runs'}"]
    with pytest.raises(SystemExit) as left:
        benchmark.main([*arguments, f"--json={tmp_path / 'learn.json'}"])
    assert left.value.code == 1
    assert "bad/seed-0 failed: status 2" in capsys.readouterr().err
    assert json.loads((tmp_path / "learn.json").read_text())["num_failed"] == 1


def test_an_accuracy_is_of_the_block_where_its_mean_is_highest() -> None:
    figures = {
        "fewshot/25shot@2": {"mean": 0.9, "values": [0.9, 0.9]},
        "fewshot/400shot@2": {"mean": 0.4, "values": [0.1, 0.7]},
        "fewshot/400shot@4": {"mean": 0.5, "values": [0.4, 0.6]},
        "probe/knn_top1@2": {"mean": 0.8, "values": [0.8, 0.8]},
        "probe/linear_top1@2": {"mean": 0.3, "values": [0.3, 0.3]},
        "finetune/accuracy": {"mean": 0.6, "values": [0.5, 0.7]},
    }
    assert learning.best_place(figures, "fewshot") == [0.4, 0.6]
    assert learning.best_place(figures, "probe") == [0.3, 0.3]
    assert learning.best_place(figures, "finetune") == [0.5, 0.7]
    assert learning.best_place({}, "fewshot") == []


def test_shares_are_in_percent_and_ranks_are_not() -> None:
    figure = {"mean": 0.125, "deviation": 0.01}
    for name in ("probe/knn", "probe/dead_patches", "val/accuracy_mask"):
        assert _cell(name, figure) == "12.50 ± 1.00 %"
    for name in ("probe/rankme", "probe/alpha_patches", "val/loss"):
        assert _cell(name, figure) == "0.1250 ± 0.0100"


def test_rows_that_the_benchmark_learn_does_not_know(learn: Path) -> None:
    with pytest.raises(UserError, match="--against=beit: beit is no row; known: ours, mae, mpp"):
        benchmark.main(["learn", f"--plan={learn}", "--against=beit"])
    with pytest.raises(UserError, match=r"budget.minutes=0 must be a number above 0"):
        benchmark.main(["learn", f"--plan={learn}", "--minutes=0"])
