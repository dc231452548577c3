"""What a SOURCE of images is, and the images that it holds."""

import logging
import zipfile
from functools import partial
from pathlib import Path

from data.folder.images import Listing, extension_of, list_images
from data.folder.lists import read_list
from data.folder.plan import SourceImages, take_images
from data.listing.foreign import ZIP, kind_by_content
from data.settings import UserError, require
from data.sources.captions import take_captioned
from data.sources.datasets import DATASET_ENDINGS, dataset_files, find_in_dataset
from data.sources.members import ARCHIVE_ENDINGS
from data.sources.options import SourceOptions
from data.sources.tables import TABLE_ENDINGS, find_in_table
from data.sources.tars import find_in_tar, is_tar
from data.sources.zips import find_in_zip
from data.text import name_some, printable

_KINDS = (
    "a folder of images, a tar or zip archive, a parquet file or a folder of them, or a table of "
    "paths (.csv, .tsv, .jsonl, .txt)"
)
_LIST = "txt"
_logger = logging.getLogger(__name__)


def find_source(source: Path, options: SourceOptions) -> SourceImages:
    """List the images of a source, whatever it is.

    Args:
        source: A folder of images; a zip or tar archive, or a folder within one; a parquet or Arrow
            file, or a folder of them; a table of paths, or a list of them.
        options: How it is looked at.

    Raises:
        UserError: It is none of them, holds no image, or something that cannot be read.
    """
    if source.is_dir():
        return _find_in_folder(source, options)
    archive, inner = _within(source)
    _logger.info("listing the images of %s", printable(str(source)))
    ending = extension_of(archive.name)
    if zipfile.is_zipfile(archive) and ending not in DATASET_ENDINGS:
        return find_in_zip(archive, options, inner)
    if ending not in (*DATASET_ENDINGS, *TABLE_ENDINGS, _LIST) and is_tar(archive):
        return find_in_tar(archive, options, inner)
    require(inner == "", f"SOURCE={printable(str(source))}: {archive.name} is no archive")
    if ending in DATASET_ENDINGS or _start(archive).startswith(b"PAR1"):
        return find_in_dataset(archive, [archive], options)
    if ending in TABLE_ENDINGS:
        return find_in_table(archive, options)
    if ending == _LIST:
        return _take(read_list(archive, "SOURCE"), options, "a list of paths")
    raise UserError(f"SOURCE={printable(str(source))} is {_kind(_start(archive))} give {_KINDS}")


def _kind(start: bytes) -> str:
    """Say what a file is that is no source, from its first bytes."""
    kind = kind_by_content(start)
    if start == b"":
        return "an empty file; copy it again, or"
    if kind == ZIP:
        return "a zip archive without its end, as after a copy that was cut off; copy it again, or"
    return f"{kind or 'a file of another kind'};"


def _find_in_folder(source: Path, options: SourceOptions) -> SourceImages:
    listing = list_images(source)
    files = [] if listing.all_images() else dataset_files(source, listing.others)
    if files:
        return find_in_dataset(source, files, options)
    _refuse_other_sources(listing)
    return _take(listing, options, "a folder of images")


def _refuse_other_sources(listing: Listing) -> None:
    """Refuse a folder that holds no image, but archives or tables that may: each is a source."""
    archives, tables = (
        [name for name in listing.others if name.lower().endswith(endings)]
        for endings in (ARCHIVE_ENDINGS, tuple(f".{ending}" for ending in TABLE_ENDINGS))
    )
    own = archives or tables
    if not own or listing.all_images():
        return
    source = printable(str(listing.folder))
    is_shards = any(name.lower().endswith(".tar") for name in own)
    shards = f"; webdataset shards are used as they are, data.shards={source}" if is_shards else ""
    raise UserError(
        f"SOURCE={source} holds no image but {name_some(own)}; give one of them as SOURCE{shards}"
    )


def _take(listing: Listing, options: SourceOptions, what: str) -> SourceImages:
    options.refuse_those_of_tables(what)
    take = partial(
        take_images,
        is_unlabelled=options.is_unlabelled,
        classes=options.classes,
        skip_unreadable=options.skip_unreadable,
    )
    return take_captioned(listing, options, take)


def _within(source: Path) -> tuple[Path, str]:
    """Return the file that a source is, or lies in, and the folder within it."""
    for place in (source, *source.parents):
        if place.is_file():
            return place, "" if place == source else source.relative_to(place).as_posix()
    raise UserError(f"SOURCE={printable(str(source))} is not there; give {_KINDS}")


def _start(source: Path) -> bytes:
    with source.open("rb") as file:
        return file.read(512)
