"""Folders as classes: which number each has, and what cannot be a class."""

import re
import unicodedata
from collections.abc import Sequence

from data.folder.images import Listing, is_image_name
from data.settings import require
from data.text import count, name_some, printable

_SPLIT = re.compile(
    r"(train|training|val|valid|validation|dev|test|testing|eval|evaluation)"
    r"([-_ ]?(set|split|data|images|\d+))?",
    re.IGNORECASE,
)
_SOURCE = "SOURCE"  # how make_shards.py calls the folder, which can also go without labels


def in_no_class(listing: Listing) -> str | None:
    """Say which images lie in no folder of a class; None if all lie in one."""
    beside = [path for path in listing.images if path.partition("/")[0] in ("", "..", path)]
    return f"in no folder of a class: {name_some(beside, 1)}" if beside else None


def number_classes(
    names: Sequence[str],
    given: Sequence[str] | None,
    noun: str,
    source: str,
    key: str = _SOURCE,
) -> dict[str, int]:
    """Give each name of a class, in its order, the number of its class.

    Args:
        names: As folders or a table spell them; each once.
        given: The names of the classes in order; None: `names`.
        noun: What one of them is called in messages.
        source: What they are of, for messages.
        key: How messages call it.

    Raises:
        UserError: A name cannot be a class, or the list lacks one.
    """
    normal = class_names(names, key, noun)
    if given is None:
        return dict(zip(names, range(len(names)), strict=True))
    numbers = {name: number for number, name in enumerate(given)}
    unknown = sorted(set(normal) - set(given))
    require(
        not unknown,
        f"--classes lacks {name_some(unknown)}, {count(len(unknown), noun)} of "
        f"SOURCE={source}; add each to the list, or move it away",
    )
    return {name: numbers[known] for name, known in zip(names, normal, strict=True)}


def label_folders(
    listing: Listing, given: Sequence[str] | None, key: str = _SOURCE
) -> dict[str, int]:
    """Give each folder of images a class number.

    Args:
        listing: The source, all of whose images lie in folders.
        given: The names of the classes in order; None: those of the folders, sorted.
        key: What messages call the source.

    Raises:
        UserError: A name cannot be a class, the list lacks one, a class would lose all its images,
            the folders are splits, or one lies in two classes.
    """
    folders = sorted({path.split("/")[0] for path in listing.images})
    if given is None:
        _require_no_splits(folders, key)
    _require_images(listing, folders, key)
    _require_one_class(listing, key)
    return number_classes(folders, given, "class folder", str(listing.folder), key)


def folders_without_images(listing: Listing) -> list[str]:
    """Say which folders are no class, as no image lies in them: a text, or none."""
    with_images = {path.split("/")[0] for path in listing.images}
    folders = {path for path in listing.found.folders if "/" not in path}
    bare = sorted(folders - with_images - {*listing.found.repeated})
    what = count(
        len(bare), "folder without images, so no class", "folders without images, so no classes"
    )
    return [f"{what} ({name_some(bare)})"] if bare else []


def _or_unlabelled(key: str) -> str:
    return ", or give --unlabelled" if key == _SOURCE else ""


def _require_no_splits(names: Sequence[str], key: str) -> None:
    """Refuse train/ and val/ as classes; one of many classes may be called "train"."""
    splits = [name for name in names if _SPLIT.fullmatch(name)]
    remedy = (
        "give each as a SOURCE of its own with an OUT of its own, or --unlabelled for all images "
        "together, or, if they are classes, --classes FILE that lists them"
        if key == _SOURCE
        else "name the one that is meant, or rename them if they are classes"
    )
    require(
        len(splits) < min(2, len(names)),
        f"{key} holds {name_some(splits)}, which would be {count(len(splits), 'class')} and are "
        f"likely splits; {remedy}",
    )


def _require_images(listing: Listing, names: Sequence[str], key: str) -> None:
    """Refuse to lose a class, as the labels of those behind it would be others."""
    walked = listing.found
    by_class: dict[str, list[str]] = {}
    refused = [
        name
        for names in walked.refused.values()
        for name in names
        if is_image_name(name) and ".." not in name.split("/")
    ]
    lost = (*listing.empty, *listing.undecodable, *walked.broken, *walked.special)
    for path in (*lost, *filter(None, walked.unreadable), *refused):
        by_class.setdefault(path.split("/")[0], []).append(path)
    for name in sorted({*by_class} - {*names}):
        own = by_class[name]
        is_stray = own == [name] and is_image_name(name)  # a file beside the classes
        require(
            is_stray,
            f"{key}={listing.folder}: the class {printable(name)} would be lost, as none of "
            f"its images can be read ({name_some(own)}); mend them, or remove the folder. "
            f"Left out in all: {'; '.join(listing.left_out())}",
        )


def _require_one_class(listing: Listing, key: str) -> None:
    """Refuse a folder that is in two classes; a link to what holds it is passed over."""
    for path, first in listing.found.repeated.items():
        require(
            first == "" or path.split("/")[0] == first.split("/")[0],
            f"{key}={listing.folder}: {printable(path)} is the same folder as "
            f"{printable(first)}, and an image has one class; remove one of them"
            f"{_or_unlabelled(key)}",
        )


def class_names(own: Sequence[str], key: str = _SOURCE, noun: str = "class folder") -> list[str]:
    """Name the classes as a list of them is read: letters with accents have one spelling (NFC)."""
    remedy = f"rename it{_or_unlabelled(key)}"
    several = noun.removeprefix("class ") + "s"
    named: dict[str, str] = {}
    for spelling in own:
        name = unicodedata.normalize("NFC", spelling)
        twin = named.setdefault(name, spelling)
        require(
            twin == spelling,
            f"{key}: two {several} are both called {name}, accents apart; {remedy}",
        )
        flaw = _flaw(name)
        require(flaw is None, f"{key}: the {noun} '{printable(name)}' {flaw}; {remedy}")
    return list(named)


def _flaw(name: str) -> str | None:
    """Say why a line of classes.txt would not give a name back."""
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "is not UTF-8"
    if {"\n", "\r"} & set(name):
        return "has a line break in its name"
    is_trimmed = name == name.strip() and not name.startswith("\ufeff")
    return None if is_trimmed else "begins or ends with a blank"
