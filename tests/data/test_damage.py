"""Damaged and hostile shards, through the loader: what is lost is named, and nothing else is lost.

With an index, the names read and the names in `bad` are together all names, each once. Without one,
a warning names the shard, the offset and the number of samples, and these are read.
"""

import logging
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from data.batch import Request
from data.index.making import CHANGED
from data.index.offsets import ShardIndex
from data.index.open import load_index, open_manifest
from data.reading.reader import ShardReader
from data.samples import Samples
from data.settings import UserError
from data.shards import ImageFile, write_shard
from data.storage.locations import Storage
from data.text import count
from tests.conftest import make_png

BLOCK = 512
NUM = 7  # samples in the shard that is damaged
OTHER = ["b.tar/x"]  # those of the shard beside it
# Every field of a header, and what pads it: name and first byte.
FIELDS = {
    "name": 0, "mode": 100, "uid": 108, "gid": 116, "size": 124, "mtime": 136, "chksum": 148,
    "typeflag": 156, "linkname": 157, "magic": 257, "version": 263, "uname": 265, "gname": 297,
    "devmajor": 329, "devminor": 337, "prefix": 345, "padding": 500, "end": 512,
}  # fmt: skip


@dataclass(frozen=True)
class Template:
    """A shard of known bytes, its index, and what it holds."""

    content: bytes
    index: bytes
    manifest: bytes
    names: list[str]
    headers: list[int]
    ends: list[int]  # of each sample: the offset after its last member


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    folder = tmp_path_factory.mktemp("template")
    images = [ImageFile(f"{i:02d}", "png", make_png(i, (5, 6)), i % 3) for i in range(NUM)]
    path = folder / "a.tar"
    write_shard(path, images)
    write_shard(folder / "b.tar", [ImageFile("x", "png", make_png(50))])
    [shard, _] = open_manifest(folder, "data.shards").shards
    index = load_index(shard)
    assert isinstance(index, ShardIndex)
    members = [list(index.members(i).values()) for i in range(NUM)]
    return Template(
        content=path.read_bytes(),
        index=shard.index_path.read_bytes(),
        manifest=(folder / "manifest.jsonl").read_bytes(),
        names=[f"a.tar/{image.key}" for image in images],
        headers=[member.offset - BLOCK for each in members for member in each],
        ends=[each[-1].offset + each[-1].size for each in members],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shard(tmp_path / "b.tar", [ImageFile("x", "png", make_png(50))])
    return tmp_path


def put(folder: Path, template: Template, content: bytes, *, is_indexed: bool) -> None:
    """Write the shard with other bytes than it was indexed with, or without an index."""
    (folder / "a.tar").write_bytes(content)
    os.utime(folder / "a.tar", ns=(0, 1))
    for name, old in (("a.tar.index", template.index), ("manifest.jsonl", template.manifest)):
        (folder / name).unlink(missing_ok=True)
        if is_indexed:
            (folder / name).write_bytes(old)


def read_all(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names that an epoch reads, and those that it names as bad."""
    manifest = open_manifest(folder, "data.shards")
    batch = Samples(manifest, (4, 4), seed=0, crop_area=(0.5, 1.0))[
        Request(0, 0, manifest.num_samples)
    ]
    return [place.name for place in batch.places], [f"{e.shard}/{e.key}" for e in batch.bad]


def assert_nothing_is_lost(folder: Path, template: Template, lost: list[str] | None) -> None:
    read, bad = read_all(folder)
    assert sorted(read + bad) == template.names + OTHER
    assert lost is None or sorted(bad) == lost


def flip(content: bytes, at: int, mask: int = 1) -> bytes:
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


def field_flips(template: Template) -> Iterator[tuple[int, int]]:
    """Yield the header, and a byte of each of its fields, another one in each header."""
    starts = list(FIELDS.values())
    for number, start in enumerate(template.headers):
        for first, stop in pairwise(starts):
            yield start, start + first + number % (stop - first)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return what was warned of since the last call."""

    def text() -> str:
        lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        caplog.clear()
        return "\n".join(lines)

    return text


# ---------------------------------------------------------------- with an index


def test_truncate_every_512b(folder: Path, template: Template, warned: Callable[[], str]) -> None:
    last = template.ends[-1]
    for size in range(0, len(template.content), BLOCK):
        put(folder, template, template.content[:size], is_indexed=True)
        pairs = zip(template.names, template.ends, strict=True)
        assert_nothing_is_lost(folder, template, [name for name, end in pairs if end > size])
        if size < last:
            assert f"shard a.tar is damaged: {CHANGED}: " in warned(), size


@pytest.mark.slow
def test_flip_every_header(folder: Path, template: Template, warned: Callable[[], str]) -> None:
    num_named = 0
    for header, at in field_flips(template):
        put(folder, template, flip(template.content, at), is_indexed=True)
        assert_nothing_is_lost(folder, template, [])  # no header is needed once it is indexed
        text = warned()
        num_named += f"{CHANGED}: unreadable header at offset {header}; " in text
    assert num_named >= 0.9 * len(template.headers) * (len(FIELDS) - 1)


@pytest.mark.faults
@pytest.mark.parametrize("mask", [1 << bit for bit in range(8)])
def test_flip_every_bit(folder: Path, template: Template, mask: int) -> None:
    for at in range(mask % 7, len(template.content), 7):
        put(folder, template, flip(template.content, at, mask), is_indexed=True)
        assert_nothing_is_lost(folder, template, None)


def test_flip_a_byte_of_every_member(
    folder: Path, template: Template, warned: Callable[[], str]
) -> None:
    index = ShardIndex.load(_write(folder / "index", template.index))
    for sample, name in enumerate(template.names):
        image = index.members(sample)["png"]
        content = flip(template.content, image.offset + image.size // 2)
        put(folder, template, content, is_indexed=True)
        assert_nothing_is_lost(folder, template, [name])
        assert f"{CHANGED}: 1 member has other bytes, the first is {name[6:]}.png" in warned()


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 20_000), change=st.binary(min_size=1, max_size=3000), cut=st.booleans())
def test_whatever_happens_to_an_indexed_shard(
    folder: Path, template: Template, at: int, change: bytes, cut: bool
) -> None:
    at %= len(template.content)
    rest = b"" if cut else template.content[at + len(change) :]
    put(folder, template, template.content[:at] + change + rest, is_indexed=True)
    assert_nothing_is_lost(folder, template, None)


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"", "has 0 bytes"),
        (b"\x1f\x8b" + bytes(9000), "is compressed (gzip)"),
        (b"<html>" * 1000, "is not a tar file"),
        (bytes(20480), "zeros from sample 0 of 7 on"),
    ],
    ids=["zero_bytes", "compressed", "no_tar", "zeros"],
)
def test_an_indexed_shard_that_is_something_else_now(
    folder: Path, template: Template, warned: Callable[[], str], content: bytes, finding: str
) -> None:
    content = content.ljust(len(template.content), b"\0") if content.count(0) > 10_000 else content
    put(folder, template, content, is_indexed=True)
    assert_nothing_is_lost(folder, template, template.names)
    assert f"shard a.tar is damaged: {CHANGED}: {finding}" in warned()


