"""One reading of a shard: what is found, named and refused."""

import gzip
import hashlib
import io
import pickle
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import data.index.scan
from data.index.offsets import ShardIndex
from data.index.scan import ScanResult, UnusableShard
from data.settings import RunStopped, UserError
from data.shards import ImageFile, write_shard
from data.storage.files import LocalFile

BLOCK = 512


def samples(number: int = 6, size: int = 700) -> list[ImageFile]:
    """Samples of different bytes; each takes 3 + 2 blocks in the tar."""
    return [ImageFile(f"{i:04d}", "jpg", bytes([i]) * (size + i), i) for i in range(number)]


def scan(path: Path, name: str) -> ScanResult:
    with closing(LocalFile(path)) as file:
        return data.index.scan.scan(file, name)


def make_tar(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    write_shard(path, samples())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UnusableShard) as caught:
        scan(path, "in/" + path.name)
    text = str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == text  # it crosses processes
    assert f"in/{path.name}" in text
    assert "\n" not in text
    return text


def test_offsets_and_checksums_are_those_of_tarfile(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    long = ImageFile("folder/" + "k" * 150, "png", b"p" * 3_000_000, 7)  # with an extended header
    write_shard(path, [*samples(), long, ImageFile("last", "gif", b"")])
    result = scan(path, "a.tar")
    content = path.read_bytes()
    found = {
        f"{result.index.key(i)}.{extension}": (member, content[member.offset :][: member.size])
        for i in range(len(result.index))
        for extension, member in result.index.members(i).items()
    }
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.isfile()]
        expected = {m.name: tar.extractfile(m).read() for m in members}  # pyright: ignore[reportOptionalMemberAccess]
    assert {name: data for name, (_, data) in found.items()} == expected
    assert all(member.crc32 == zlib.crc32(data) for member, data in found.values())
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert (result.num_bytes, result.damage) == (len(content), None)


def test_save_and_load_round_trip(tmp_path: Path, shard: Path) -> None:
    index = scan(shard, "a.tar").index
    index.save(tmp_path / "a.tar.index")
    loaded = ShardIndex.load(tmp_path / "a.tar.index")
    assert len(loaded) == len(index) == 6
    assert [loaded.key(i) for i in range(6)] == [sample.key for sample in samples()]
    assert [loaded.members(i) for i in range(6)] == [index.members(i) for i in range(6)]


def test_an_index_that_is_cut_is_refused(tmp_path: Path, shard: Path) -> None:
    path = tmp_path / "a.tar.index"
    scan(shard, "a.tar").index.save(path)
    for size in (0, 5, 100, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(UserError, match=r"a.tar.index is not an index; delete it"):
            ShardIndex.load(path)


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [])
    result = scan(tmp_path / "a.tar", "a.tar")
    assert (len(result.index), result.damage) == (0, None)
    result.index.save(tmp_path / "a.index")
    assert len(ShardIndex.load(tmp_path / "a.index")) == 0


def test_members_that_webdataset_skips_are_passed_over(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", ["__m__/a.x", "0.jpg", "README", "0.cls", "1.JPG"])
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    index = scan(path, "a.tar").index
    assert [(index.key(i), list(index.members(i))) for i in range(len(index))] == [
        ("0", ["jpg", "cls"]),
        ("1", ["jpg"]),
    ]


Change = Callable[[bytes], bytes]


def cut(blocks: int, more: int = 0) -> Change:
    return lambda content: content[: blocks * BLOCK + more]


def flip(offset: int) -> Change:
    return lambda content: content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]


def zero(block: int) -> Change:
    return lambda content: content[: block * BLOCK] + bytes(BLOCK) + content[(block + 1) * BLOCK :]


def add_a_byte(content: bytes) -> bytes:
    return content + b"x"


