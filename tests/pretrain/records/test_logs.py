"""Records of a run: in order, cut back when it resumes, torn lines left out."""

import errno
import io
import json
import logging
import re
import sys
from pathlib import Path

import pytest

from pretrain.records.logs import JsonLines, RunLogs, cut_back, read_records
from pretrain.records.words import standing
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
        "other/starts.jsonl",
        "starts.jsonl",
        "trace/rank-0.jsonl",
        "trace/rank-1.jsonl",
    ]


def test_progress_is_a_line_a_record_without_a_terminal(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    record = {"step": 8, "train/loss": 1.23456, "train/class_entropy": 2.5, "val/loss": 2.0}
    record |= {"speed/images_per_second": 99.0, "speed/data_wait_ratio": 0.031}
    for is_shown in (True, False):
        with Progress(0, 40, is_shown) as progress:
            progress.show(record)
            progress.show(record | {"step": 40})
            progress.advance()
    lines = [re.sub(r" +", " ", message) for message in caplog.messages]
    first, baseline, last = lines
    assert first == (
        "step 8/40 loss 1.235 (baseline 2.500) 99 images/s waiting for data 3 % 0 s left val loss "
        "2.000"
    )
    assert baseline == "baseline: the loss of a model that knows only how frequent each class is"
    assert "0 s in all" in last
    columns = [message.index("images/s") for message in caplog.messages if "step" in message]
    assert columns[0] == columns[1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({"loss": 0.0123, "loss_mean": 0.02, "loss_neighbour": 0.015}, "0.0123 (baseline 0.0150)"),
        ({"loss": 0.0123, "loss_mean": 0.01, "loss_neighbour": 0.015}, "0.0123 (baseline 0.0100)"),
        ({"loss": 2.1, "accuracy": 0.5}, "2.100"),
    ],
)
def test_a_loss_stands_beside_the_best_that_needs_no_learning(
    figures: dict[str, float], text: str
) -> None:
    record = {f"val/{name}": value for name, value in figures.items()}
    assert standing(record, "val")[0] == f"val loss {text}"
    assert standing(record, "train") == []


class _Gone(io.StringIO):
    """A terminal whose connection was closed."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_a_terminal_that_has_gone_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"step": 1, "train/loss": 1.0}
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(0, 3, is_shown=True)
    progress._bar.fp = _Gone()  # pyright: ignore[reportAttributeAccessIssue]
    progress._bar.mininterval = 0
    with progress:
        progress.show(record)
        progress.advance()
        progress.advance()


def test_a_figure_is_said_beside_what_needs_no_image() -> None:
    record = {"accuracy_matching": 0.78, "accuracy_matching_majority": 0.52}
    record |= {"accuracy_words": 0.745, "accuracy_words_majority": 0.144}
    train = {f"train/{name}": value for name, value in record.items()}
    assert standing(train) == [
        "matching 78.0 % (chance 52.0 %)",
        "words 74.5 % (most frequent 14.4 %)",
    ]
    val = {f"val/{name}": value for name, value in record.items()}
    val["val/accuracy_words_blank"] = 0.688
    assert standing(val, "val")[1] == "val words 74.5 % (without the image 68.8 %)"