def test_the_damage_stands_until_the_shard_is_sound_again(
    folder: Path, template: Template, warned: Callable[[], str]
) -> None:
    put(folder, template, template.content, is_indexed=True)
    sound = open_manifest(folder, "data.shards")
    put(folder, template, template.content[:4096], is_indexed=True)
    for _ in range(2):
        damaged = open_manifest(folder, "data.shards")
        assert CHANGED in warned()
        assert damaged.fingerprint == sound.fingerprint  # so a run resumes
    (folder / "a.tar").write_bytes(template.content[:2048])  # worse
    assert open_manifest(folder, "data.shards").fingerprint == sound.fingerprint
    assert CHANGED in warned()
    (folder / "a.tar").write_bytes(template.content)
    assert open_manifest(folder, "data.shards").fingerprint == sound.fingerprint
    assert warned() == ""
    assert_nothing_is_lost(folder, template, [])


# ---------------------------------------------------------------- without an index


def assert_the_start_is_read(folder: Path, template: Template, offset: int) -> int:
    """Check what is read of a shard that is lost from an offset on; return how many were found.

    A first sample cannot be compared with one before: if it lost a member it is found, and bad.
    """
    num_read = sum(end <= offset for end in template.ends)
    is_half = offset == template.headers[1]
    read, bad = read_all(folder)
    assert sorted(read) == template.names[:num_read] + OTHER
    assert bad == template.names[:1] * is_half
    return num_read + is_half