# Each sample of `samples` takes 5 blocks: cls header, cls, jpg header, 2 of jpg.
@pytest.mark.parametrize(
    ("change", "text", "num_samples"),
    [
        (cut(15), "cut at offset 7680, without an end marker; 3 samples", 3),
        (cut(17), "cut at offset 8704, without an end marker; 3 samples", 3),
        (cut(17, 99), "cut at offset 8803, without an end marker; 3 samples", 3),
        (cut(18, 9), "cut at offset 9225, inside 0003.jpg; 3 samples", 3),
        (cut(3, 9), "cut at offset 1545, inside 0000.jpg; 0 samples", 0),
        (flip(10 * BLOCK + 3), "unreadable header at offset 5120; 2 samples", 2),
        (flip(12 * BLOCK + 3), "unreadable header at offset 6144; 2 samples", 2),
        (flip(3), "unreadable header at offset 0; 0 samples", 0),
        (zero(10), "data after the end marker, at offset 5632; 2 samples", 2),
        (add_a_byte, "data after the end marker, at offset 20480; 6", 6),
    ],
)
def test_damage_is_named(shard: Path, change: Change, text: str, num_samples: int) -> None:
    damaged = change(shard.read_bytes())
    shard.write_bytes(damaged)
    result = scan(shard, "a.tar")
    assert result.damage is not None
    assert text in result.damage
    assert len(result.index) == num_samples
    assert [len(result.index.members(i)) for i in range(num_samples)] == [2] * num_samples
    assert result.sha256 == hashlib.sha256(damaged).hexdigest()


def test_a_damaged_extended_header_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, [*samples(1), ImageFile("k" * 150, "png", b"p")])
    path.write_bytes(flip(7 * BLOCK + 3)(path.read_bytes()))  # the header after the extended one
    assert scan(path, "a").damage == "unreadable header at offset 2560; 1 sample before it"


def test_files_that_are_no_plain_tar(tmp_path: Path, shard: Path) -> None:
    for content, text in (
        (b"", "has 0 bytes; write or copy it again"),
        (
            b"hello " * 300,
            "is not a tar file but a text file; name only tar files, or m",
        ),
        (gzip.compress(shard.read_bytes()), r"is compressed (gzip), so samples cannot be read by"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed (zstd)"),
        (b"BZh9" + bytes(600), "is compressed (bzip2)"),
        (b"\xfd7zXZ\0" + bytes(600), "is compressed (xz)"),
    ):
        path = tmp_path / "b.tar"
        path.write_bytes(content)
        assert text in refusal(path)
    named = shard.rename(tmp_path / "a.tar.gz")
    assert "unpack it to a plain .tar" in refusal(named)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["0.jpg", "1.jpg", "0.jpg"], "key 0 occurs twice, with other keys between"),
        (["0.jpg", "1.jpg", "0.cls"], "key 0 occurs twice, with other keys between"),
        (["0.jpg", "0.cls", "0.jpg"], "member 0.jpg occurs twice"),
        (["0.jpg", "0.JPG"], "member 0.JPG occurs twice"),
    ],
    ids=["duplicate_keys", "split_keys", "twice", "case"],
)
def test_duplicate_keys_are_refused(tmp_path: Path, names: list[str], what: str) -> None:
    text = refusal(make_tar(tmp_path / "a.tar", names))
    assert text == (
        f"shard in/a.tar: {what}, so samples would be mixed up; write the shard again with unique "
        "keys, each sample's members side by side"
    )


def test_all_members_to_blame_are_named(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", ["0.jpg", "0.jpg", "1.jpg", "0.cls", "1.cls"])
    with pytest.raises(UnusableShard, match=r"member 0.jpg occurs twice \(and 2 more\)") as caught:
        scan(path, "a.tar")
    assert caught.value.members == [
        "member 0.jpg occurs twice",
        "key 0 occurs twice, with other keys between",
        "key 1 occurs twice, with other keys between",
    ]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (tarfile.SYMTYPE, "member 1.jpg is a link"),
        (tarfile.LNKTYPE, "member 1.jpg is a link"),
        (tarfile.FIFOTYPE, "member 1.jpg is neither a file nor a folder"),
        (tarfile.GNUTYPE_SPARSE, "member 1.jpg is sparse"),
    ],
)
def test_members_without_own_bytes_are_refused(tmp_path: Path, kind: bytes, text: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("0.jpg"))
        member = tarfile.TarInfo("1.jpg")
        member.type, member.linkname = kind, "0.jpg"
        tar.addfile(member)
    assert text in refusal(tmp_path / "a.tar")


