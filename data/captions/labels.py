"""Classes that are the values of a key of KEY.json: true and false, answers, numbers."""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from data.captions.read import json_object
from data.index.manifest import Manifest
from data.labels.labelled import read_all
from data.labels.parse import NO_LABEL
from data.reading.bad import BadSample
from data.settings import require
from data.shards import JSON_EXTENSION
from data.text import count, name_some, printable

_RULE = "text, a number, true or false in that key of its KEY.json"
_logger = logging.getLogger(__name__)


class KeyedClasses(NamedTuple):
    """The classes that a key of KEY.json names.

    Attributes:
        key: That key.
        numbers: The classes by name, in their order.
        has_others: Samples of other values are of no class, and not bad: there are more values than
            classes.
    """

    key: str
    numbers: Mapping[str, int]
    has_others: bool

    @property
    def names(self) -> list[str]:
        """The names in order."""
        return list(self.numbers)

    def number(self, members: Mapping[str, bytes]) -> int:
        """Return a sample's class; `NO_LABEL` for one of no class.

        Raises:
            BadSample: It has no such value, or one that is not known although all are.
        """
        name = read_value(members, self.key)
        number = self.numbers.get(name, NO_LABEL)
        if number == NO_LABEL and not self.has_others:
            raise BadSample(f"{printable(self.key)} is {printable(name)}, which is no class")
        return number


def label_by_key(
    train: Manifest, val: Manifest, key: str, max_classes: int | None
) -> tuple[KeyedClasses, np.ndarray]:
    """Read the classes of two splits out of a key of KEY.json.

    The classes are the values that occur in `train`, numbers by size and all else by letters; of
    two parts of one set, those that occur in either.

    Args:
        train: The training shards.
        val: The validation shards.
        key: That of KEY.json.
        max_classes: The most frequent values that are classes; None: all.

    Returns:
        The classes, and those of the training samples that are of one, in listed order: int64 (n,).

    Raises:
        UserError: A sample has no such value, and is named; there is one class only; or `val` has a
            value that `train` lacks, without `max_classes`.
    """
    own, others = _read(train, "data.train", key), _read(val, "data.val", key)
    is_split = val.shards.part is not None
    counts = Counter(own + others if is_split else own)
    require(
        len(counts) > 1,
        f"data.label_key={printable(key)} is {name_some(list(counts), 1)} in all samples of "
        "data.train, and a classifier needs two classes; name another key",
    )
    names = _choose(counts, max_classes)
    classes = KeyedClasses(key, {n: i for i, n in enumerate(names)}, max_classes is not None)
    if unknown := sorted(set(others) - classes.numbers.keys()):
        require(
            max_classes is not None,
            f"data.val has the {count(len(unknown), 'class')} [{name_some(unknown)}] of "
            f"data.label_key={printable(key)}, which data.train lacks; train on all classes that "
            "are validated, or give data.max_classes: then such samples count as wrong",
        )
    numbers = [classes.numbers[name] for name in own if name in classes.numbers]
    if num_left := len(own) - len(numbers):
        _logger.warning(
            "data.max_classes=%d: %s of data.train left out, whose %s is a rarer one; in data.val "
            "such samples count as wrong",
            max_classes,
            count(num_left, "sample"),
            printable(key),
        )
    return classes, np.array(numbers, np.int64)


def _read(manifest: Manifest, split: str, key: str) -> list[str]:
    def read(members: dict[str, bytes], _: int) -> str:
        return read_value(members, key)

    return list(read_all(manifest, split, read, _RULE, JSON_EXTENSION))


def _choose(counts: Mapping[str, int], max_classes: int | None) -> list[str]:
    """Return the names of the classes in order: the most frequent ones, of equal ones the first."""
    ranked = sorted(counts, key=lambda name: (-counts[name], name))[:max_classes]
    if all(map(_is_number, ranked)):
        return sorted(ranked, key=float)
    return sorted(ranked)


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def read_value(members: Mapping[str, bytes], key: str) -> str:
    """Return the value of a key of a sample's json, as a class is named.

    Raises:
        BadSample: There is none, or it is a list or an object.
    """
    content = members.get(JSON_EXTENSION)
    if content is None:
        raise BadSample(f"no label: it has no .{JSON_EXTENSION} member")
    try:
        values = json_object(content)
    except ValueError as error:
        raise BadSample(f".{JSON_EXTENSION}: {error}") from error
    if key not in values:
        names = name_some(list(values), 8) or "none"
        raise BadSample(f".{JSON_EXTENSION} has no key {printable(key)}; its keys: {names}")
    return _name(values[key], key)


def _name(value: Any, key: str) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    what = "empty" if value in (None, "") or isinstance(value, str) else "a list or an object"
    raise BadSample(f".{JSON_EXTENSION}: the key {printable(key)} is {what}")
