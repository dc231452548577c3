"""Random numbers as pure functions of what they are for.

A sample's crop, flip and corruption come from a hash of (seed, epoch, sample id, purpose), so they
do not depend on the worker, the rank, the batch or the order of calls, and no library's generator
can change them. All functions work alike on NumPy int64 arrays and on torch int64 tensors of any
device: int64 products wrap in both.

Source: the mixing function is SplitMix64 (Steele, Lea, Flood 2014), on signed 64-bit words.
"""

from typing import TypeVar

import numpy as np
import torch

Words = TypeVar("Words", np.ndarray, torch.Tensor)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(words: Words, bits: int) -> Words:
    """Shift without the sign: int64 has only the arithmetic shift."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def mix(words: Words) -> Words:
    """Map each 64-bit word to a well-mixed one, one to one."""
    words = (words ^ _shift_right(words, 30)) * _MIX_1
    words = (words ^ _shift_right(words, 27)) * _MIX_2
    return words ^ _shift_right(words, 31)


def combine(key: Words, value: Words | int) -> Words:
    """Derive the key of `value` under `key`; `combine(combine(k, a), b)` is the key of (a, b)."""
    return mix(mix(key) + GOLDEN + value)


def derive(seed: int, *values: int) -> int:
    """Return the 64-bit signed key of (seed, *values) as a Python integer."""
    key = np.array([_signed(seed & ((1 << 64) - 1))])
    for value in values:
        key = combine(key, value)
    return int(key[0])


def uniform(keys: Words, count: int) -> Words:
    """Draw `count` float64 numbers in [0, 1) for each key: (...) -> (..., count)."""
    if isinstance(keys, torch.Tensor):
        counter = torch.arange(count, device=keys.device, dtype=torch.int64)
        words = _shift_right(combine(keys[..., None], counter), 11)
        return words.to(torch.float64) * 2.0**-53
    words = _shift_right(combine(keys[..., None], np.arange(count, dtype=np.int64)), 11)
    return words.astype(np.float64) * 2.0**-53
