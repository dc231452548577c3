"""The most alike pairs among many vectors: exact search by cosine similarity, block by block.

Their mean is taken off first: all features of an encoder have much in common, so that the cosine of
two that share nothing else may be 0.5 or 0.95, as the encoder will have it. Every pair is compared,
in float32; those that come near are compared again in float64, so that what is found depends
neither on the blocks nor on the device.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data.settings import UserError, require
from pretrain.evaluation.config import MOST_PAIRS

_BLOCK = 2_048  # vectors
_BLOCK_ON_GPU = 8_192  # so that it waits less
_DIGITS = 12  # of a similarity: equal vectors have 1, and a threshold of 1 finds them
_CALM = 16  # vectors of 0 that count in the mean, or the few copies in a small folder were lost
_CHUNK = 4_096  # pairs that are compared in float64 at a time


@dataclass(frozen=True)
class Pairs:
    """Pairs of vectors, the most alike first; equally alike ones in the order of their places.

    Attributes:
        similarity: float64 (n,), the cosine.
        first: int64 (n,), places among the vectors.
        second: int64 (n,), likewise, each above its `first`.
    """

    similarity: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def at(self, chosen: np.ndarray) -> "Pairs":
        """Return the chosen ones, by places among the pairs or by a mask."""
        return Pairs(self.similarity[chosen], self.first[chosen], self.second[chosen])


def _join(parts: Sequence[Pairs], number: int | None = None) -> Pairs:
    """Put pairs together in their order; the best of them where a number is given."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    joined = Pairs(*map(np.concatenate, columns))
    return joined.at(np.lexsort((joined.second, joined.first, -joined.similarity))[:number])


def find_pairs(
    features: np.ndarray,
    device: torch.device,
    *,
    threshold: float | None = None,
    top: int | None = None,
) -> Pairs:
    """Return the pairs whose similarity is `threshold` or more, or the `top` most alike.

    Similarity is the cosine of two vectors less the mean of all, in which 16 vectors of 0 count.

    Args:
        features: (N, D); a part of them is read at a time, so they may lie on disk.
        device: Where they are compared.
        threshold: In [-1, 1]; None with `top`.
        top: How many pairs; None with `threshold`.

    Raises:
        UserError: More than `MOST_PAIRS` are found, or a feature is no finite number.
    """
    assert (threshold is None) != (top is None)
    nothing = np.empty(0, np.int64)
    found, number = [Pairs(np.empty(0), nothing, nothing)], 0
    margin = _margin(features.shape[1])
    mean = _mean(features)
    floor = (-1 if threshold is None else threshold) - margin
    with _in_whole_float32():
        for row, column, similarity in _blocks(features, mean, device):
            rows, columns = _near(similarity, floor, top, margin)
            if len(rows) == 0:
                continue
            new = _compare(features, mean, rows + row, columns + column)
            if threshold is not None:
                new = new.at(new.similarity >= threshold)
            found.append(new)
            number += len(new)
            require(
                threshold is None or number <= MOST_PAIRS,
                f"--threshold={threshold}: over {MOST_PAIRS:,} pairs are as alike; raise it, or "
                "give --top 1000 in its place",
            )
            if top is not None and number >= top:
                found = [_join(found, top)]
                floor = float(found[0].similarity[-1]) - margin
    return _join(found, top)


def count_search_bytes(number: int, width: int, device: torch.device) -> int:
    """Return the memory that comparing so many vectors of a width takes at most, names excepted."""
    block = min(_block(device), number)
    # similarities, whether they are near, and where; both blocks, in both types; pairs, twice
    return 21 * block**2 + 32 * block * width + 24 * _CHUNK * width + 48 * MOST_PAIRS


def _block(device: torch.device) -> int:
    return _BLOCK if device.type == "cpu" else _BLOCK_ON_GPU


def _margin(width: int) -> float:
    """Bound the error of a cosine in float32: a product of `width` terms, and two norms."""
    return (width + 16) * 2**-23


@contextmanager
def _in_whole_float32() -> Generator[None]:
    """Multiply without TF32, whose products have 10 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _mean(features: np.ndarray) -> np.ndarray:
    """Return the mean of all vectors and `_CALM` that are 0: float64 (D,)."""
    starts = range(0, len(features), _BLOCK)
    sums = [features[start : start + _BLOCK].sum(0, dtype=np.float64) for start in starts]
    return np.sum(sums, axis=0) / (len(features) + _CALM)


def _blocks(
    features: np.ndarray, mean: np.ndarray, device: torch.device
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the similarities (n, m) of block after block, with its first row and column.

    Each pair is in one of them; other places hold -inf.
    """
    size = _block(device)
    starts = range(0, len(features), size)
    num_blocks = len(starts) * (len(starts) + 1) // 2
    with tqdm(total=num_blocks, desc="pairs", unit="block", delay=2, disable=None) as progress:
        for row in starts:
            own = _unit(features[row : row + size] - mean, device)
            for column in starts[row // size :]:
                if column == row:
                    lower = torch.ones(len(own), len(own), dtype=torch.bool, device=device).tril()
                    yield row, row, (own @ own.T).masked_fill_(lower, -torch.inf)
                else:
                    other = _unit(features[column : column + size] - mean, device)
                    yield row, column, own @ other.T
                progress.update()


def _unit(values: np.ndarray, device: torch.device) -> Tensor:
    """Scale vectors to the length 1; those of the length 0 stay."""
    tensor = torch.from_numpy(values.astype(np.float32)).to(device)
    if not tensor.isfinite().all():
        raise UserError("the features hold what is no finite number; write them anew by embed.py")
    return F.normalize(tensor)


def _near(
    similarity: Tensor, floor: float, top: int | None, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of those above a floor; of many, those near the best `top`."""
    is_near = similarity >= floor
    if top is not None and int(is_near.sum()) > top:
        last = similarity.flatten().topk(top).values[-1]
        is_near = similarity >= last - 2 * margin  # each of the two may be off
    rows, columns = is_near.nonzero(as_tuple=True)
    return rows.cpu().numpy(), columns.cpu().numpy()


def _compare(
    features: np.ndarray, mean: np.ndarray, first: np.ndarray, second: np.ndarray
) -> Pairs:
    """Compare pairs in float64."""
    similarity = np.empty(len(first))
    for start in range(0, len(first), _CHUNK):
        chosen = slice(start, start + _CHUNK)
        a, b = (features[places[chosen]] - mean for places in (first, second))
        lengths = np.sqrt((a * a).sum(1) * (b * b).sum(1))
        similarity[chosen] = (a * b).sum(1) / np.where(lengths > 0, lengths, 1)
    return Pairs(similarity.round(_DIGITS), first, second)


# ---------------------------------------------------------------- groups


def find_groups(pairs: Pairs) -> dict[int, int]:
    """Return the group of each vector that is in a pair: numbers from 1, by their first places.

    Those that a chain of pairs connects are one group, though its ends may be less alike.
    """
    parents: dict[int, int] = {}

    def root(place: int) -> int:
        while (parent := parents.setdefault(place, place)) != place:
            parents[place] = parents[parent]  # halves the way for the next
            place = parent
        return place

    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        low, high = sorted((root(first), root(second)))
        parents[high] = low
    numbers: dict[int, int] = {}
    return {place: numbers.setdefault(root(place), len(numbers) + 1) for place in sorted(parents)}
