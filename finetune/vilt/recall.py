"""How far up the right answers of queries stand among all candidates: ranks, recall, and chance."""

from typing import NamedTuple

import numpy as np

AT = (1, 5, 10)


class Search(NamedTuple):
    """Queries, and the candidates that each ranks.

    Equal queries are one row, and equal candidates one column.

    Attributes:
        scores: float32 (Q, C).
        is_right: bool (Q, C), at least once in each row.
        num_queries: int64 (Q,), how many each row stands for.
        num_candidates: int64 (C,), how many each column stands for.
    """

    scores: np.ndarray
    is_right: np.ndarray
    num_queries: np.ndarray
    num_candidates: np.ndarray

    def ranks(self) -> np.ndarray:
        """Return the rank of the best right candidate, from 1: int64 (Q,).

        A wrong one of an equal score stands before it, so that a model that tells nothing apart
        gets nothing.
        """
        best = np.where(self.is_right, self.scores, -np.inf).max(axis=1, keepdims=True)
        is_before = ~self.is_right & (self.scores >= best)
        return 1 + is_before @ self.num_candidates

    def figures(self) -> dict[str, float]:
        """Return `recall@K`, what of the queries have a right candidate among the first K.

        Beside them `chance@K`, the expectation of a random order, and `median_rank`.
        """
        ranks = self.ranks()
        figures: dict[str, float] = {}
        for at in AT:
            figures[f"recall@{at}"] = self._mean(ranks <= at)
            figures[f"chance@{at}"] = self._mean(self._chance(at))
        every = np.repeat(ranks, self.num_queries)
        return {**figures, "median_rank": float(np.median(every))}

    def first(self, number: int) -> np.ndarray:
        """Return the columns of the highest scores, best first: int64 (Q, number)."""
        return np.argsort(-self.scores, axis=1, kind="stable")[:, :number]

    def _mean(self, values: np.ndarray) -> float:
        return float(np.average(values, weights=self.num_queries))

    def _chance(self, at: int) -> np.ndarray:
        """Return the chance that one of the right ones is among `at` drawn ones: float (Q,)."""
        total = int(self.num_candidates.sum())
        num_wrong = total - self.is_right @ self.num_candidates
        drawn = np.arange(min(at, total))
        return 1 - np.prod(np.maximum(num_wrong[:, None] - drawn, 0) / (total - drawn), axis=1)
