"""Which shards a configuration means: patterns, folders, URLs -> locations and names.

What a name says is believed only where nothing of that name exists: a path is followed as it is
written as far as it goes, and the rest of it is a pattern.
"""

import glob
import logging
import os
import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import braceexpand

from data.disks import explain
from data.listing.foreign import MAKE_SHARDS, NAME_FOLDER, kind_by_name
from data.listing.splits import are_splits, choose_split
from data.settings import UserError, require
from data.shards import INDEX_SUFFIX, has_image
from data.storage.locations import (
    Storage,
    check_location,
    expand_home,
    is_list,
    is_remote,
    protocol_of,
    public_name,
)
from data.storage.remote import list_remote
from data.text import count, escaped, name_some

_OWN_FILES = frozenset({"manifest.jsonl", "plan.json", "classes.txt"})
_MAKERS = {"shards/demo/": "make demo", "shards/scenes/": "make demo-vilt"}  # data/demo/
_OPTIONAL = frozenset({"data.val_shards"})  # keys that can be none
_MAX_LOOK = 2000  # files of a folder that are looked at to say what it holds
_PATTERN = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\*+|\?")
_logger = logging.getLogger(__name__)


def list_shards(spec: object, key: str) -> list[str]:
    """List the shards that a configuration names: absolute paths, and URLs as they were given.

    Whether a remote file exists is not asked, so that a long list costs nothing.

    Args:
        spec: A brace pattern ("a-{000..009}.tar"), a glob, a folder (its *.tar, without
            subfolders), or a list of those; each a path or a URL. Brace order is kept, globs and
            folders are sorted; http has neither. Of a folder that holds several splits by the
            names of its files (train-*, val-*, test-*), a training key means the training split
            and a validation key the validation split. A glob means files that end in .tar, if it
            matches any. A folder without *.tar that holds images below it, and a text file of
            their paths, stand for themselves; of subfolders train/, val/, test/ a key means one.
        key: The configuration's key, for error texts and for the split.

    Raises:
        RunStopped: If a remote folder cannot be listed.
        UserError: If nothing is given, a pattern or folder holds nothing, a local file is missing,
            one file is named twice, what is named is no tar by its ending, or a URL is not read or
            holds credentials.
    """
    locations = [name for item in _patterns(spec, key) for name in _expand(item, key)]
    _refuse_foreign(locations, key)
    seen: dict[object, str] = {}
    for location in locations:
        identity, name = _identity(location, key), public_name(location)
        twice = f"{key} names the same file twice: {seen.get(identity)} and {name}; name it once"
        require(identity not in seen, twice)
        seen[identity] = name
    return locations


def _identity(location: str, key: str) -> object:
    """Return what two names of one file share; of a URL, what messages show of it."""
    if is_remote(location):
        return public_name(location)
    try:
        stat = os.stat(location)  # noqa: PTH116 - a tenth of a Path's time, for 1e5 shards
    except FileNotFoundError as error:
        less = f", or give {key}=none to do without" if key in _OPTIONAL else ""
        made = next((f"; `{by}` makes it" for part, by in _MAKERS.items() if part in location), "")
        message = f"{key}: {location} does not exist; correct the path or the pattern{less}{made}"
        raise UserError(message) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{key}: {location} cannot be read ({reason}); correct the path") from error
    return stat.st_dev, stat.st_ino


def _patterns(spec: object, key: str) -> list[str]:
    """Check the specification's type and make it a list."""
    remedy = "give a folder of images, a pattern such as shards/train-{000..009}.tar, or a list"
    items = cast(Sequence[object], spec) if isinstance(spec, list | tuple) else [spec]
    for item in items:
        is_name = isinstance(item, str | Path) and str(item) != ""
        require(is_name, f"{key}={item!r}: {remedy}")
        _refuse_streams(str(item), key)
    require(len(items) > 0, f"{key}={spec!r} names no shards; {remedy}")
    names = [str(item) for item in items]
    return [name if is_remote(name) else str(Path(expand_home(name))) for name in names]


def absolute(item: str) -> str:
    """Name what an item of a specification names from any working folder, as far as it can be."""
    is_elsewhere = is_remote(item) or item == "-" or item.startswith("pipe:")
    if is_elsewhere or Path(item).is_absolute():
        return item
    here = str(Path.cwd())
    if not Path(item).exists():  # a pattern: what is here must not become one
        here = glob.escape(here)
        if "{" in here or "\\" in here:
            return item
    return str(Path(here, item))


def _refuse_streams(item: str, key: str) -> None:
    if item == "-" or item.startswith("pipe:"):
        name = item[:5]  # a command may hold a password
        raise UserError(
            f"{key}={name} only goes forwards, so no sample can be read by its place; "
            "set data.read=sequential"
        )


