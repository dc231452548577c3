"""Zip and tar archives as sources; hostile ones too."""

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

import data.sources.options
from data.folder.plan import SourceImages, load_samples
from data.settings import UserError
from data.sources.find import find_source
from data.sources.members import Member, sort_members
from data.sources.options import SourceOptions, windows
from tests.conftest import make_png, no_root_rights
from tests.data.sources.conftest import FILES, SOURCES, write_folder, write_tar, write_zip

IMAGE = make_png(1)
SKIP = SourceOptions(skip_unreadable=True)


def find(source: Path, options: SourceOptions | None = None) -> SourceImages:
    return find_source(source, options or SourceOptions())


def contents(source: Path, found: SourceImages) -> dict[str, bytes]:
    samples = load_samples(source, found, found.images)
    return {image.path: sample.data for image, sample in zip(found.images, samples, strict=True)}


ARCHIVES = [kind for kind in SOURCES if kind.startswith(("zip", "tar"))]


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_is_as_its_folder(kind: str, photos: Path, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    found, folder = find(source), find(photos)
    assert (found.images, found.classes) == (folder.images, folder.classes)
    assert contents(source, found) == FILES
    backwards = found.images[::-1]  # in any order, also of what is read forwards
    assert list(found.read(backwards)) == [FILES[image.path] for image in backwards]
    before = sorted(tmp_path.rglob("*"))
    assert sorted(tmp_path.rglob("*")) == before == [source]  # nothing was unpacked


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_folder_within_an_archive(kind: str, tmp_path: Path) -> None:
    files = {f"{split}/{name}": data for split in ("train", "val") for name, data in FILES.items()}
    write = write_zip if kind == "zip" else write_tar
    source = write(tmp_path / f"a.{kind}", files)
    with pytest.raises(UserError, match="SOURCE holds train, val, which would be 2 classes"):
        find(source)
    found = find(source / "train")
    assert contents(source, found) == FILES
    assert found.origin.endswith("images below train/")
    with pytest.raises(UserError, match="holds no image that can be read: there is no file"):
        find(source / "gone")


def hostile() -> dict[str, bytes]:
    return {
        "cat/a.png": IMAGE,
        "dog/b.png": IMAGE,
        "/abs/../../etc/x.png": IMAGE,
        "../up.png": IMAGE,
        "cat/._a.png": b"x",
        "__MACOSX/cat/a.png": b"x",
        ".git/x.png": IMAGE,
        "cat/inner.zip": b"PK",
        "cat/notes.txt": b"text",
        "cat/empty.png": b"",
        "cat/line\nbreak.png": IMAGE,
    }


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_hostile_members_are_named_and_nothing_is_written(kind: str, tmp_path: Path) -> None:
    if kind == "zip":
        source = write_zip(tmp_path / "a.zip", hostile())
    else:
        source = write_tar(tmp_path / "a.tar", hostile(), "w:gz" if kind == "tar.gz" else "w")
        add_links(source, kind)
    found = find(source)
    assert [image.path for image in found.images] == [
        "cat/a.png", "cat/line\nbreak.png", "dog/b.png",
    ]  # fmt: skip
    assert found.classes == ("cat", "dog")
    text = "; ".join(found.left_out)
    for part in (
        "1 empty file (cat/empty.png)",
        "2 names that lead out of the archive (/abs/../../etc/x.png, ../up.png)",
        "1 archive inside the archive (cat/inner.zip)",
        "1 file that is no image (1 .txt: cat/notes.txt)",
        "2 files of macOS or Windows (cat/._a.png, __MACOSX)",
        "1 hidden name (.git)",
    ):
        assert part in text
    if kind == "tar":
        assert "2 links (cat/hard.png, cat/soft.png)" in text
        assert "1 member that is no file (cat/pipe)" in text
    assert list(tmp_path.iterdir()) == [source]


def add_links(source: Path, kind: str) -> None:
    if kind != "tar":
        return
    with tarfile.open(source, "a") as archive:
        for name, type_, target in (
            ("cat/hard.png", tarfile.LNKTYPE, "cat/a.png"),
            ("cat/soft.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("cat/pipe", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = type_, target
            archive.addfile(member)


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "a.zip", {"a.png": IMAGE})
    with zipfile.ZipFile(source, "a") as archive:
        link = zipfile.ZipInfo("b.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert find(source).left_out == ("1 link (b.png)",)


def test_of_files_of_one_name_the_last_is_taken(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "a.tar", {"a.png": IMAGE})
    with tarfile.open(source, "a") as archive:
        member = tarfile.TarInfo("./a.png")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"new"))
    found = find(source)
    assert contents(source, found) == {"a.png": b"new"}
    assert found.left_out == ("1 file that a later one of its name replaces (a.png)",)


def test_a_top_folder_is_no_class_unless_it_is_one_of_the_list() -> None:
    members = [Member(f"cat/{n}.png", 5, "file", n) for n in range(2)]
    assert sort_members(members).top == "cat"
    assert sort_members(members, classes=["cat", "dog"]).top == ""


def patched(source: Path, signature: bytes, offset: int, value: bytes) -> Path:
    """Change a field of each header of a zip."""
    content = bytearray(source.read_bytes())
    place = content.find(signature)
    while place >= 0:
        content[place + offset : place + offset + len(value)] = value
        place = content.find(signature, place + 4)
    source.write_bytes(content)
    return source


def test_encrypted_and_damaged_members_of_a_zip(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "a.zip", {"a.png": IMAGE, "b.png": make_png(2), "c.txt": b"x"})
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        patched(source, signature, offset, b"\1\0")
    with pytest.raises(
        UserError, match=r"cannot be read \(a.png: encrypted, b.png: encrypted\); mend it, or leave"
    ):
        find(source)
    with pytest.raises(UserError, match="holds no image that can be read: 2 places that cannot"):
        find(source, SKIP)
    source = write_zip(tmp_path / "b.zip", {"a.png": IMAGE, "b.png": make_png(2)})
    patched(source, make_png(2)[:8], 0, b"")
    with zipfile.ZipFile(source) as archive:
        place = archive.infolist()[1].header_offset + 40
    content = bytearray(source.read_bytes())
    content[place + 20] ^= 0xFF
    source.write_bytes(content)
    found = find(source)  # without a passage over all bytes it is not known
    with pytest.raises(UserError, match=r"b.zip: b.png cannot be read .*--skip-unreadable"):
        contents(source, found)
    found = find(source, SKIP)
    assert contents(source, found) == {"a.png": IMAGE}
    assert "1 place that cannot be looked at (b.png: " in found.left_out[0]


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.members.MAX_MEMBER_BYTES", 1 << 20)
    big = {"big.png": bytes(2 << 20), "a.png": IMAGE}
    for source in (
        write_zip(tmp_path / "a.zip", big),
        write_tar(tmp_path / "a.tar.gz", big, "w:gz"),
    ):
        found = find(source)
        assert list(contents(source, found)) == ["a.png"]
        assert "1 image over" in found.left_out[0]
        assert "(big.png)" in found.left_out[0]
    source = write_zip(tmp_path / "b.zip", big)  # claims little, and holds more
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        patched(source, signature, offset, struct.pack("<I", 1000))
    found = find(source)
    with pytest.raises(UserError, match="cannot be read"):
        contents(source, found)
    source = write_zip(tmp_path / "c.zip", {f"{n}.png": IMAGE * 4 for n in range(50)})
    content = source.read_bytes()
    start = content.index(b"PK\x01\x02")
    source.write_bytes(content[: len(content) // 4 // 50] + content[start:])
    with pytest.raises(UserError, match=r"c.zip"):
        find(source)


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("cut", [700, 5_000, 9_000])
def test_a_tar_that_breaks_off(kind: str, cut: int, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", FILES).read_bytes()
    source = tmp_path / f"a.{kind}"
    if kind == "tar":
        source.write_bytes(whole[:cut])
    else:
        packed = write_tar(tmp_path / "whole.tar.gz", FILES, "w:gz").read_bytes()
        source.write_bytes(packed[: len(packed) * cut // len(whole)])
    with pytest.raises(UserError, match=r"cannot be read \(.*a.tar.*: .*--skip-unreadable"):
        find(source)
    if cut == 700:  # no image is whole
        with pytest.raises(UserError, match=r"holds no image .*\(a.tar.*: "):
            find(source, SKIP)
        return
    found = find(source, SourceOptions(is_unlabelled=True, skip_unreadable=True))
    own = contents(source, found)
    assert own
    assert set(own.values()) < set(FILES.values())
    assert f"({source.name}: " in found.left_out[-1]


def test_a_header_in_the_middle_that_is_none(tmp_path: Path) -> None:
    """Tarfile alone would end there in silence."""
    source = write_tar(tmp_path / "a.tar", FILES)
    with tarfile.open(source) as archive:
        places = [member.offset for member in archive]
    content = bytearray(source.read_bytes())
    content[places[5] : places[5] + 512] = b"\xff" * 512
    source.write_bytes(content)
    with pytest.raises(UserError, match=r"a.tar: it breaks off after 5 members"):
        find(source)
    found = find(source, SKIP)
    assert contents(source, found) == dict(list(FILES.items())[:5])


def test_a_header_that_claims_gigabytes(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 8 << 30
    source = tmp_path / "a.tar"
    source.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(UserError, match="a header is too long"):
        find(source)


def test_a_shard_is_recognised(tmp_path: Path) -> None:
    files = {f"{n:04d}.{end}": make_png(n) for n in range(3) for end in ("png", "cls")}
    source = write_tar(tmp_path / "shard.tar", files)
    with pytest.raises(
        UserError,
        match=r"shard.tar is a webdataset shard already \(0000.png beside 0000.cls\); use it as "
        r"it is: data.shards=.*shard.tar. Or give --unlabelled",
    ):
        find(source)
    assert len(find(source, SourceOptions(is_unlabelled=True)).images) == 3
    source = write_tar(tmp_path / "shard.tar.gz", files, "w:gz")
    with pytest.raises(UserError, match=r"once it is unpacked to a plain tar \(gzip -d\)"):
        find(source)
    files = {"a/0.png": IMAGE, "a/0.txt": b"about", "a/1.png": IMAGE}
    assert len(find(write_tar(tmp_path / "no_shard.tar", files)).images) == 2


def test_names_without_the_flag_of_utf8_and_with_backslashes(tmp_path: Path) -> None:
    name = "\u732b\\caf\u00e9\\a.png"
    source = write_zip(tmp_path / "a.zip", {name: IMAGE, "dog/b.png": IMAGE})
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        patched(source, signature, offset, b"\0\0")
    found = find(source)
    assert found.classes == ("dog", "\u732b")
    assert found.images[1].path == "\u732b/caf\u00e9/a.png"


def test_what_is_read_forwards_is_read_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(data.sources.options, "WINDOW_BYTES", 3 * len(IMAGE))
    source = SOURCES["tar.gz"](tmp_path)
    found = find(source)
    own = list(windows(found.images))
    assert [image for window in own for image in window] == list(found.images)
    assert 3 < len(own) < len(FILES)
    with caplog.at_level("INFO"):
        assert contents(source, found) == FILES
    assert f"is read {len(own)} times, as it is compressed" in caplog.text
    source.write_bytes(b"")
    with pytest.raises(UserError, match=r"a.tar.gz"):
        contents(source, found)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_changes_is_not_read_wrongly(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    found = find(source)
    source.write_bytes(source.read_bytes()[: os.path.getsize(source) // 3])  # noqa: PTH202
    with pytest.raises(UserError, match=r"changed|cannot be read"):
        contents(source, found)


@pytest.mark.parametrize("suffix", ["zip", "tar", "gz", "jpg", "json", ""])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(40), b"\x1f\x8b" + bytes(40), b"x"])
def test_files_that_are_no_source(suffix: str, content: bytes, tmp_path: Path) -> None:
    source = tmp_path / f"a.{suffix}"
    source.write_bytes(content)
    with pytest.raises(UserError, match=r"SOURCE=.*give a folder of images, a tar or zip archive"):
        find(source)


def test_an_archive_that_was_not_copied_whole(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "a.zip", FILES).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a.zip is a zip archive without its end, as after"):
        find(tmp_path / "a.zip")
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=rf"{name} is an empty file; copy it again, or give"):
            find(tmp_path / name)


def test_options_of_tables_are_refused(photos: Path, tmp_path: Path) -> None:
    options = SourceOptions(image_column="x", root=tmp_path)
    for source, what in ((photos, "a folder of images"), (SOURCES["zip"](tmp_path), "an archive")):
        with pytest.raises(UserError, match=f"--image-column, --root is for a table .* is {what}"):
            find(source, options)


@pytest.mark.parametrize(
    ("names", "end"),
    [
        (("a.zip", "list.csv"), r"no image but a.zip; give one of them as SOURCE$"),
        (("list.csv", "x.json"), r"no image but list.csv; give one of them as SOURCE$"),
        (
            ("a.tar", "manifest.jsonl"),
            r"as SOURCE; webdataset shards are used as they are, data.sh",
        ),
        (("x.json",), r"no image that can be read: 1 file that is no image \(1 .json: x.json\)"),
    ],
)
def test_a_folder_of_sources_alone(names: tuple[str, ...], end: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=end):
        find(write_folder(tmp_path, dict.fromkeys(names, b"x")))


def test_archives_in_an_archive_alone(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "a.zip", {"train.tar.gz": b"x", "README": b"x"})
    with pytest.raises(
        UserError, match=r"holds no image but train.tar.gz; unpack it, and give each"
    ):
        find(source)


def test_a_folder_that_may_not_be_read_wholly_is_left_out_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o777)
    source = write_folder(Path("source"), {"cat/a.png": IMAGE, "cat/b.png": IMAGE})
    (source / "cat/b.png").chmod(0)
    with no_root_rights():
        with pytest.raises(UserError, match=r"cat/b.png: Permission denied"):
            find(source)
        found = find(source, SKIP)
    assert [image.path for image in found.images] == ["cat/a.png"]
    assert found.left_out == ("1 place that cannot be looked at (cat/b.png: Permission denied)",)
