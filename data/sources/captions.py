"""Captions of a source of files: the text that lies beside each image."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from data.disks import one_line
from data.folder.images import Listing, extension_of
from data.folder.plan import SourceImage, SourceImages
from data.settings import require
from data.shards import MAX_TEXT_BYTES, TEXT_EXTENSION, caption_lines
from data.sources.options import SourceOptions
from data.text import count, name_some, printable


def take_captioned(
    listing: Listing, options: SourceOptions, take: Callable[[Listing], SourceImages]
) -> SourceImages:
    """Take the images of a listing, and where it is asked for, the text beside each.

    Args:
        listing: What was found.
        options: Whether captions are taken.
        take: A listing -> its images.

    Raises:
        UserError: An image has no caption, unless such images are left out.
    """
    if not options.captions:
        return take(listing)
    texts = {_stem(path): path for path in listing.others if extension_of(path) == TEXT_EXTENSION}
    used = {texts[stem] for stem in map(_stem, listing.images) if stem in texts}
    source = take(replace(listing, others=[path for path in listing.others if path not in used]))
    lines, flaws = _read(source, used, listing.found.sizes)
    images = tuple(
        replace(image, captions=lines.get(texts.get(_stem(image.path), ""), ()))
        for image in source.images
    )
    return require_captions(listing.folder, replace(source, images=images), options, flaws)


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _read(
    source: SourceImages, paths: set[str], sizes: Mapping[str, int]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Read text files: the captions of each, and which of them are none, with the reason."""
    flaws = [f"{path}: too long" for path in sorted(paths) if sizes[path] > MAX_TEXT_BYTES]
    own = [path for path in sorted(paths) if sizes[path] <= MAX_TEXT_BYTES]
    files = [SourceImage(path, path, sizes[path], None) for path in own]
    lines: dict[str, tuple[str, ...]] = {}
    for path, content in zip(own, source.read(files), strict=True):
        try:
            lines[path] = tuple(caption_lines(content))
        except ValueError as error:
            flaws.append(f"{path}: {one_line(error)}")
    return lines, flaws


def require_captions(
    place: Path, source: SourceImages, options: SourceOptions, flaws: list[str] | None = None
) -> SourceImages:
    """Return a source whose images all have captions, where they are to have them.

    Args:
        place: Where the source is, for messages.
        source: What was found there.
        options: Whether captions are taken, and images without one left out.
        flaws: Texts that could not be read.

    Raises:
        UserError: An image has none, unless such images are left out.
    """
    bare = [image.path for image in source.images if not image.captions]
    if not options.captions or not bare:
        return source
    names = name_some(flaws or bare)
    require(
        options.skip_unreadable and len(bare) < len(source.images),
        f"SOURCE={printable(str(place))} has no caption for {count(len(bare), 'image')} of "
        f"{len(source.images):,} ({names}); each needs a text in UTF-8 (x.txt beside x.jpg, or a "
        "cell of a table), or leave such images out by --skip-unreadable",
    )
    images = tuple(image for image in source.images if image.captions)
    left_out = f"{count(len(bare), 'image')} without a caption ({names})"
    return replace(source, images=images, left_out=(*source.left_out, left_out))
