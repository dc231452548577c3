"""Runs whose images stay in memory: those of a loader to the bit, and one goes on as the other."""

import logging
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

import pretrain.run
from data.settings import UserError
from pretrain.inputs import is_worth_keeping
from tests.launching import run_ranks
from tests.pretrain.test_end_to_end import assert_equal, batches, cut_to, records

KEPT = "data.resident=true"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """Run by the loader, which no test may change."""
    run = tmp_path_factory.mktemp("loaded") / "run"
    pretrain.run.main([*tiny, f"run.dir={run}"])
    return run


def test_a_run_is_that_of_the_loader(tmp_path: Path, tiny: list[str], loaded: Path) -> None:
    pretrain.run.main([*tiny, KEPT, f"run.dir={tmp_path}/run"])
    assert_equal(tmp_path / "run", loaded)


@pytest.mark.parametrize("ways", [("true", "false"), ("false", "true")])
def test_a_run_goes_on_the_other_way(
    tmp_path: Path, tiny: list[str], loaded: Path, ways: tuple[str, str]
) -> None:
    first, then = (f"data.resident={way}" for way in ways)
    pretrain.run.main([*tiny, first, f"run.dir={tmp_path}/run"])
    copy = cut_to(21, tmp_path / "run", tmp_path / "copy")  # in the midst of an epoch
    shutil.rmtree(tmp_path / "run")
    pretrain.run.main([*tiny, *copy, then, "run.resume=must"])
    assert_equal(tmp_path / "copy", loaded)


def test_two_ranks_take_the_same_batches(tmp_path: Path, tiny: list[str], loaded: Path) -> None:
    more = ["run.micro_batch_size=2", f"run.dir={tmp_path}/run"]
    output = run_ranks([*tiny, KEPT, *more], 2, tmp_path)
    assert output.count("decoded 36 images once, 0.1 MB on cpu, in ") == 1
    assert batches(tmp_path / "run") == batches(loaded)
    last, expected = (records(run)[-1]["val/loss"] for run in (tmp_path / "run", loaded))
    assert last == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------- auto


GIB = 1 << 30


@pytest.mark.parametrize(
    ("num_bytes", "num_images", "free", "is_kept"),
    [
        (153_600_000, 50_000, 70 * GIB, True),  # CIFAR-10
        (153_600_000, 50_000, GIB // 2, False),  # over a quarter of it
        (153_600_000, 50_000, None, False),  # nobody can tell
        (562_500_000, 1000, 70 * GIB, False),  # photographs of 500 x 375
        (6 * GIB, 500_000, 70 * GIB, False),  # decoding takes too long
    ],
)
def test_auto_keeps_small_images_that_fit(
    num_bytes: int, num_images: int, free: int | None, is_kept: bool
) -> None:
    assert is_worth_keeping(num_bytes, num_images, free) == is_kept


def test_auto_leaves_images_on_disk_where_a_cpu_trains(
    tmp_path: Path, tiny: list[str], loaded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pretrain"):
        pretrain.run.main([*tiny, "data.resident=auto", f"run.dir={tmp_path}/run"])
    assert "decoded" not in caplog.text
    assert_equal(tmp_path / "run", loaded)


def test_too_little_memory_is_said_before_anything_is_decoded(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.inputs.free_for_rank", Mock(return_value=40_000))
    with pytest.raises(
        UserError, match=r"data\.resident=true: the decoded images take about 0\.1 MB"
    ):
        pretrain.run.main([*tiny, KEPT, f"run.dir={tmp_path}/run"])
    assert not (tmp_path / "run").exists()


def test_a_stream_cannot_be_kept(tmp_path: Path, tiny: list[str]) -> None:
    with pytest.raises(UserError, match=r"^data\.resident=true needs data\.read=random: a stream"):
        pretrain.run.main([*tiny, KEPT, "data.read=sequential", f"run.dir={tmp_path}/run"])


def test_a_part_of_the_images_is_kept(tmp_path: Path, tiny: list[str]) -> None:
    """Of a part, of which some are set aside, nothing else is decoded."""
    part = ["data.fraction=0.8", "data.val_ratio=0.2", "data.val_shards=null"]
    part += ["data.max_bad_ratio=0.1"]
    for way in ("true", "false"):
        pretrain.run.main([*tiny, *part, f"data.resident={way}", f"run.dir={tmp_path}/{way}"])
    assert_equal(tmp_path / "true", tmp_path / "false")


def test_words_are_learnt_from_the_same_images(tmp_path: Path, tiny: list[str]) -> None:
    words = ["encoder.sees_masked=false", "target.kind=words", "target.num_words=16"]
    for way in ("true", "false"):
        arguments = [*tiny, *words, f"data.resident={way}", f"run.dir={tmp_path}/{way}"]
        pretrain.run.main(arguments)
    assert_equal(tmp_path / "true", tmp_path / "false")
