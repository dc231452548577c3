"""Files that are no tar, as people name them for shards: what they are, and what helps."""

import re

from data.shards import PICTURE_EXTENSIONS

MAKE_SHARDS = "make shards with python scripts/make_shards.py SOURCE OUT"
NAME_FOLDER = "name the folder of the images, or a text file (.txt) of their paths"
ZIP = "a zip archive"

_IMAGE = "an image"
_TEXT = "a text file"
_BY_ENDING = {
    **dict.fromkeys(PICTURE_EXTENSIONS, _IMAGE),
    **dict.fromkeys(("npy", "npz"), "a NumPy array"),
    **dict.fromkeys(("parquet", "pq"), "a parquet file"),
    **dict.fromkeys(("arrow", "feather"), "an Arrow file"),
    **dict.fromkeys(("h5", "hdf5"), "an HDF5 file"),
    **dict.fromkeys(("tfrecord", "tfrecords"), "a TFRecord file"),
    **dict.fromkeys(("lmdb", "mdb"), "an LMDB database"),
    **dict.fromkeys(("zip", "7z", "rar"), "an archive of another kind"),
    **dict.fromkeys(("txt", "csv", "tsv", "json", "jsonl", "yaml", "yml", "md"), _TEXT),
    **dict.fromkeys(("html", "htm"), "a web page"),
    **dict.fromkeys(("pt", "pth", "pkl", "safetensors"), "a file of weights or objects"),
}
_BY_CONTENT = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG\r\n": "a PNG image",
    b"GIF8": "a GIF image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"PK\x03\x04": ZIP,
    b"PK\x05\x06": ZIP,
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"\x89HDF\r\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"%PDF": "a PDF file",
    b"version https://git-lfs": "a pointer of git-lfs (git lfs pull fetches the file)",
}
_WEB_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)


def kind_by_name(name: str) -> str | None:
    """Say what a file is whose ending is that of no tar; None for any other ending."""
    return _BY_ENDING.get(name.rpartition(".")[2].lower()) if "." in name else None


def kind_by_content(block: bytes) -> str | None:
    """Say what a file is that is no tar, from its first bytes; None where they do not tell."""
    known = (kind for magic, kind in _BY_CONTENT.items() if block.startswith(magic))
    if (kind := next(known, None)) is not None:
        return kind
    if block[:4] == b"RIFF" and block[8:12] == b"WEBP":
        return "a WebP image"
    if _WEB_PAGE.match(block):
        return "a web page, perhaps a server's error message"
    return _TEXT if block and _is_text(block) else None


def _is_text(block: bytes) -> bool:
    try:
        text = block.decode()
    except UnicodeDecodeError as error:
        if error.start < len(block) - 3:  # else a character is cut by the block's end
            return False
        text = block[: error.start].decode()
    return all(c.isprintable() or c.isspace() for c in text)
