"""Class-labelled splits: their configuration, their labels, k-shot subsets."""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn, TypeVar

import numpy as np
from tqdm import tqdm

from data.index.files import FileTable
from data.index.manifest import Manifest, whole
from data.index.tables import refuse_unlabelled
from data.labels.classes import Classes, Numbering, UnknownClass, as_it_is, match_classes
from data.labels.parse import read_label, read_label_set
from data.reading.bad import BadSample
from data.reading.reader import ShardReader
from data.settings import UserError, require
from data.shards import LABEL_EXTENSION
from data.storage.locations import is_list
from data.text import count, name_some, printable

Label = TypeVar("Label")
_ANY_NUMBERS = 1_000  # so many class numbers are sane however few of them occur
_NUMBERS_PER_CLASS = 10  # beyond, numbers up to so many times the classes that occur
_logger = logging.getLogger(__name__)


class Labels(NamedTuple):
    """The classes of two splits, and how each split's numbers map to them.

    Attributes:
        names: Of the classes, one a class; the numbers where nothing names them.
        train: The numbering of the training shards; None where it is that of `names`.
        val: Of the validation shards, likewise.
    """

    names: list[str]
    train: Numbering | None
    val: Numbering | None


def label_splits(
    train: Manifest,
    val: Manifest,
    path: str | None,
    group: str = "data",
    fraction: float = 1.0,
    is_multi_label: bool = False,
) -> tuple[Labels, np.ndarray]:
    """Read the labels of two splits, and bring them under one numbering by the classes' names.

    Args:
        train: The training shards.
        val: The validation shards.
        path: The configuration's file of class names, or None.
        group: Where the keys `train`, `val` and `classes` are, for messages.
        fraction: Of the training samples, how many `train` uses.
        is_multi_label: A sample has any number of classes.

    Returns:
        The classes, and the labels of all training samples, numbered as they are: int64 (N,), of
        many labels one sample's after the other's.

    Raises:
        RunStopped: A server cannot be asked for its list of classes.
        UserError: A sample has no label; `val` has a class that `train` lacks, unless both are
            parts of one set; names and numbers
            do not fit; or the numbers are no class numbers.
    """
    for key, manifest in ((f"{group}.train", train), (f"{group}.val", val)):
        require_folders_of_classes(manifest, key)
    classes = match_classes(train, val, path, group)
    read = read_label_sets if is_multi_label else read_labels
    train_key = f"{group}.train"
    values = read(train, train_key, classes, classes.train)
    val_values = read(val, f"{group}.val", classes, classes.val)
    require(values.size > 0, f"{train_key} has no sample of any class; give labelled shards")

    def all_values() -> np.ndarray:
        """Return the labels of the samples that `data.fraction` leaves out, too."""
        if fraction == 1:
            return values
        return read(whole(train), train_key, classes, classes.train)

    is_split = val.shards.part is not None  # the classes are those of both parts
    known = np.concatenate([values, val_values]) if is_split else values
    names = classes.names or _number_names(known, all_values, group)
    require(
        int(known.max()) < len(names),
        f"{train_key} has class {known.max()}, but {classes.file} names {len(names)}; mend the "
        "labels, or name all classes there",
    )
    unknown = np.setdiff1d(val_values, values)
    if unknown.size > 0 and is_split:
        what = "class" if unknown.size == 1 else "classes"
        _logger.warning(
            "%s.val_ratio leaves no image of %s [%s] to train on: too few images for the ratio",
            group,
            what,
            name_some([names[number] for number in unknown]),
        )
    elif unknown.size > 0:
        of_fraction = "" if fraction == 1 else f"data.fraction={fraction}"
        _refuse_unknown(unknown, all_values(), names, group, of_fraction)
    if not is_multi_label:
        _require_two_classes(train, known, names, train_key)
    _warn_of_twins(names, train_key)
    return Labels(names, classes.train, classes.val), values


def require_folders_of_classes(manifest: Manifest, key: str) -> None:
    """Raise `UserError` for a folder of images that has no labels."""
    for place, table in manifest.shards.tables.items():
        if not FileTable.load(table).classes:
            refuse_unlabelled(manifest.shards.locations[place], key)


