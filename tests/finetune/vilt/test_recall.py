"""Ranks, recall and chance, held to slow loops over all single queries and candidates."""

import itertools

import numpy as np
import pytest

from finetune.vilt.recall import AT, Search


def draw(seed: int) -> Search:
    """Draw few distinct scores, so that many are equal, and unequal numbers."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, (5, 7)).astype(np.float32)
    is_right = generator.random((5, 7)) < 0.3
    is_right[np.arange(5), generator.integers(0, 7, 5)] = True
    return Search(scores, is_right, generator.integers(1, 4, 5), generator.integers(1, 3, 7))


def spelt_out(search: Search) -> list[tuple[list[float], list[bool]]]:
    """Return each single query's scores of all single candidates, and which are right."""
    queries = np.repeat(np.arange(len(search.num_queries)), search.num_queries)
    candidates = np.repeat(np.arange(len(search.num_candidates)), search.num_candidates)
    return [
        (search.scores[q, candidates].tolist(), search.is_right[q, candidates].tolist())
        for q in queries
    ]


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_a_slow_loop(seed: int) -> None:
    search = draw(seed)
    ranks: list[int] = []
    for scores, is_right in spelt_out(search):
        # wrong ones first among equal scores
        order = sorted(range(len(scores)), key=lambda c: (-scores[c], is_right[c]))
        ranks.append(1 + next(place for place, c in enumerate(order) if is_right[c]))
    figures = search.figures()
    assert np.repeat(search.ranks(), search.num_queries).tolist() == ranks
    assert figures["median_rank"] == np.median(ranks)
    for at in AT:
        assert figures[f"recall@{at}"] == pytest.approx(np.mean([rank <= at for rank in ranks]))


def test_chance_is_that_of_all_orders() -> None:
    search = Search(
        np.zeros((2, 3), np.float32),
        np.array([[True, False, False], [True, False, True]]),
        np.array([2, 1]),
        np.array([2, 3, 1]),
    )
    figures, hits = search.figures(), dict.fromkeys(AT, 0.0)
    for _, is_right in spelt_out(search):
        orders = list(itertools.permutations(is_right))
        for at in AT:
            hits[at] += sum(any(order[:at]) for order in orders) / len(orders) / 3
    for at in AT:
        assert figures[f"chance@{at}"] == pytest.approx(hits[at])
        assert figures[f"recall@{at}"] == (0 if at < 3 else 1 if at > 5 else figures["recall@5"])