def _refuse_foreign(locations: Iterable[str], key: str) -> None:
    """Refuse what is no tar by its ending."""
    paths = (name.partition("?")[0] if is_remote(name) else name for name in locations)
    foreign = [
        path.rpartition("/")[2]
        for path in paths
        if kind_by_name(path.rpartition("/")[2]) and not (is_list(path) or os.path.isdir(path))  # noqa: PTH112 - of few paths
    ]
    if foreign:
        kind, is_local = kind_by_name(foreign[0]), not any(map(is_remote, locations))
        remedy = NAME_FOLDER if is_local and _is_image(foreign[0]) else MAKE_SHARDS
        raise UserError(
            f"{key} names {name_some(foreign)}, which is {kind} and no tar file; {remedy}"
            if len(foreign) == 1
            else f"{key} names {name_some(foreign)}, which are no tar files (the first is {kind}); "
            + remedy
        )


def _is_image(name: str) -> bool:
    return has_image([name.rpartition(".")[2].lower()])


# ---------------------------------------------------------------- patterns


def _expand(item: str, key: str) -> list[str]:
    """Turn one item of the specification into locations."""
    if is_remote(item):
        return [name for pattern in _braces(item, item, key) for name in _remote(pattern, key)]
    base, rest = _follow(item)
    if not rest:
        return _folder(base, key, item) if os.path.isdir(base) else [base]  # noqa: PTH112
    typed = item.removesuffix(rest) if item.endswith(rest) else f"{base}/"
    return [
        name
        for pattern in _braces(rest, item, key)
        for name in _matches(base, pattern, key, f"{key}={typed}{pattern}")
    ]