def _require_two_classes(train: Manifest, labels: np.ndarray, names: list[str], key: str) -> None:
    """Refuse images of one class: whatever is learnt of them, each answer is right."""
    is_listed = any(is_list(train.shards.locations[place]) for place in train.shards.tables)
    rule = " (the first folder of each path in the list)" if is_listed else ""
    require(
        int(labels.min()) < int(labels.max()),
        f"all images of {key} are of one class, {printable(names[labels[0]])}{rule}, and "
        "a classifier needs two; give a folder that holds a folder of images for each class",
    )


def _warn_of_twins(names: list[str], key: str) -> None:
    """Say which classes differ in capital letters alone, as by a slip in the name of a folder."""
    first: dict[str, str] = {}
    for name in names:
        if (twin := first.setdefault(name.casefold(), name)) != name:
            _logger.warning(
                "%s has the classes %s and %s, which differ in capital letters alone; they are "
                "learnt as two: where one is meant, give their folders one name",
                key,
                printable(twin),
                printable(name),
            )


def _number_names(
    values: np.ndarray, all_values: Callable[[], np.ndarray], group: str
) -> list[str]:
    """Name the classes by their numbers.

    Raises:
        UserError: The numbers are far more than the classes that occur: they are IDs.
    """
    last, num_occurring = int(values.max()), np.unique(values).size
    if last >= _most_numbers(num_occurring):
        num_occurring = np.unique(all_values()).size
    what = f"the labels of {group}.train go to {last:,}, and {count(num_occurring, 'class')} occur"
    require(
        last < _most_numbers(num_occurring),
        f"{what}, so they are IDs; number the classes from 0, as scripts/make_shards.py does, or "
        f"set {group}.classes to a file with a line for each number",
    )
    if last >= 2 * num_occurring:
        _logger.warning("%s; each number up to it is a class of its own", what)
    return [str(number) for number in range(last + 1)]


def _most_numbers(num_occurring: int) -> int:
    return max(_ANY_NUMBERS, _NUMBERS_PER_CLASS * num_occurring)


def _refuse_unknown(
    unknown: np.ndarray, trained: np.ndarray, names: list[str], group: str, fraction: str
) -> NoReturn:
    """Raise `UserError` for classes of the validation split that the training split lacks.

    Args:
        unknown: Those classes.
        trained: The labels of all training samples, also of those that are left out.
        names: Of the classes.
        group: Where the keys `train` and `val` are.
        fraction: The key that leaves training samples out, with its value; empty where none does.
    """
    lost = np.intersect1d(unknown, trained)
    chosen = lost if lost.size > 0 else unknown
    shown = name_some([names[number] if number < len(names) else number for number in chosen])
    what = f"{'class' if chosen.size == 1 else 'classes'} [{shown}]"
    if lost.size > 0:
        raise UserError(
            f"{fraction} leaves no sample of {what} in {group}.train, and {group}.val has some; "
            "raise it"
        )
    raise UserError(
        f"{group}.val has {what}, which {group}.train lacks; train on all classes that are "
        "validated"
    )


def check_names(names: list[str], saved: list[str], owner: str) -> None:
    """Raise `UserError` unless the classes are those that a model has learnt.

    Args:
        names: Of the classes now.
        saved: Of the model's classes; numbers where nothing named them, which may be named later.
        owner: Whose model it is, for messages.
    """
    remedy = "give the list of classes with which it began (data.classes), or another run.dir"
    require(
        len(names) == len(saved),
        f"{owner} holds a model of {count(len(saved), 'class')}, and now there are {len(names)}; "
        f"{remedy}",
    )
    if saved == [str(number) for number in range(len(saved))]:
        return
    for number, (now, before) in enumerate(zip(names, saved, strict=True)):
        require(
            now == before,
            f"{owner} holds a model whose class {number} is [{printable(before)}], and now it is "
            f"[{printable(now)}]; {remedy}",
        )


