"""Pairs: what blocks find is what one matrix in float64 holds, in a bounded memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.settings import UserError
from pretrain.evaluation.search import pairs
from pretrain.evaluation.search.pairs import Pairs, count_search_bytes, find_groups, find_pairs
from pretrain.machine.held_memory import held_memory
from tests.launching import SERVER

CPU = torch.device("cpu")


def make_features(number: int, width: int = 12) -> np.ndarray:
    """Draw vectors of which a third are nearly, and some exactly, another."""
    generator = np.random.default_rng(number)
    values = generator.normal(size=(number, width))
    copies = generator.integers(0, number, number // 3)
    noise = generator.normal(size=(len(copies), width)) * generator.choice([0, 0.05, 0.3])
    values[: len(copies)] = values[copies] * generator.uniform(0.5, 2, (len(copies), 1)) + noise
    return values.astype(np.float32)


def test_equal_vectors_are_found_by_a_threshold_of_one() -> None:
    features = make_features(20)
    features[15] = features[2]
    found = find_pairs(features, CPU, threshold=1)
    assert (1.0, 2, 15) in zip(found.similarity, found.first, found.second, strict=True)


def test_a_folder_of_nothing_but_copies_is_one_group() -> None:
    for number in (2, 40):
        features = np.repeat(make_features(1), number, axis=0)
        assert len(find_pairs(features, CPU, threshold=1)) == number * (number - 1) / 2
    blank = np.zeros((3, 4), np.float32)  # like nothing
    assert len(find_pairs(blank, CPU, threshold=0.5)) == 0


def plain(features: np.ndarray) -> list[tuple[float, int, int]]:
    """Return all pairs by one matrix."""
    values = features.astype(np.float64)
    values -= values.sum(0) / (len(values) + 16)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    matrix = values @ values.T
    first, second = np.triu_indices(len(values), 1)
    similarity = (-matrix[first, second]).round(12)
    return sorted(zip(similarity.tolist(), first.tolist(), second.tolist(), strict=True))


def listed(found: Pairs) -> list[tuple[float, int, int]]:
    columns = (-found.similarity).tolist(), found.first.tolist(), found.second.tolist()
    return list(zip(*columns, strict=True))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr(pairs, "_BLOCK", 7)
    monkeypatch.setattr(pairs, "_CHUNK", 5)


@settings(max_examples=25)
@given(st.integers(2, 40), st.floats(-1, 1))
def test_blocks_find_what_one_matrix_holds(number: int, threshold: float) -> None:
    features = make_features(number)
    expected = plain(features)
    found = find_pairs(features, CPU, threshold=threshold)
    assert sorted(listed(found)) == [pair for pair in expected if pair[0] <= -threshold]
    assert list(found.similarity) == sorted(found.similarity, reverse=True)


@settings(max_examples=25)
@given(st.integers(2, 40), st.integers(1, 60))
def test_the_most_alike_are_those_of_one_matrix(number: int, top: int) -> None:
    features = make_features(number)
    expected = plain(features)[:top]
    found = listed(find_pairs(features, CPU, top=top))
    assert [pair[0] for pair in found] == [pair[0] for pair in expected]
    assert len(set(found)) == len(expected)


def test_what_is_no_number_and_too_many_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    features = make_features(20)
    monkeypatch.setattr(pairs, "MOST_PAIRS", 3)
    with pytest.raises(UserError, match=r"--threshold=-1: over 3 pairs are as alike; raise it, or"):
        find_pairs(features, CPU, threshold=-1)
    features[3, 1] = np.nan
    with pytest.raises(UserError, match="the features hold what is no finite number; write them"):
        find_pairs(features, CPU, top=3)


def test_chains_are_groups() -> None:
    first, second = np.array([[4, 9], [0, 4], [2, 3], [8, 9], [2, 3]]).T
    found = find_groups(Pairs(np.ones(5), first, second))
    assert found == {0: 1, 2: 2, 3: 2, 4: 1, 8: 1, 9: 1}


# ---------------------------------------------------------------- memory

_NUM, _WIDTH = 9_000, 16


def search_many(path: str, out: str) -> None:
    """Search, and write how many bytes that took at its peak, and how many it may take."""
    features = np.load(path, mmap_mode="r")
    find_pairs(features[:100], CPU, threshold=0.99)  # what torch takes at its first product
    before = held_memory().now
    find_pairs(features, CPU, threshold=0.999)
    taken = held_memory().peak - before
    Path(out).write_text(f"{taken} {count_search_bytes(_NUM, _WIDTH, CPU)}")


def test_the_memory_does_not_grow_with_the_square(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", make_features(_NUM, _WIDTH))
    arguments = (str(tmp_path / "f.npy"), str(tmp_path / "bytes"))
    process = SERVER.Process(target=search_many, args=arguments)
    process.start()
    process.join()
    taken, allowed = map(int, (tmp_path / "bytes").read_text().split())
    assert taken < allowed < 4 * _NUM**2 / 2  # of one matrix
