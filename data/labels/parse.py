"""Class numbers out of a sample's label."""

import numpy as np

from data.reading.bad import BadSample
from data.shards import LABEL_EXTENSION

NO_LABEL = -1


_MAX_LABEL = 10  # bytes: beyond, it is no class number


def read_label(members: dict[str, bytes]) -> int:
    """Return a sample's class number from its `cls` member.

    Raises:
        BadSample: There is none, or it is no number from 0.
    """
    text = _label_text(members)
    if not _is_class(text):
        raise BadSample(f".{LABEL_EXTENSION} holds {text[:20]!r}, not a class number")
    return int(text)


def read_label_set(members: dict[str, bytes]) -> list[int]:
    """Return the class numbers in a `cls` member, none or several, apart by spaces or commas.

    Raises:
        BadSample: There is no such member, or it holds something else.
    """
    text = _label_text(members)
    numbers = text.replace(b",", b" ").split()
    if not all(map(_is_class, numbers)):
        raise BadSample(f".{LABEL_EXTENSION} holds {text[:20]!r}, not class numbers")
    return [int(number) for number in numbers]


def _label_text(members: dict[str, bytes]) -> bytes:
    text = members.get(LABEL_EXTENSION)
    if text is None:
        raise BadSample(f"no .{LABEL_EXTENSION} member")
    return text


def _is_class(text: bytes) -> bool:
    return text.strip().isdigit() and len(text) <= _MAX_LABEL


def multi_hot(classes: list[int], num_classes: int) -> np.ndarray:
    """Return int64 (K,): 1 at the classes, 0 elsewhere.

    Raises:
        BadSample: There is no such class.
    """
    label = np.zeros(num_classes, np.int64)
    if classes and max(classes) >= num_classes:
        raise BadSample(f".{LABEL_EXTENSION} has class {max(classes)} of {num_classes}")
    label[classes] = 1
    return label