# ---------------------------------------------------------------- hostile headers


def header(name: str = "0.jpg", size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with a right checksum, whatever it claims; sizes beyond octal are base 256."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    octal = f"{size:011o}\0".encode() if 0 <= size < 8**11 else b""
    block[124:136] = octal or (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11)
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize("size", [-1, -512, -1024, -(10**9)])
def test_a_size_below_zero_leads_nowhere(tmp_path: Path, size: int) -> None:
    path = make_tar(tmp_path / "a.tar", ["0.jpg"])
    content = path.read_bytes()[: 2 * BLOCK]
    path.write_bytes(content + header("1.jpg", size) + bytes(2 * BLOCK))
    result = scan(path, "a.tar")
    assert result.damage == "unreadable header at offset 1024; 1 sample before it"
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [10 * 10**9, 10**20])
def test_a_header_that_declares_10_gb_costs_no_memory(
    tmp_path: Path, kind: bytes, size: int
) -> None:
    path = make_tar(tmp_path / "a.tar", ["0.jpg"])
    path.write_bytes(path.read_bytes()[: 2 * BLOCK] + header("1.jpg", size, kind) + bytes(BLOCK))
    tracemalloc.start()
    result = scan(path, "a.tar")
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()
    texts = {
        tarfile.REGTYPE: "cut at offset 2048, inside 1.jpg; 1 sample before it",
    }
    expected = texts.get(kind, "unreadable header at offset 1024; 1 sample before it")
    assert result.damage == expected


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_name_of_64_mb_costs_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes
) -> None:
    monkeypatch.setattr(data.index.scan, "_CHUNK", 1 << 16)
    path = make_tar(tmp_path / "a.tar", ["0.jpg"])
    path.write_bytes(path.read_bytes()[: 2 * BLOCK] + header("x", 64 << 20, kind))
    with path.open("r+b") as file:
        file.truncate(65 << 20)
    tracemalloc.start()
    result = scan(path, "a.tar")
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()
    assert result.damage == "unreadable header at offset 1024; 1 sample before it"


