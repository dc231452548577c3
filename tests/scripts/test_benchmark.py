"""scripts/benchmark.py, as a user starts it, in its shortest form; and how its ratios are made."""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from data.settings import UserError
from pretrain.machine.apart import Apart, in_fresh_process
from scripts._benchmark.options import VariantOptions, add_options, read_options
from scripts._benchmark.records import Rounds, add_values, make_record, spread, table
from tests.launching import run_forked

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"
SHORT = ["--rounds=1", "--seconds=0.01", "--batch-size=4", "--image-size=32"]


def command_of(*arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPT), *arguments]


def measured(path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run a benchmark; return its record and what it printed."""
    done = run_forked(command_of(*arguments, f"--json={path}"))
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


def test_an_option_that_is_not_given_has_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, VariantOptions)
    namespace = parser.parse_args(["a.yaml", "--variant=run.compile=true"])
    expected = VariantOptions("a.yaml", ["run.compile=true"])
    assert read_options(namespace, VariantOptions) == expected
    assert expected.threads == 0


@pytest.mark.faults
def test_variants_measures_a_step_with_other_keys(tmp_path: Path) -> None:
    config = SCRIPT.parents[1] / "configs/pretrain/cifar10.yaml"
    keys = ["encoder.sees_masked=false corruption.ratio=0.75", "encoder.position=relative"]
    variants = [f"--variant={text}" for text in keys]
    short = ["--rounds=1", "--seconds=0.01", "--batch-size=2", "--threads=1"]
    arguments = ["variants", str(config), *variants, *short]
    record, printed = measured(tmp_path / "variants.json", *arguments)
    assert_complete(record, {"as configured", *keys}, {*keys})
    assert all(text in printed for text in keys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--precision=fp8"], "fp8"),
        (["variants", "none.yaml", "--variant=a=1"], "none.yaml: no such configuration file"),
        (["loader", "--rounds=0"], "--rounds: 0 is not a whole number from 1 on"),
        (["loader", "--image-size=1.5"], "--image-size: 1.5 is not a whole number from 1 on"),
        (["run", "--workers=-1"], "--workers: -1 is not a whole number from 0 on"),
        (["step", "--seconds=0"], "--seconds: 0 is not a number above 0"),
        (["step", "--json=none/step.json"], "--json=none/step.json: there is no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = run_forked(command_of(*arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------- rounds


def test_ratios_are_made_round_by_round() -> None:
    speeds = Rounds()
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


def test_values_in_another_unit_join_a_record() -> None:
    seconds, read = Rounds("seconds"), Rounds("mib_read")
    for values, ours in [(seconds, 2.0), (read, 30.0)]:
        values.add("ours", ours)
        values.add("base", 10.0)
    record = make_record("test", {}, seconds, {"time": ("ours", "base")})
    add_values(record, read, {"bytes": ("ours", "base")})
    assert record["ratios"] == {"time": 0.2, "bytes": 3.0}
    assert record["mib_read"]["ours"]["median"] == 30.0
    assert "mib read" in table(record)


def test_a_fresh_process_that_dies_is_no_answer() -> None:
    assert in_fresh_process(os.path.basename, "a/b") == "b"
    with pytest.raises(RuntimeError, match="_exit ended without an answer"):
        in_fresh_process(os._exit, 3)


def test_each_thing_has_a_process_and_stays_in_it() -> None:
    with Apart("one", list, "ab") as one, Apart("other", list, "c") as other:
        one.call(list.append, "d")
        assert one.call(" ".join) == "a b d"
        assert other.call(len) == 1
        assert len({os.getpid(), one.call(_where), other.call(_where)}) == 3


def test_a_mistake_in_a_process_is_told_as_one_of_the_user() -> None:
    with Apart("one", _refuse, "a key") as made, pytest.raises(UserError, match="a key is wrong"):
        made.wait_until_made()
    with Apart("one", str, "a value") as made, pytest.raises(UserError, match="a value is wrong"):
        made.call(_refuse)


def test_a_thing_that_dies_is_named_and_the_others_go_on() -> None:
    with Apart("one", int, 3) as one, Apart("other", int, 4) as other:
        with pytest.raises(RuntimeError, match="one ended without an answer"):
            one.call(os._exit)
        with pytest.raises(RuntimeError, match="one ended without an answer"):
            one.call(abs)
        assert other.call(abs) == 4


def _where(_: object) -> int:
    return os.getpid()


def _refuse(what: str) -> None:
    raise UserError(f"{what} is wrong")


def test_spread_has_the_lowest_and_the_highest() -> None:
    assert spread([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "rounds": [3.0, 1.0, 2.0],
    }
