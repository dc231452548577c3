"""What a user says of a source, and how one that is read forwards gives images in any order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.folder.plan import SourceImage
from data.reading.bad import MAX_MEMBER_BYTES
from data.settings import require

WINDOW_BYTES = 1 << 30  # of images that are held in memory, for each passage over a source
TOO_LARGE = (  # why an image is left out: of one, of several
    f"image over {MAX_MEMBER_BYTES >> 20} MiB, which training does not read",
    f"images over {MAX_MEMBER_BYTES >> 20} MiB, which training does not read",
)


@dataclass(frozen=True)
class SourceOptions:
    """How a source is looked at.

    Attributes:
        is_unlabelled: Take no labels.
        classes: The names of the classes in the order of their labels; None: those of the source.
        skip_unreadable: Leave out what cannot be read, in place of refusing it.
        image_column: The column of a table that holds the images, or their paths.
        label_column: The column of a table that holds the labels.
        captions: Take captions: text files beside the images, or a column of a table.
        caption_column: The column of a table that holds them.
        root: The folder below which a table's paths are; None: the table's own.
    """

    is_unlabelled: bool = False
    classes: Sequence[str] | None = None
    skip_unreadable: bool = False
    image_column: str | None = None
    label_column: str | None = None
    captions: bool = False
    caption_column: str | None = None
    root: Path | None = None

    def refuse_those_of_tables(self, what: str) -> None:
        """Raise `UserError` for an option that says nothing about a source of this kind."""
        own = ("image_column", "label_column", "caption_column", "root")
        given = [f"--{name.replace('_', '-')}" for name in own if getattr(self, name) is not None]
        require(
            not given,
            f"{', '.join(given)} is for a table of images, and SOURCE is {what}; leave it out",
        )


def windows(images: Sequence[SourceImage]) -> Iterator[list[SourceImage]]:
    """Cut a list of images into runs that fit into memory; an image that is larger is one alone."""
    window: list[SourceImage] = []
    room = WINDOW_BYTES
    for image in images:
        if window and image.num_bytes > room:
            yield window
            window, room = [], WINDOW_BYTES
        window.append(image)
        room -= image.num_bytes
    if window:
        yield window