def test_truncate_every_512b_without_an_index(
    folder: Path, template: Template, warned: Callable[[], str]
) -> None:
    for size in range(BLOCK, template.ends[-1] + 2 * BLOCK, BLOCK):
        put(folder, template, template.content[:size], is_indexed=False)
        num_found = assert_the_start_is_read(folder, template, size)
        text = warned()
        is_end = size >= -(-template.ends[-1] // BLOCK) * BLOCK + BLOCK
        assert is_end == (text == "")
        assert is_end or f"shard a.tar is damaged: cut at offset {size}, " in text
        assert is_end or text.endswith(f"; {count(num_found, 'sample')} before it")


@pytest.mark.slow
def test_flip_every_header_without_an_index(
    folder: Path, template: Template, warned: Callable[[], str]
) -> None:
    num_named = 0
    for header, at in field_flips(template):
        put(folder, template, flip(template.content, at), is_indexed=False)
        if at - header in range(154, 156):  # they end the checksum's digits, and may be read over
            continue
        num_found = assert_the_start_is_read(folder, template, header)
        finding = f"unreadable header at offset {header}; {count(num_found, 'sample')} before it"
        assert warned() == f"shard a.tar is damaged: {finding}"
        num_named += 1
    assert num_named >= 0.9 * len(template.headers) * (len(FIELDS) - 1)


def test_empty_shard(folder: Path, warned: Callable[[], str]) -> None:
    write_shard(folder / "a.tar", [])
    assert read_all(folder) == (OTHER, [])
    assert warned() == "1 shard holds no samples: a.tar; copy again what should"


# ---------------------------------------------------------------- hostile members


def make_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_pickle_member(tmp_path: Path) -> None:
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"))
    shards = tmp_path / "shards"
    shards.mkdir()
    kinds = ("pkl", "pickle", "pyd", "pth", "npy", "cls", "json")
    make_tar(shards / "a.tar", {f"0.{kind}": bomb for kind in kinds} | {"0.png": make_png(1)})
    manifest = open_manifest(shards, "data.shards")
    reader = ShardReader(manifest)
    assert reader.read(0, 0, {*kinds}) == dict.fromkeys(kinds, bomb)
    for labelled in (False, True):
        batch = Samples(manifest, (4, 4), seed=0, labelled=labelled)[Request(0, 0, 1)]
        assert len(batch.places) + len(batch.bad) == 1
        assert labelled == bool(batch.bad)  # what a .cls holds is digits or bad
    assert not (tmp_path / "exploded").exists()


def test_traversal(tmp_path: Path) -> None:
    shards = tmp_path / "in" / "shards"
    shards.mkdir(parents=True)
    (tmp_path / "victim.png").write_bytes(b"mine")
    absolute = f"{tmp_path}/absolute"
    names = ["../../victim", "../x", absolute, "a/../../../y", "./z"]
    make_tar(shards / "a.tar", {f"{name}.png": make_png(i) for i, name in enumerate(names)})
    before = tree(tmp_path)
    read, bad = read_all(shards)
    assert sorted(read) == sorted(f"a.tar/{name}" for name in names)
    assert bad == []
    made = ["in/shards/a.tar.index", "in/shards/manifest.jsonl"]
    assert {name: c for name, c in tree(tmp_path).items() if name not in made} == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("0.png")
        member.type, member.linkname = kind, "../secret"
        tar.addfile(member)
    with pytest.raises(UserError, match=r"^data.shards: shard a.tar: member 0.png is a link; w"):
        open_manifest(tmp_path, "data.shards")


# ---------------------------------------------------------------- hostile indexes


def refusal_of(function: Callable[[], object]) -> object:
    """Call a function that may refuse an index, by name and with the remedy; return what came."""
    try:
        return function()
    except UserError as error:
        return "delete it and it will be made again" in str(error) or pytest.fail(str(error))


def test_flip_every_byte_of_an_index(folder: Path, template: Template) -> None:
    """It is refused, by name and with the remedy, or has no effect: no other exception."""
    put(folder, template, template.content, is_indexed=True)
    shard = open_manifest(folder, "data.shards").shards[0]
    sound = load_index(shard)
    assert isinstance(sound, ShardIndex)
    expected = [(sound.key(i), sound.members(i)) for i in range(NUM)]
    for at in range(len(template.index)):
        shard.index_path.write_bytes(flip(template.index, at))
        found = refusal_of(partial(load_index, shard))
        if isinstance(found, ShardIndex):
            assert [(found.key(i), found.members(i)) for i in range(NUM)] == expected


def test_the_index_of_another_shard_is_refused(folder: Path, template: Template) -> None:
    put(folder, template, template.content, is_indexed=True)
    manifest = open_manifest(folder, "data.shards")
    manifest.shards[1].index_path.replace(manifest.shards[0].index_path)
    with pytest.raises(UserError, match=r"a.tar.index is the index of another tar than shard a.t"):
        load_index(manifest.shards[0], Storage())


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), change=st.binary(min_size=1, max_size=40))
def test_whatever_happens_to_a_manifest(
    folder: Path, template: Template, at: int, change: bytes
) -> None:
    """It costs another scan, or is noticed when the index is opened."""
    put(folder, template, template.content, is_indexed=True)
    at %= len(template.manifest)
    path = folder / "manifest.jsonl"
    path.write_bytes(template.manifest[:at] + change + template.manifest[at + len(change) :])
    refusal_of(lambda: assert_nothing_is_lost(folder, template, []))
