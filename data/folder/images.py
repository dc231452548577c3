"""The images below a folder, and in words what lies there and is none."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import features

from data.folder.walk import Found, is_readable, walk
from data.settings import UserError, require
from data.shards import ARRAY_EXTENSION, HEIF_EXTENSIONS, IMAGE_EXTENSIONS, PICTURE_EXTENSIONS
from data.text import count, name_some, printable

_PILLOW = {"avif": "avif", "avifs": "avif"} | dict.fromkeys(
    ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"), "jpg_2000"
)  # endings whose decoder Pillow may be built without


@dataclass(frozen=True)
class Listing:
    """The images below a folder, by their endings; paths are below it, sorted.

    Attributes:
        folder: The folder.
        found: All that lies there.
        images: Files to be taken: pictures, or NumPy's files where there are no pictures, as beside
            pictures they may be anything, such as features.
        empty: Images of zero bytes.
        undecodable: Pictures whose decoder is not installed.
        others: All other files.
    """

    folder: Path
    found: Found
    images: list[str]
    empty: list[str]
    undecodable: list[str]
    others: list[str]

    def require_readable(self, key: str) -> None:
        """Raise `UserError` if a folder, or an image, may not be read."""
        remedy = "allow it (chmod -R u+rX), or move it away"
        self.without_unreadable().require_none_unreadable(key, remedy)

    def require_none_unreadable(self, key: str, remedy: str) -> None:
        """Raise `UserError` if something was found that cannot be read."""
        reasons = sorted(self.found.unreadable.items())
        names = [f"{path or self.folder}: {reason}" for path, reason in reasons]
        require(
            not names,
            f"{key}={printable(str(self.folder))} holds what cannot be read ({name_some(names)}); "
            f"{remedy}",
        )

    def without_unreadable(self) -> "Listing":
        """Return the listing with the images that may not be read among what cannot be read."""
        top = str(self.folder)
        own = ((path, os.path.join(top, path)) for path in self.images)  # noqa: PTH118 - quick
        closed = [path for path, place in own if not is_readable(place)]
        unreadable = self.found.unreadable | dict.fromkeys(closed, "Permission denied")
        images = [path for path in self.images if path not in unreadable]
        return replace(self, found=replace(self.found, unreadable=unreadable), images=images)

    def require_images(self, key: str) -> None:
        """Raise `UserError` if there is no image, and say what there is."""
        if self.images:
            return
        there = "; ".join(self.left_out()) or "there is no file"
        raise UserError(
            f"{key}={printable(str(self.folder))} holds no image that can be read: {there}; "
            f"known endings: {', '.join(sorted(PICTURE_EXTENSIONS))}, {ARRAY_EXTENSION}"
        )

    def left_out(self) -> list[str]:
        """Say what is there and is not taken: counts, endings, and the names of some."""
        return self.lost() + self.passed_over()

    def lost(self) -> list[str]:
        """Say what would be an image, if it could be read."""
        broken = [path for path in self.found.broken if is_image_name(path)]
        top = self.folder.name or "."
        closed = [f"{path or top}: {reason}" for path, reason in self.found.unreadable.items()]
        texts = [
            _describe(self.empty, "empty file"),
            *self._missing_decoders(),
            _describe(broken, "broken link"),
            _describe(closed, "place that cannot be looked at", "places that cannot be looked at"),
            *(_describe(names, *nouns) for nouns, names in self.found.refused.items()),
        ]
        return [text for text in texts if text]

    def passed_over(self) -> list[str]:
        """Say what else is there."""
        found = self.found
        broken = [path for path in found.broken if not is_image_name(path)]
        again = [f"{path} is {first or 'above it'}" for path, first in found.repeated.items()]
        texts = [
            _describe(self.others, "file that is no image", "files that are no images", True),
            _describe(broken, "broken link to no image", "broken links to no images"),
            _describe(found.special, "pipe, socket or device", "pipes, sockets and devices"),
            _describe(again, "folder listed already", "folders listed already"),
            _describe(found.droppings, "file of macOS or Windows", "files of macOS or Windows"),
            _describe(found.hidden, "hidden name"),
        ]
        return [text for text in texts if text]

    def _missing_decoders(self) -> list[str]:
        by_remedy: dict[str, list[str]] = {}
        for path in self.undecodable:
            by_remedy.setdefault(missing_decoder(extension_of(path)) or "", []).append(path)
        return [
            _describe(paths, f"image that needs {remedy}", f"images that need {remedy}", True)
            for remedy, paths in by_remedy.items()
        ]

    def all_images(self) -> list[str]:
        """List also what would be an image if it could be read, and folders that cannot."""
        broken = [path for path in self.found.broken if is_image_name(path)]
        missing = [*self.empty, *self.undecodable, *broken, *self.found.unreadable]
        return sorted([*self.images, *missing])


def list_images(folder: Path) -> Listing:
    """List the images below a folder; nothing is opened."""
    return list_names(folder, walk(folder))


def list_names(folder: Path, found: Found) -> Listing:
    """Tell by their endings which of the files that were found are images."""
    kinds = {path: extension_of(path) for path in sorted(found.sizes)}
    pictures = [path for path, kind in kinds.items() if kind in PICTURE_EXTENSIONS]
    undecodable = [path for path in pictures if missing_decoder(kinds[path])]
    taken = sorted(set(pictures) - set(undecodable))
    if not pictures:
        taken = [path for path, kind in kinds.items() if kind == ARRAY_EXTENSION]
    known = {*taken, *undecodable}
    return Listing(
        folder=folder,
        found=found,
        images=[path for path in taken if found.sizes[path] > 0],
        empty=[path for path in taken if found.sizes[path] == 0],
        undecodable=undecodable,
        others=[path for path in kinds if path not in known],
    )


def is_image_name(path: str) -> bool:
    """Tell whether a name's ending is an image's."""
    return extension_of(path) in IMAGE_EXTENSIONS


def extension_of(path: str) -> str:
    """Return a file name's extension in lower case, without the dot."""
    name = path.rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return ending.lower() if dot and stem else ""


@cache
def missing_decoder(extension: str) -> str | None:
    """Say what brings the decoder of a picture's ending; None if it is there."""
    if extension in HEIF_EXTENSIONS and find_spec("pillow_heif") is None:
        return "pip install -e '.[heic]'"
    if extension in _PILLOW and not features.check(_PILLOW[extension]):
        return "pip install -U pillow"
    return None


def _describe(
    names: Sequence[str], noun: str, plural: str | None = None, has_endings: bool = False
) -> str:
    """Count names, and say some of them, and their endings; nothing where there are none."""
    endings = Counter(printable(Path(name).suffix.lower()) or "without ending" for name in names)
    kinds = ", ".join(f"{number:,} {ending}" for ending, number in endings.most_common(6))
    shown = f"{kinds}: {name_some(names)}" if has_endings else name_some(names)
    return f"{count(len(names), noun, plural)} ({shown})" if names else ""
