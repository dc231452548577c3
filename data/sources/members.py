"""The members of an archive as a folder's files would be listed. No name is ever a path on disk."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from data.folder.images import is_image_name, list_names
from data.folder.plan import Reader, SourceImages, label_by_folder
from data.folder.walk import Found, is_noted_by_name
from data.reading.bad import MAX_MEMBER_BYTES
from data.settings import require
from data.sources.captions import take_captioned
from data.sources.options import TOO_LARGE, SourceOptions
from data.text import name_some, printable

ARCHIVE_ENDINGS = (
    ".zip",
    ".tar",
    ".tgz",
    ".tbz2",
    ".txz",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
    ".7z",
    ".rar",
)
_OUTSIDE = ("name that leads out of the archive", "names that lead out of the archive")
_LINK = ("link", "links")
_SPECIAL = ("member that is no file", "members that are no files")
_NESTED = ("archive inside the archive", "archives inside the archive")
_AGAIN = ("file that a later one of its name replaces", "files that later ones replace")


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: As the archive says it.
        num_bytes: Its size when it is unpacked, as the archive says it.
        kind: "file", "folder", "link" or "special".
        place: Where its archive finds it again.
        flaw: Why it cannot be read; None if nothing is known against it.
    """

    name: str
    num_bytes: int
    kind: str
    place: int
    flaw: str | None = None


class Sorted(NamedTuple):
    """An archive's members, as below a folder.

    Attributes:
        found: What there is; names are below `top`, with "/".
        places: Where the archive finds each file.
        top: The folder of the archive in which all images lie, such as "photos"; "" for several.
    """

    found: Found
    places: dict[str, int]
    top: str


def sort_members(
    members: Iterable[Member], inner: str = "", classes: Iterable[str] | None = None
) -> Sorted:
    """Sort an archive's members as `walk` sorts the files of a folder.

    Args:
        members: In the archive's order; of several of a name, the last is taken, as in unpacking.
        inner: A folder of the archive: nothing outside of it is looked at.
        classes: Names of classes: a folder of such a name is no top.
    """
    files: dict[str, Member] = {}
    others = Found()
    for member in members:
        name = _clean(member.name)
        if name is None:
            others.refuse(_OUTSIDE, member.name)
        elif name and _is_below(name, inner):
            _sort_one(member, _below(name, inner), files, others)
    top = _top_of(files, frozenset(classes or ()))
    found = Found(
        folders=[_below(name, top) for name in others.folders if _is_below(name, top)],
        droppings=list(dict.fromkeys(others.droppings)),
        hidden=list(dict.fromkeys(others.hidden)),
        refused={
            nouns: [_below(name, top) for name in names] for nouns, names in others.refused.items()
        },
    )
    places: dict[str, int] = {}
    for name, member in files.items():
        own = _below(name, top)
        if member.flaw is not None and is_image_name(name):
            found.unreadable[own] = member.flaw
        elif member.num_bytes > MAX_MEMBER_BYTES and is_image_name(name):
            found.refuse(TOO_LARGE, own)
        else:
            found.sizes[own], places[own] = member.num_bytes, member.place
    return Sorted(found, places, "/".join(part for part in (inner, top) if part))


def describe(
    source: Path, what: str, members: Sorted, read: Reader, options: SourceOptions
) -> SourceImages:
    """Make the images of a source of an archive's members.

    Args:
        source: The archive.
        what: What kind of archive it is, for messages.
        members: What it holds.
        read: Reads the images.
        options: How it is looked at.

    Raises:
        UserError: It holds no image, or one that cannot be read; or its folders cannot be classes.
    """
    listing = list_names(source, members.found)
    if not options.skip_unreadable:
        remedy = "mend it, or leave such images out by --skip-unreadable"
        listing.require_none_unreadable("SOURCE", remedy)
    nested = members.found.refused.get(_NESTED, [])
    require(
        bool(listing.images) or not nested,
        f"SOURCE={printable(str(source))} holds no image but {name_some(nested)}; unpack it, and "
        "give each archive as a SOURCE of its own",
    )
    listing.require_images("SOURCE")
    found = take_captioned(
        listing,
        options,
        lambda own: label_by_folder(own, read, options.is_unlabelled, options.classes),
    )
    below = f", images below {printable(members.top)}/" if members.top else ""
    return SourceImages(
        found.images, found.classes, found.left_out, found.why_unlabelled, read, what + below
    )


def _clean(name: str) -> str | None:
    """Return a member's name as a path below the archive; None if it leads out of it."""
    parts = [part for part in name.replace("\0", "_").split("/") if part not in ("", ".")]
    return None if ".." in parts else "/".join(parts)


def _is_below(name: str, folder: str) -> bool:
    return folder == "" or name.startswith(f"{folder}/")


def _below(name: str, folder: str) -> str:
    return name[len(folder) + 1 :] if folder and _is_below(name, folder) else name


def _sort_one(member: Member, name: str, files: dict[str, Member], others: Found) -> None:
    parts = name.split("/")
    for depth, part in enumerate(parts, start=1):
        if is_noted_by_name(part, "/".join(parts[:depth]), others):
            return
    if member.kind == "folder":
        others.folders.append(name)
    elif member.kind == "link":
        others.refuse(_LINK, name)
    elif member.kind != "file":
        others.refuse(_SPECIAL, name)
    elif name.lower().endswith(ARCHIVE_ENDINGS):
        others.refuse(_NESTED, name)
    else:
        if name in files:
            others.refuse(_AGAIN, name)
        files[name] = member


def _top_of(files: Iterable[str], classes: frozenset[str]) -> str:
    """Return the folder in which all images lie, from the archive's top on; "" if there is none."""
    folders = {tuple(name.split("/")[:-1]) for name in files if is_image_name(name)}
    top: list[str] = []
    while folders and () not in folders:
        firsts = {folder[0] for folder in folders}
        if len(firsts) > 1 or firsts & classes:
            break
        top += firsts
        folders = {folder[1:] for folder in folders}
    return "/".join(top)