def test_a_long_chain_of_extended_headers_is_damage(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", ["0.jpg"])
    chain = (header("x", 0, tarfile.XHDTYPE)) * 20_000
    path.write_bytes(path.read_bytes()[: 2 * BLOCK] + chain + bytes(2 * BLOCK))
    assert scan(path, "a").damage == "unreadable header at offset 1024; 1 sample before it"


@pytest.mark.parametrize("text", [b"20 GNU.sparse.size=x\n", b"9999 path=a\n", b"7 a=\xff\n", b"x"])
def test_what_extended_headers_may_hold(tmp_path: Path, text: bytes) -> None:
    path = make_tar(tmp_path / "a.tar", ["0.jpg"])
    extended = header("x", len(text), tarfile.XHDTYPE) + text.ljust(BLOCK, b"\0")
    path.write_bytes(path.read_bytes()[: 2 * BLOCK] + extended + header("1.jpg") + bytes(2 * BLOCK))
    result = scan(path, "a")  # no exception: a member more or less, or damage
    assert len(result.index) in (1, 2)


def test_zeros_instead_of_the_rest_are_named(tmp_path: Path) -> None:
    """A file that was given its size, but whose pages were never written."""
    path = make_tar(tmp_path / "a.tar", ["0.jpg", "1.jpg"])
    with path.open("r+b") as file:
        file.truncate(2 * BLOCK)
        file.truncate(3 << 20)
    assert scan(path, "a").damage == (
        "zeros from offset 1536 to the end, more than end a tar; 1 sample before it"
    )


def test_names_of_members_cannot_forge_lines(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", ["a\n\x1b[2Jok.jpg"] * 2)
    assert r": member a\n\x1b[2Jok.jpg occurs twice" in refusal(path)
    path.write_bytes(path.read_bytes()[: BLOCK + 2])
    assert "inside a\\n\\x1b[2Jok.jpg" in str(scan(path, "a").damage)


class _Failing(LocalFile):
    """Fails once, at the first read that is not of the start."""

    error: Exception | None

    def read(self, offset: int, size: int) -> bytes:
        if offset and self.error is not None:
            error, self.error = self.error, None
            raise error
        return super().read(offset, size)


@pytest.mark.parametrize("error", [UserError("x"), RunStopped("x"), OSError("x")])
def test_what_the_storage_raises_is_no_damage(
    shard: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(data.index.scan, "_CHUNK", 2 * BLOCK)  # so that it fails in a header
    file = _Failing(shard)
    file.error = error
    with pytest.raises(type(error), match="x"):
        data.index.scan.scan(file, "a.tar")
    file.close()


@pytest.mark.parametrize("chunk", [512, 513, 1024, 5000])
def test_any_chunks_give_the_same(shard: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    expected = scan(shard, "a.tar")
    monkeypatch.setattr(data.index.scan, "_CHUNK", chunk)
    found = scan(shard, "a.tar")
    assert (found.sha256, found.damage) == (expected.sha256, None)
    assert found.index.crc32s.tolist() == expected.index.crc32s.tolist()
    assert found.index.has_layout_of(expected.index)


KEYS = st.text("ab/é.\n\udcff", min_size=1, max_size=130)
CONTENT = st.lists(st.tuples(KEYS, st.binary(max_size=1200)), max_size=6)


@settings(max_examples=60)
@given(content=CONTENT, at=st.integers(0, 10_000), change=st.binary(min_size=1, max_size=600))
def test_whatever_is_overwritten_the_scan_ends_and_hashes_all(
    content: list[tuple[str, bytes]],
    at: int,
    change: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, body in content:
            member = tarfile.TarInfo(f"{name}.jpg")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    whole = bytearray(path.read_bytes())
    whole[at : at + len(change)] = change
    path.write_bytes(whole)
    try:
        result = scan(path, "a.tar")
    except UnusableShard:
        return
    assert result.sha256 == hashlib.sha256(whole).hexdigest()
    for i in range(len(result.index)):
        for member in result.index.members(i).values():
            body = whole[member.offset :][: member.size]
            assert (len(body), zlib.crc32(body)) == (member.size, member.crc32)


# ---------------------------------------------------------------- hidden files, dots in names


def found_in(path: Path) -> dict[str, list[str]]:
    """Map each key of a shard to its extensions."""
    index = scan(path, path.name).index
    return {index.key(i): list(index.members(i)) for i in range(len(index))}


def test_a_tar_of_a_folder_made_on_macos(tmp_path: Path) -> None:
    """Before each file lies one of its attributes, whose key would be the folder's name."""
    names = [f"img/{n:04d}.{e}" for n in range(3) for e in ("jpg", "cls")]
    with_attributes = [n for name in names for n in (name.replace("/", "/._"), name)]
    path = make_tar(tmp_path / "a.tar", ["img/.DS_Store", "./._img", *with_attributes])
    plain = make_tar(tmp_path / "b.tar", names)
    assert found_in(path) == found_in(plain) == {f"img/{n:04d}": ["jpg", "cls"] for n in range(3)}
    result, content = scan(path, "a.tar"), path.read_bytes()
    for sample in range(3):
        for extension, member in result.index.members(sample).items():
            name = f"img/{sample:04d}.{extension}".encode()
            assert content[member.offset :][: member.size] == name
    assert result.beside == (8, "img/.DS_Store", None)
    assert result.damage is None


@pytest.mark.parametrize(
    "name",
    [
        "._a.jpg",
        "img/._a.jpg",
        "./.DS_Store",
        "img/.DS_Store",
        "__MACOSX/img/a.jpg",
        "img/__MACOSX/a.jpg",
        "img/Thumbs.db",
        "desktop.ini",
        "img/PaxHeader/a.jpg",
        "./PaxHeaders.123/a.jpg",
        "img/@eaDir/a.jpg",
        ".thumbnails/a.jpg",
        "img/.a.jpg",
    ],
)
def test_what_a_system_leaves_behind_is_passed_over(tmp_path: Path, name: str) -> None:
    path = make_tar(tmp_path / "a.tar", ["img/0.jpg", name, "img/0.cls", "img/1.jpg", name])
    assert found_in(path) == {"img/0": ["jpg", "cls"], "img/1": ["jpg"]}
    assert scan(path, "a.tar").beside.num_hidden == 2


@pytest.mark.parametrize("name", ["./0.jpg", "../0.jpg", "a.b/0.jpg", "MACOSX/0.jpg", "db/0.jpg"])
def test_other_names_are_not_hidden(tmp_path: Path, name: str) -> None:
    path = make_tar(tmp_path / "a.tar", [name])
    assert found_in(path) == {name.removesuffix(".jpg"): ["jpg"]}


def test_a_hidden_link_is_passed_over_too(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", ["0.jpg"])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("img/.latest")
        link.type, link.linkname = tarfile.SYMTYPE, "0.jpg"
        tar.addfile(link)
    assert scan(path, "a.tar").beside == (1, "img/.latest", None)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            [f"{n:04d}.{e}" for n in range(8) for e in ("image.jpg", "cls")],
            "holds 8 samples and no image: the members of 0000 end in .image.jpg, .cls; a key ends "
            "at the first dot of a name, so names should have one, as in 0001.jpg",
        ),
        (
            [f"2024.05.01_{n}.jpg" for n in range(12)],
            "holds 1 sample and no image: the members of 2024 end in .05.01_0.jpg, .05.01_1.jpg, "
            ".05.01_2.jpg and 9 more; a key ends at the first dot",
        ),
        (["0.txt", "0.cls"], "of 0 end in .txt, .cls; images end in .jpg, .png and"),
    ],
)
def test_a_shard_without_images_says_what_is_there(
    tmp_path: Path, names: list[str], text: str
) -> None:
    assert text in refusal(make_tar(tmp_path / "a.tar", names))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ["a.jpg", "photo.jpg", "photo.1.jpg", "photo.2.jpg"],
            "2 images are not used: photo.1.jpg belongs to the sample photo, which has an image; ",
        ),
        (
            ["a.jpg", "b.jpg", "c.jpg", "c.holiday.JPG"],
            "1 image is not used: c.holiday.jpg belongs to the sample c, which has an image; a key",
        ),
        (
            ["a.jpg", "b.2.jpg", "b.3.jpg"],
            "1 of its 2 samples has no image: the members of b end in .2.jpg, .3.jpg; a key ends",
        ),
        (["a.jpg", "b.txt"], "1 of its 2 samples has no image: the members of b end in .txt; ima"),
        (["a.jpg", "a.seg.png", "b.jpg", "b.seg.png"], None),  # a field of each sample
        (["a.jpg", "a.cls", "b.jpg", "b.meta.json"], None),
    ],
)
def test_names_with_dots_are_noticed(tmp_path: Path, names: list[str], text: str | None) -> None:
    doubtful = scan(make_tar(tmp_path / "a.tar", names), "a.tar").beside.doubtful
    assert (doubtful is None) == (text is None)
    assert (text or "") in (doubtful or "")
