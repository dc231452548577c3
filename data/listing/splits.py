"""Training, validation and test: which part of one folder a key means, by the names in it."""

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
_FOLDER = re.compile(rf"({'|'.join(_SPLITS)})([-_ ]?(set|split|data|images|\d+))?")
_WORDS = {"train": "training", "val": "validation", "test": "test", None: "other"}
_TRAINING = ("data.shards", "IMAGES", "LABELLED")  # the latter two of scripts/recommend.py
_logger = logging.getLogger(__name__)


def are_splits(names: list[str]) -> bool:
    """Tell whether folders are splits, by their whole names: one of many classes may be "train"."""
    stated = {_split_of(name) for name in names if _FOLDER.fullmatch(name.lower())}
    return len(stated) > 1 or len(stated) == len(names) == 1


def choose_split(files: list[str], key: str, folder: str, noun: str = "shard") -> list[str]:
    """Choose the split that a key means of a folder that holds several, and say so.

    Args:
        files: The folder's shards, or folders of images.
        key: The configuration's key.
        folder: As it was named, for messages.
        noun: What messages call one of them.

    Raises:
        UserError: If the names state several splits, and none of them is the key's.
    """
    role = _role(key)
    is_shards = noun == "shard"
    splits: dict[str | None, list[str]] = {}
    for file in files:
        splits.setdefault(_split_of(_file(file)), []).append(file)
    has_more = len(splits) > 1 if role == "val" else bool({"val", "test"} & splits.keys())
    if role is None or not has_more:
        return files
    chosen = splits.get(role) or (splits.get(None) if role == "train" else None)
    there = " and ".join(
        f"{count(len(names), f'{_WORDS[split]} {noun}')} ({name_some([*map(_file, names)], 1)})"
        for split, names in splits.items()
        if names is not chosen
    )
    if chosen is None:
        raise UserError(
            f"{key}={folder}: by the names of its {'files' if is_shards else 'folders'} the folder "
            f"holds {there} and no {_WORDS[role]} {noun}; name the {noun}s that are meant, as in "
            f"{folder}/NAME{'-*.tar' if is_shards else ''}"
        )
    number = count(len(chosen), f"{_WORDS[role]} {noun}")
    verb = "is" if len(chosen) == 1 else "are"
    _logger.info("%s=%s: its %s %s read; left out: %s", key, folder, number, verb, there)
    return chosen


def _role(key: str) -> str | None:
    """Return the split that a key means of a folder that holds several; None: all of it."""
    last = key.rpartition(".")[2]
    if key in _TRAINING or last == "train":
        return "train"
    return "val" if last in ("val_shards", "val") else None


def _split_of(name: str) -> str | None:
    """Return the split that a shard's name states: train-000.tar, imagenet_validation-00.tar."""
    words = re.split("[^a-z]+", name.lower())
    stated = {_SPLITS[word] for word in words if word in _SPLITS}
    return stated.pop() if len(stated) == 1 else None


def _file(path: str) -> str:
    return path.rpartition("/")[2]
