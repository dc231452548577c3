"""The sample schema; writing shards."""

import io
import tarfile
from pathlib import Path

import pytest
from webdataset.compat import WebDataset

from data.settings import UserError
from data.shards import ImageFile, split_name, write_shard

SAMPLES = [
    ImageFile("a/0", "jpg", b"first", 3),
    ImageFile("a/" + "long" * 60, "png", b"second" * 400, 0),
    ImageFile("é", "webp", b"third"),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0001.jpg", ("0001", "jpg")),
        ("a.b/c.Seg.PNG", ("a.b/c", "seg.png")),
        ("./0001.cls", ("./0001", "cls")),
        ("readme", None),
        ("a/.hidden.", ("a/", "hidden.")),
        ("__meta__/x.json", None),
    ],
)
def test_split_name_follows_webdataset(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "a.tar", SAMPLES) == 3
    read = list(WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [sample.key for sample in SAMPLES]
    assert [sample[s.extension] for sample, s in zip(read, SAMPLES, strict=True)] == [
        sample.data for sample in SAMPLES
    ]
    assert [sample.get("cls") for sample in read] == [b"3", b"0", None]


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, iter(SAMPLES))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        member = tar.getmembers()[0]
    assert (member.mtime, member.uname, member.gname, member.uid) == (0, "", "", 0)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"old")
    with pytest.raises(UserError, match="twice"):
        write_shard(tmp_path / "a.tar", [SAMPLES[0], SAMPLES[0]])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    assert (tmp_path / "a.tar").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (ImageFile("a.b", "jpg", b""), "would not read the key 'a.b' back; use one without dots"),
        (ImageFile("__m__/a", "jpg", b""), "would not read the key '__m__/a' back"),
        (ImageFile("a", "json", b""), "a.json is not an image; use one of apng,"),
    ],
)
def test_samples_that_could_not_be_read_back(tmp_path: Path, sample: ImageFile, text: str) -> None:
    with pytest.raises(UserError, match=text):
        write_shard(tmp_path / "a.tar", [sample])


def test_a_shard_ends_with_two_zero_blocks(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", SAMPLES)
    with (tmp_path / "a.tar").open("rb") as file:
        file.seek(-1024, io.SEEK_END)
        assert file.read() == bytes(1024)
