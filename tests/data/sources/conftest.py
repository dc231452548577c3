"""One set of small images, and each way to keep it."""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import make_png

FILES = {
    f"{name}/{number}.png": make_png(10 * place + number)
    for place, name in enumerate(("ca\u00f1\u00f3n", "dog", "\u732b"))
    for number in range(4)
}


def write_zip(path: Path, files: dict[str, bytes], top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w", top: str = "") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_csv(folder: Path, files: dict[str, bytes]) -> Path:
    write_folder(folder, files)
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "note", "label"])
        writer.writerows((name, "a\nnote", name.split("/")[0]) for name in files)
    return folder / "list.csv"


def write_jsonl(folder: Path, files: dict[str, bytes]) -> Path:
    write_folder(folder, files)
    rows = [json.dumps({"file": name, "class": name.split("/")[0]}) for name in files]
    (folder / "list.jsonl").write_text("\n".join(rows))
    return folder / "list.jsonl"


SOURCES: dict[str, Callable[[Path], Path]] = {
    "zip": lambda place: write_zip(place / "a.zip", FILES, "photos/"),
    "tar": lambda place: write_tar(place / "a.tar", FILES, top="./"),
    "tar.gz": lambda place: write_tar(place / "a.tar.gz", FILES, "w:gz", "photos/"),
    "tar.bz2": lambda place: write_tar(place / "a.tbz2", FILES, "w:bz2"),
    "tar.xz": lambda place: write_tar(place / "a.tar.xz", FILES, "w:xz"),
    "csv": lambda place: write_csv(place / "table", FILES),
    "jsonl": lambda place: write_jsonl(place / "table", FILES),
}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as a folder per class."""
    return write_folder(tmp_path_factory.mktemp("photos"), FILES)
