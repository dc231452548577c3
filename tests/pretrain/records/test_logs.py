"""Records of a run: in order, cut back when it resumes, torn lines left out."""

import json
import logging
from pathlib import Path

import pytest

from pretrain.records.logs import JsonLines, RunLogs, cut_back, read_records
from pretrain.training.progress import Progress


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lines = JsonLines(tmp_path / "new" / "metrics.jsonl")
    for step in (1, 2, 4, 8):
        lines.write({"step": step, "key": "é/0"})
    lines.close()
    return tmp_path / "new" / "metrics.jsonl"


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_records(path)]


def test_records_are_read_back_and_appended(path: Path) -> None:
    lines = JsonLines(path)
    lines.write({"step": 9})
    assert steps(path) == [1, 2, 4, 8, 9]  # also before it is closed
    lines.close()
    assert read_records(path)[0] == {"step": 1, "key": "é/0"}


@pytest.mark.parametrize(
    ("step", "left"), [(0, []), (1, [1]), (3, [1, 2]), (4, [1, 2, 4]), (100, [1, 2, 4, 8])]
)
def test_cut_back_drops_later_steps(path: Path, step: int, left: list[int]) -> None:
    cut_back(path, step)
    assert steps(path) == left


@pytest.mark.parametrize("torn", ['{"step": 9', '{"step": 9}', '{"step": 3, "key": "\xc3'])
def test_a_torn_last_line_is_left_out_and_cut_off(path: Path, torn: str) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode("latin-1"))
    if torn.isascii():
        assert steps(path) == [1, 2, 4, 8]
    cut_back(path, 100)
    assert path.read_bytes() == whole


def test_cut_back_of_nothing(tmp_path: Path) -> None:
    cut_back(tmp_path / "missing.jsonl", 3)
    assert not (tmp_path / "missing.jsonl").exists()
    (tmp_path / "empty.jsonl").write_text("")
    cut_back(tmp_path / "empty.jsonl", 3)
    assert read_records(tmp_path / "empty.jsonl") == []


def test_records_of_one_step_stay_together(tmp_path: Path) -> None:
    """The ledger may hold several bad samples of one step."""
    ledger = tmp_path / "bad_samples.jsonl"
    ledger.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 2, 3, 3)))
    cut_back(ledger, 2)
    assert steps(ledger) == [1, 2, 2]


def test_each_rank_has_its_own_trace_and_the_first_the_rest(tmp_path: Path) -> None:
    for rank in (0, 1):
        with RunLogs(tmp_path, rank, has_trace=True) as logs:
            logs.sync()
    with RunLogs(tmp_path / "other", 0, has_trace=False):
        pass
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.jsonl"))
    assert names == [
        "bad_samples.jsonl",
        "metrics.jsonl",
        "other/bad_samples.jsonl",
        "other/metrics.jsonl",
        "trace/rank-0.jsonl",
        "trace/rank-1.jsonl",
    ]


def test_progress_is_a_line_a_record_without_a_terminal(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    record = {"step": 20, "train/loss": 1.23456, "val/loss": 2.0, "speed/images_per_second": 99.0}
    for is_shown in (True, False):
        with Progress(0, 40, is_shown) as progress:
            progress.show(record)
            progress.advance()
    assert caplog.messages == ["step 20/40  loss 1.235  val loss 2  images/s 99"]
    assert capsys.readouterr().err == ""