def read_labels(
    manifest: Manifest,
    key: str,
    classes: Classes | None = None,
    numbering: Numbering | None = None,
) -> np.ndarray:
    """Read all labels of a split: int64 (N,), in listed order.

    Args:
        manifest: The split's shards.
        key: The configuration key that names them, for messages.
        classes: The common classes, for messages.
        numbering: From the numbers in the shards to the common ones.

    Raises:
        UserError: A sample has no label, or one that is not among the classes; it is named.
    """
    renumber = numbering or as_it_is

    def read(members: dict[str, bytes], shard: int) -> int:
        return renumber(shard, read_label(members))

    rule = "a class number from 0"
    labels = read_all(manifest, key, read, rule, LABEL_EXTENSION, classes)
    return np.fromiter(labels, np.int64, manifest.num_samples)


def read_label_sets(
    manifest: Manifest,
    key: str,
    classes: Classes | None = None,
    numbering: Numbering | None = None,
) -> np.ndarray:
    """Read the class numbers of a multi-label split, one sample's after the other's: int64 (n,).

    Args and what is raised are those of `read_labels`.
    """
    renumber = numbering or as_it_is

    def read(members: dict[str, bytes], shard: int) -> list[int]:
        return [renumber(shard, number) for number in read_label_set(members)]

    rule = "class numbers from 0, apart by spaces,"
    sets = read_all(manifest, key, read, rule, LABEL_EXTENSION, classes)
    return np.array([number for numbers in sets for number in numbers], np.int64)


def read_all(
    manifest: Manifest,
    key: str,
    read: Callable[[dict[str, bytes], int], Label],
    rule: str,
    extension: str,
    classes: Classes | None = None,
) -> Iterator[Label]:
    """Yield all labels of a split, in listed order.

    Args:
        manifest: The split's shards.
        key: The configuration key that names them, for messages.
        read: A sample's members and its shard -> the label; may raise `BadSample`.
        rule: What each sample needs, for messages.
        extension: Of the member that holds the label.
        classes: The common classes, for messages.

    Raises:
        UserError: A sample has no label, or one that is not among the classes; it is named.
    """
    reader = ShardReader(manifest)
    places = [(s, i) for s, shard in enumerate(manifest.shards) for i in range(shard.num_samples)]
    for shard, place in tqdm(places, f"labels of {key}", unit="image", delay=2, disable=None):
        try:
            yield read(reader.read(shard, place, {extension}), shard)
        except (BadSample, UnknownClass) as error:
            name = printable(f"{manifest.shards.names[shard]}/{reader.key(shard, place)}")
            if isinstance(error, UnknownClass):
                what = _unknown(error, classes.file if classes is not None else "")
                raise UserError(f"{key}: {name} {what}") from error
            raise UserError(
                f"{key}: {name}: {error}; each sample needs {rule} beside its image"
            ) from error


def _unknown(error: UnknownClass, common: str) -> str:
    """Say what is wrong with a sample's class."""
    file, number = error.found.file, error.number
    if error.name is None:
        return f"has class {number}, but {file} names {len(error.found.names)}; mend one of them"
    return (
        f"is of class [{printable(error.name)}] ({number} in {file}), which {common} does not "
        "name; train on all classes that are validated, under the same names"
    )


def k_shot(
    labels: np.ndarray,
    num_shots: int,
    seed: int,
    keys: tuple[str, str] = ("fewshot.shots", "data.train"),
) -> np.ndarray:
    """Choose `num_shots` samples of each class at random: places in `labels`, int64 (k * K,).

    Args:
        labels: Of the training images.
        num_shots: k.
        seed: Of the choice.
        keys: What messages call the key of the shots, and the images.

    Raises:
        UserError: A class has fewer.
    """
    generator = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        require(
            places.size >= num_shots,
            f"{keys[0]} has {num_shots}, but class {label} of {keys[1]} has only "
            f"{count(places.size, 'image')}; lower it",
        )
        chosen.append(generator.permutation(places)[:num_shots])
    return np.concatenate(chosen)