def _braces(pattern: str, item: str, key: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        name = public_name(item)
        reason = str(error).replace(item, name)
        message = f"{key}={name}: {reason}; balance the braces, as in a-{{000..009}}.tar"
        raise UserError(message) from error


def _follow(item: str) -> tuple[str, str]:
    """Follow a path as it is written as far as it exists; return the rest, which is a pattern."""
    parts = Path(item).parts
    base = parts[0] if Path(item).is_absolute() else str(Path.cwd())
    rest = list(parts[1:] if Path(item).is_absolute() else parts)
    while rest and os.path.lexists(path := f"{base.rstrip('/')}/{rest[0]}"):
        base, rest = path, rest[1:]
    return base, "/".join(rest)


def _matches(base: str, pattern: str, key: str, what: str) -> list[str]:
    """List what one local pattern without braces stands for, in a folder that exists."""
    path = os.path.join(base, pattern)  # noqa: PTH118 - a tenth of a Path's time, for 1e5 shards
    if os.path.isdir(path):  # noqa: PTH112
        return _folder(path, key, path)
    if not glob.has_magic(pattern):
        return [path]
    folder, rest = _follow(path)
    matches = sorted(_glob(folder, Path(rest).parts))
    read = " and ".join(dict.fromkeys(_PATTERN.findall(pattern))) or "["
    verb = "are" if " and " in read else "is"
    escape = "; a name that holds a [ itself is written with [[]" if "[" in pattern else ""
    require(
        len(matches) > 0,
        f"{what} matches no file; correct the pattern ({read} {verb} read as a pattern{escape})",
    )
    return _tars(matches, what)


def _glob(folder: str, parts: Sequence[str]) -> list[str]:
    """List what parts of a path match; one that exists as it is written is no pattern."""
    if not parts:
        return [folder]
    own = os.path.join(folder, parts[0])  # noqa: PTH118
    if os.path.lexists(own) or not glob.has_magic(parts[0]):
        paths = [own] if os.path.lexists(own) else []
    else:
        paths = glob.glob(os.path.join(glob.escape(folder), parts[0]))  # noqa: PTH118, PTH207
    return [path for each in paths for path in _glob(each, parts[1:])]


def _tars(matches: list[str], what: str) -> list[str]:
    """Take those of a pattern's matches that may be shards, and say what is left out."""
    names = [path for path in matches if not _is_own(path)]
    files = [path for path in names if not os.path.isdir(path)]  # noqa: PTH112
    tars = [path for path in files if path.lower().endswith(".tar")] or files
    require(
        len(tars) > 0,
        f"{what} matches {name_some([_file(path) for path in names or matches])} and no shard; "
        "name a folder of shards, or its files, as in FOLDER/*.tar",
    )
    rest = [_file(path) for path in names if path not in set(tars)]
    if rest:
        _logger.info("%s: left out, as no tar by its name: %s", what, name_some(rest))
    return tars


def _is_own(path: str) -> bool:
    """Tell whether a file is what this project keeps beside shards."""
    return path.endswith(INDEX_SUFFIX) or _file(path) in _OWN_FILES


def _file(path: str) -> str:
    return path.rpartition("/")[2]


def _remote(pattern: str, key: str) -> list[str]:
    """List what one URL without braces stands for."""
    check_location(pattern, key)
    name = public_name(pattern)
    path = name.partition("://")[2].partition("/")[2]
    is_folder = path.endswith("/") or path == ""
    if protocol_of(pattern) in ("http", "https"):
        is_many = is_folder or "*" in path or "[" in path
        remedy = "list them with braces, as in https://host/a-{000..009}.tar"
        require(not is_many, f"{key}={name}: http has no listing of its files; {remedy}")
        return [pattern]
    is_folder = is_folder or "." not in path.rpartition("/")[2]
    if not is_folder and not glob.has_magic(path):
        return [pattern]
    files = list_remote(pattern.rstrip("/") + "/*.tar" if is_folder else pattern, Storage())
    tars = [file for file in files if file.endswith(".tar")]
    require(len(tars) > 0, f"{key}={name} matches no *.tar file; correct the pattern")
    return choose_split(tars, key, name) if is_folder else tars


# ---------------------------------------------------------------- folders


def _folder(folder: str, key: str, name: str) -> list[str]:
    """List the shards in a folder."""
    try:
        files = sorted(path.name for path in Path(folder).iterdir())
    except OSError as error:
        raise UserError(f"{key}={name}: the folder cannot be read: {explain(error)}") from error
    tars = [f"{folder.rstrip('/')}/{file}" for file in files if _is_tar(file)]
    if not tars and _holds_images(folder):
        return _split_folders(folder, key, name)
    require(
        len(tars) > 0,
        f"{key}={name}: the folder holds no image and no *.tar file{_what_is_in(folder)}",
    )
    images = [file for file in files if _is_image(file)]
    if images:
        _logger.warning(
            "%s=%s: its %s read as shards, and its images are not: %s",
            key,
            name,
            f"{count(len(tars), 'tar file')} {'is' if len(tars) == 1 else 'are'}",
            name_some(images),
        )
    return choose_split(tars, key, name)


def _holds_images(folder: str) -> bool:
    """Tell whether images lie below a folder; where much else does, so that it takes long, yes."""
    looked = 0
    for _, folders, files in os.walk(folder, followlinks=True):
        if any(map(_is_image, files)):
            return True
        looked += len(folders) + len(files) + 1
        if looked > _MAX_LOOK:
            return True
    return False


def _split_folders(folder: str, key: str, name: str) -> list[str]:
    """Return a folder of images, or that of its subfolders train/, val/, test/ that a key means."""
    with os.scandir(folder) as scan:
        entries = sorted(entry.name for entry in scan if not entry.name.startswith("."))
    inside = [entry for entry in entries if os.path.isdir(f"{folder}/{entry}")]  # noqa: PTH112
    beside = any(map(_is_image, entries))
    if beside or not are_splits(inside):
        return [folder]
    folders = [f"{folder.rstrip('/')}/{entry}" for entry in inside]
    chosen = choose_split(folders, key, name, "folder")
    return [folder] if chosen == folders and len(chosen) > 1 else chosen


def _is_tar(name: str) -> bool:
    return name.endswith(".tar") and not name.startswith(".")


def _what_is_in(folder: str) -> str:
    """Say what a folder holds in place of shards, and what helps."""
    looked = 0
    for where, folders, files in os.walk(folder):
        seen = sorted(name for name in files if not name.startswith("."))
        tars = [name for name in seen if _is_tar(name)]
        if tars:
            return f", but {Path(where).relative_to(folder)} in it holds some; name that"
        foreign = [name for name in seen if kind_by_name(name) and not _is_own(name)]
        if foreign:
            some = name_some(foreign)
            return f" but {some} (the first is {kind_by_name(foreign[0])}); {MAKE_SHARDS}"
        if seen and not _is_own(seen[0]):
            return f" but {name_some(seen)}; name tar files that are not compressed"
        folders.sort()
        looked += len(files) + 1
        if looked > _MAX_LOOK:
            break
    return "; name a folder of images or of shards"


# ---------------------------------------------------------------- names


def shard_names(locations: Sequence[str]) -> list[str]:
    """Name each shard by its path below the deepest folder that holds them all.

    So equal file names in two folders stay distinct: "train/000.tar" and "val/000.tar". A folder
    has the same names on this machine and behind a URL. Bytes that are not UTF-8 are escaped.

    Args:
        locations: Absolute paths and URLs, as `list_shards` gives them.
    """
    paths = [_plain_path(location) for location in locations]
    folders = [folder.split("/") for folder in {path.rpartition("/")[0] for path in paths}]
    # the first and the last in order share only what all share
    ends = zip(min(folders), max(folders), strict=False) if folders else ()
    common = [first for first, _ in takewhile(lambda pair: pair[0] == pair[1], ends)]
    start = sum(len(folder) + 1 for folder in common)
    return [escaped(path[start:]) for path in paths]


def _plain_path(location: str) -> str:
    """Return a location without a query, and as its folders are called on a disk."""
    if not is_remote(location):
        return location
    name = public_name(location)
    # an object's key is not quoted, a URL's path is
    return unquote(name) if protocol_of(name) in ("http", "https") else name
