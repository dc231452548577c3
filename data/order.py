"""The order of the samples, a pure function: (seed, epoch, position) -> sample.

One epoch's order permutes the shards, splits their concatenation into `G` lanes and permutes inside
windows of a lane; position `p` is in lane `p mod G`. A batch therefore draws from `G` places at
once, while every lane reads its shard in windows that are contiguous on disk. A lookup costs O(1)
in the position, and only one number a shard is kept in memory.

Symbols: `N` samples, `G` lanes, `W` samples a window, `q = N div G` the shorter lanes' length.
"""

from functools import lru_cache

import numpy as np

from data.randomness import combine, derive, mix

PLAIN_LIMIT = 65_536  # up to here one plain permutation: G = 1, one window
NUM_LANES = 256
WINDOW_SIZE = 256
_NUM_ROUNDS = 6
_SHARDS, _SAMPLES = 1, 2  # purposes of a key


def permute(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Permute `index` in [0, size) under `key`, elementwise over arrays of one shape.

    A balanced Feistel network over the next even number of bits, walked along its cycle until the
    value falls below `size`: a bijection for every size, on average under 4 walks.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 4.
    """
    half_bits = np.maximum((np.ceil(np.log2(np.maximum(size, 2))).astype(np.int64) + 1) // 2, 1)
    keys = mix(key + np.arange(_NUM_ROUNDS)[:, None])  # (rounds, n)
    result = index.copy()
    pending = np.arange(index.size)
    while pending.size:
        walked = _feistel(result[pending], half_bits[pending], keys[:, pending])
        result[pending] = walked
        pending = pending[walked >= size[pending]]
    return result


def _feistel(value: np.ndarray, half_bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    half_mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & half_mask
    for key in keys:
        left, right = right, left ^ (combine(key, right) & half_mask)
    return (left << half_bits) | right


class Order:
    """The order in which an epoch visits the samples of a list of shards.

    Args:
        starts: (S + 1,) cumulative sample counts of the `S` shards, as in `Manifest.starts`.
        seed: The run's seed.
    """

    def __init__(self, starts: np.ndarray, seed: int) -> None:
        self.starts = np.asarray(starts, dtype=np.int64)
        self.num_samples = int(self.starts[-1])
        self.num_lanes = 1 if self.num_samples <= PLAIN_LIMIT else NUM_LANES
        self.seed = seed
        self._shards_of_epoch = lru_cache(maxsize=2)(self._permuted_shards)

    def __reduce__(self) -> tuple[type["Order"], tuple[np.ndarray, int]]:
        return Order, (self.starts, self.seed)

    @property
    def constants(self) -> dict[str, int]:
        """The numbers on which the order depends besides the shards; checked when a run resumes."""
        return {"seed": self.seed, "num_lanes": self.num_lanes, "window_size": WINDOW_SIZE}

    def samples(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the sample ids at positions (n,) of an epoch.

        A sample's id is its place in the shards as they are listed: id `i` lies in the shard `s`
        with `starts[s] <= i < starts[s + 1]`.
        """
        positions = np.asarray(positions, dtype=np.int64)
        assert positions.size == 0 or 0 <= positions.min() <= positions.max() < self.num_samples
        place = self._place(epoch, positions)
        shards, permuted_starts = self._shards_of_epoch(epoch)
        slot = np.searchsorted(permuted_starts, place, side="right") - 1
        return self.starts[shards[slot]] + place - permuted_starts[slot]

    def locate(self, sample_id: int) -> tuple[int, int]:
        """Return (shard, place within the shard) of a sample id."""
        shard = int(np.searchsorted(self.starts, sample_id, side="right")) - 1
        return shard, sample_id - int(self.starts[shard])

    def _place(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Map positions to places in the concatenation of the epoch's permuted shards."""
        lane, index = positions % self.num_lanes, positions // self.num_lanes
        short, num_longer = divmod(self.num_samples, self.num_lanes)
        lane_start = lane * short + np.minimum(lane, num_longer)
        lane_size = short + (lane < num_longer)
        num_windows = 1 if self.num_lanes == 1 else max(1, short // WINDOW_SIZE)
        window = ((index + 1) * num_windows - 1) // lane_size
        start = window * lane_size // num_windows
        size = (window + 1) * lane_size // num_windows - start
        key = combine(combine(np.full_like(lane, derive(self.seed, epoch, _SAMPLES)), lane), window)
        return lane_start + start + permute(index - start, size, key)

    def _permuted_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        num_shards = self.starts.size - 1
        key = np.full(num_shards, derive(self.seed, epoch, _SHARDS))
        shards = permute(np.arange(num_shards), np.full(num_shards, num_shards), key)
        counts = np.diff(self.starts)[shards]
        return shards, np.concatenate([[0], np.cumsum(counts)])
