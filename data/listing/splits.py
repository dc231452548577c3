"""Training, validation and test: which shards of one folder a key means, by the files' names."""

import logging
import re

from data.settings import UserError
from data.text import count, name_some

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_WORDS = {"train": "training", "val": "validation", "test": "test", None: "other"}
_logger = logging.getLogger(__name__)


def choose_split(files: list[str], key: str, folder: str) -> list[str]:
    """Choose the split that a key means of a folder that holds several, and say so.

    Args:
        files: The folder's shards.
        key: The configuration's key.
        folder: As it was named, for messages.

    Raises:
        UserError: If the names state several splits, and none of them is the key's.
    """
    role = _role(key)
    splits: dict[str | None, list[str]] = {}
    for file in files:
        splits.setdefault(_split_of(_file(file)), []).append(file)
    has_more = len(splits) > 1 if role == "val" else bool({"val", "test"} & splits.keys())
    if role is None or not has_more:
        return files
    chosen = splits.get(role) or (splits.get(None) if role == "train" else None)
    there = " and ".join(
        f"{count(len(names), f'{_WORDS[split]} shard')} ({name_some([*map(_file, names)], 1)})"
        for split, names in splits.items()
        if names is not chosen
    )
    if chosen is None:
        raise UserError(
            f"{key}={folder}: by the names of its files the folder holds {there} and no "
            f"{_WORDS[role]} shard; name the shards that are meant, as in {folder}/NAME-*.tar"
        )
    number = count(len(chosen), f"{_WORDS[role]} shard")
    verb = "is" if len(chosen) == 1 else "are"
    _logger.info("%s=%s: its %s %s read; left out: %s", key, folder, number, verb, there)
    return chosen


def _role(key: str) -> str | None:
    """Return the split that a key means of a folder that holds several; None: all of it."""
    last = key.rpartition(".")[2]
    if key == "data.shards" or last == "train":
        return "train"
    return "val" if last in ("val_shards", "val") else None


def _split_of(name: str) -> str | None:
    """Return the split that a shard's name states: train-000.tar, imagenet_validation-00.tar."""
    words = re.split("[^a-z]+", name.lower())
    stated = {_SPLITS[word] for word in words if word in _SPLITS}
    return stated.pop() if len(stated) == 1 else None


def _file(path: str) -> str:
    return path.rpartition("/")[2]
