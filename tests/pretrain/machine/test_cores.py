"""Loader processes by the cores: of the affinity, of a container's limit."""

import os
from pathlib import Path

import pytest

from data.settings import UserError
from pretrain.machine import cores
from pretrain.machine.cores import loader_processes, usable_cores


@pytest.mark.parametrize(
    ("number", "device", "ranks", "workers"),
    [
        (1, "cpu", 1, 0),
        (2, "cpu", 1, 1),
        (2, "cpu", 2, 0),
        (64, "cpu", 1, 1),
        (1, "cuda", 1, 0),
        (4, "cuda", 1, 3),
        (16, "cuda", 8, 1),
        (96, "cuda", 8, 8),
        (2, "cuda", 8, 0),
        (8, "mps", 1, 7),
    ],
)
def test_auto_follows_the_cores(
    monkeypatch: pytest.MonkeyPatch, number: int, device: str, ranks: int, workers: int
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: number)
    assert loader_processes("auto", device, ranks) == workers


def test_a_number_is_taken_and_the_absurd_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    assert [loader_processes(number, "cpu", 1) for number in (0, 3, 16)] == [0, 3, 16]
    text = r"data\.workers=9999 a rank is more than 16, and there are 2 cores here; give auto"
    with pytest.raises(UserError, match=text):
        loader_processes(9999, "cpu", 1)


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)  # pyright: ignore
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    assert usable_cores() == 8
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores() == 8
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert usable_cores() == 3
