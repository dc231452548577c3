"""scripts/benchmark.py, as a user starts it, in its shortest form; and how its ratios are made."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.speed.rounds import Speeds, images_per_second, make_record, spread, table

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmark.py"
SHORT = ["--rounds=1", "--seconds=0.01", "--batch-size=4", "--image-size=32"]
TINY = ["--encoder=vit_tiny_patch16_224", "--threads=1"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


def measured(path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run a benchmark; return its record and what it printed."""
    done = run(*arguments, *SHORT, f"--json={path}")
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


def assert_complete(record: dict[str, Any], variants: set[str], ratios: set[str]) -> None:
    assert set(record["images_per_second"]) == variants
    assert set(record["ratios"]) == set(record["spread"]) == ratios
    for values in [*record["images_per_second"].values(), *record["spread"].values()]:
        assert 0 < values["min"] <= values["median"] <= values["max"] < math.inf
        assert len(values["rounds"]) == 1
    assert record["machine"]["cores"] > 0
    assert {"cpu", "threads", "torch", "timm"} <= record["machine"].keys()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_measures_the_step_and_the_run(shards: Path, tmp_path: Path, precision: str) -> None:
    shard = f"{shards}/train-1.tar"
    arguments = ["step", shard, *TINY, f"--precision={precision}"]
    record, printed = measured(tmp_path / "step.json", *arguments)
    assert_complete(record, {"timm", "step", "run"}, {"step_vs_timm", "run_vs_step"})
    assert record["settings"]["precision"] == precision
    assert record["settings"]["shards"] == [shard]
    assert "step_vs_timm" in printed


def test_loader_measures_speed_and_memory_without_shards(tmp_path: Path) -> None:
    record, printed = measured(tmp_path / "loader.json", "loader", "--epochs=2")
    assert_complete(record, {"loader", "pil"}, {"loader_vs_pil"})
    memory = record["memory_mib"]
    assert memory["epochs"] == [memory["first"], memory["last"]]
    assert memory["first"] > 10
    assert "worker's memory, 2 epochs" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--precision=fp8"], "fp8"),
        (["loader", "--rounds=0"], "--rounds=0 must be above 0"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------- rounds


def test_ratios_are_made_round_by_round() -> None:
    speeds = Speeds()
    for ours, base in [(2.0, 1.0), (30.0, 10.0), (4.0, 4.0)]:
        speeds.add("ours", ours)
        speeds.add("base", base)
    record = make_record("test", {"key": 1}, speeds, {"ours_vs_base": ("ours", "base")})
    assert record["ratios"] == {"ours_vs_base": 2.0}  # the medians of the speeds have 4/4
    assert record["spread"]["ours_vs_base"]["rounds"] == [2.0, 3.0, 1.0]
    assert record["settings"] == {"key": 1}
    assert any(
        line.split() == ["ours_vs_base", "2.000", "1.000", "3.000"]
        for line in table(record).splitlines()
    )


def test_spread_has_the_lowest_and_the_highest() -> None:
    assert spread([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "rounds": [3.0, 1.0, 2.0],
    }


def test_work_is_done_at_least_once() -> None:
    calls: list[int] = []
    assert images_per_second(lambda: calls.append(1), num_images=5, seconds=0.0) > 0
    assert calls == [1]
