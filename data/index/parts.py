"""Which samples are set aside for validation: by a hash of each one's key, and of nothing else.

So the choice is the same on all ranks, after a resume, when files come in or shards are cut anew,
and for a folder and the shards that scripts/make_shards.py makes of it.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SALT = 20_271_127  # never to be changed: what was set aside would be trained on
_NUMBERED = re.compile(rb"(~\d+)+$")  # of two files that differ in their extensions alone


@dataclass(frozen=True)
class Part:
    """A part of the samples: those that are set aside for validation, or all others.

    Attributes:
        val_ratio: About how much of all is set aside.
        is_val: It is what is set aside.
    """

    val_ratio: float
    is_val: bool = False

    def places(self, keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Return the places of its samples among those with these keys, in order."""
        from data.randomness import combine, uniform  # here: it brings torch

        numbers = (zlib.crc32(_NUMBERED.sub(b"", key)) for key in keys)
        words = combine(np.full(len(keys), _SALT), np.fromiter(numbers, np.int64, len(keys)))
        is_val = uniform(words, 1)[:, 0] < self.val_ratio
        return np.flatnonzero(is_val == self.is_val)
