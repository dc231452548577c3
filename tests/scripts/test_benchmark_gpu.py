"""scripts/benchmark.py gpu in its short form, which needs no GPU."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.settings import UserError
from scripts._benchmark.compare import compare
from scripts._benchmark.gpu import forms, measure, rows
from scripts._benchmark.gpu.budget import Budget
from scripts._benchmark.gpu.found import Found
from scripts._benchmark.gpu.markdown import markdown
from scripts._benchmark.gpu.rows import Cost, config_of, steps_of
from scripts._benchmark.installed import TRANSFORMERS
from scripts._benchmark.page import make_page
from scripts.benchmark import main
from tests.launching import run_forked

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/benchmark.py"
OURS = {"paper tiny", "words tiny"}
RUNS = {"paper tiny run"}
SMALL = {"words small run", "words small run, data.resident=true"}
MAE = "transformers_mae tiny"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run it whole; return the folder of its record, and what was printed."""
    pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    folder = tmp_path_factory.mktemp("records")
    limit = "--minutes=30"  # a machine that is busy is no reason to fail
    command = [sys.executable, str(SCRIPT), "gpu", "--short", limit, f"--json={folder}/gpu.json"]
    done = run_forked(command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


def record_of(measured: tuple[Path, str]) -> dict[str, Any]:
    return json.loads((measured[0] / "gpu.json").read_text())


def test_all_rows_are_measured(measured: tuple[Path, str]) -> None:
    record = record_of(measured)
    others = {"timm tiny", *([MAE] if TRANSFORMERS.is_installed else [])}
    runs = {name for run in RUNS | SMALL for name in (run, f"{run}, its step")}
    speeds = record["images_per_second"]
    alone = {"loader, 1 process", "attention by flash, 17 tokens", "attention by flash, 65 tokens"}
    assert set(speeds) == OURS | others | runs | alone
    assert set(record["missing"]) == {MAE} - others
    assert record["num_failed"] == 0
    assert set(record["mfu"]) == OURS | others | runs
    assert set(record["peak_memory_mib"]) == set(record["gflop_per_image"]) == OURS | others
    assert set(record["counted_memory_mib"]) == OURS
    for unit in record["units"]:
        assert all(values["min"] > 0 for values in record[unit].values())
    gflop, product = record["gflop_per_image"], record["matrix_gflop_per_second"]["tiny"]
    for row in OURS | others:
        share = speeds[row]["median"] * gflop[row] / product["median"]
        assert record["mfu"][row]["median"] == pytest.approx(share)
    assert {"paper_vs_timm tiny", "words_vs_timm tiny"} < set(record["spread"])
    assert {f"run_vs_step {run}" for run in RUNS | SMALL} < set(record["spread"])
    assert record["settings"]["short"]


def test_it_prints_what_the_page_of_results_shows(measured: tuple[Path, str]) -> None:
    folder, printed = measured
    lines = printed.splitlines()
    assert "the short form, which measures nothing" in lines[0]
    assert sum(line.startswith("| paper tiny |") for line in lines) == 1
    page = make_page(folder)
    assert printed.strip() in page
    assert "scripts/benchmark.py gpu --short" in page
    assert compare(folder, [folder])[1] == 0


def test_what_has_no_answer_in_its_time_is_ended_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    arguments = ["--short", "--minutes=0.17", "--parts=tiny,loader", f"--json={tmp_path}/gpu.json"]
    with pytest.raises(SystemExit) as left:
        main(["gpu", *arguments])
    assert left.value.code == 1
    assert time.monotonic() - begin < 120  # 10 s on an idle machine
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert not record["images_per_second"]
    assert {*OURS, "timm tiny", "loader, 1 process"} <= set(record["missing"])
    assert record["missing"]["timm tiny"] == "timm tiny had no answer in its time, and was ended"
    assert "- timm tiny: timm tiny had no answer" in capsys.readouterr().out


def test_what_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    form = forms.short(tmp_path)
    broken = replace(form.subjects["tiny"], encoder="vit_of_nobody")
    form = replace(form, subjects={"tiny": broken})
    found = Found()
    measure._measure_steps(form, "tiny", found, time.monotonic() + 60)
    record = found.record({})
    assert record["num_failed"] == len(record["missing"])
    assert "vit_of_nobody" in record["missing"]["paper tiny"]
    assert record["images_per_second"] == {}


def test_a_part_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="--parts=B/61: 'B/61' is none of tiny, run, small, attention, loader"
    ):
        main(["gpu", "--short", "--parts=B/61"])


def test_what_a_part_leaves_goes_to_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(100, [2, 1, 1])
    assert budget.next_end() == 150
    now[0] = 120
    assert budget.next_end() == 160
    now[0] = 190
    assert budget.next_end() == 200
    late = Budget(10, [1, 1])
    now[0] = 300
    assert late.next_end() == 300


def test_the_table_has_the_columns_that_were_measured_by_hand() -> None:
    found = Found()
    for row, speeds in {"paper B/16": [3000.0, 3202.0, 3212.0], "timm B/16": [2500.0] * 3}.items():
        found.speeds.by_variant[row] = speeds
    costs = {
        "paper B/16": Cost(101.7e9, 13 << 30, 16 << 30),
        "timm B/16": Cost(105.1e9, 12 << 30, None),
    }
    found.add_costs("B/16", costs, [683e12] * 3)
    found.leave_out(MAE, "needs transformers")
    subjects = {"B/16": {"batch_size": 192}}
    record = found.record({"short": False, "subjects": subjects, "workers": 14}) | {"seconds": 9.0}
    lines = markdown(record).splitlines()
    assert "| paper B/16 | 3,202 (3,000 to 3,212) | 102 | 326 | 0.48 | 13.0 | 16.0 |" in lines
    assert "| timm B/16 | 2,500 (2,500 to 2,500) | 105 | 263 | 0.38 | 12.0 |  |" in lines
    assert "| paper_vs_timm B/16 | 1.281 (1.200 to 1.285) |" in lines
    assert lines[-1] == f"- {MAE}: needs transformers"


def test_the_whole_form_is_what_the_goals_are_set_for(tmp_path: Path) -> None:
    form = forms.whole(tmp_path)
    assert {
        name: (s.side, s.precision, s.compile) for name, s in form.subjects.items()
    } == dict.fromkeys(("B/16", "S/16", "L/16"), (224, "bf16", True))
    widths = {name: s.sizes["hidden_size"] for name, s in form.subjects.items()}
    assert widths == {"B/16": 768, "S/16": 384, "L/16": 1024}
    assert set(form.objectives) == set(rows.OURS)
    small = form.small
    assert (small.side, small.sizes["hidden_size"], small.sizes["patch_size"]) == (32, 192, 4)
    words = form.subjects["B/16"].words_config()
    assert (words.target.kind, words.encoder.sees_masked) == ("words", False)
    assert (words.light_decoder is not None, words.decoder.attention) == (True, "cross")
    subject = form.subjects["B/16"]
    ours = ["paper", "words", "paper_graphs", "words_graphs"]
    ours += ["paper_bf16_residual", "words_bf16_residual"]
    assert steps_of(subject) == [*ours, "timm", "transformers_mae"]
    runs = [config_of(name, subject).run for name in ours]
    assert [run.cuda_graphs for run in runs] == [False, False, True, True, False, False]
    assert [run.bf16_residual for run in runs] == [False, False, False, False, True, True]
    assert steps_of(forms.short(tmp_path).small)[:3] == ["paper", "words", "timm"]
    assert form.workers >= 1
    assert form.loaders[-1] == form.workers
