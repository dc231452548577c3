"""scripts/make_shards.py --max-side: images that are shrunk while shards are made."""

import io
from pathlib import Path

import pytest
from PIL import Image

import scripts.make_shards
from data.index.open import open_manifest
from data.reading.reader import ShardReader
from data.settings import UserError
from tests.conftest import make_png

Printed = pytest.CaptureFixture[str]
OPTIONS = ("--max-side", 32, "--shard-mb", 0.02, "--captions")


def make(*arguments: object) -> None:
    scripts.make_shards.main([*map(str, arguments)])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Large, small and transparent images of two classes, each with a caption."""
    folder = tmp_path / "source"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(8):
            size = (96, 64) if number < 6 else (20, 24)
            (folder / label / f"{number}.png").write_bytes(make_png(number, size))
            (folder / label / f"{number}.txt").write_text(f"{label} number {number}\n")
    Image.new("RGBA", (60, 60)).save(folder / "cat/clear.png")
    (folder / "cat/clear.txt").write_text("nothing\n")
    (folder / "dog/cut.png").write_bytes(make_png(1, (96, 64))[:300])
    (folder / "dog/cut.txt").write_text("half a dog\n")
    return folder


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def samples(out: Path) -> dict[str, dict[str, bytes]]:
    """All members by the key of their sample."""
    manifest = open_manifest(str(out / "*.tar"), "x")
    reader = ShardReader(manifest)
    return {
        reader.key(shard, place): reader.read(shard, place, {"jpg", "png", "cls", "txt"})
        for shard, entry in enumerate(manifest.shards)
        for place in range(entry.num_samples)
    }


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_large_images_are_shrunk_and_all_else_is_kept(
    source: Path, tmp_path: Path, capsys: Printed
) -> None:
    make(source, tmp_path / "out", *OPTIONS)
    found = samples(tmp_path / "out")
    assert len(found) == 18
    for key, members in found.items():
        label, name = key.split("/")
        own = (source / f"{key}.png").read_bytes()
        assert members["cls"] == str(["cat", "dog"].index(label)).encode()
        assert members["txt"] == (source / f"{key}.txt").read_bytes()
        if name in "012345":
            image = Image.open(io.BytesIO(members["jpg"]))
            assert (image.format, image.size) == ("JPEG", (32, 21))
            assert "png" not in members
        else:
            assert members["png"] == own
            assert "jpg" not in members
    before = sum(path.stat().st_size for path in source.rglob("*.png"))
    after = sum(len(members.get("jpg") or members["png"]) for members in found.values())
    assert (
        f"shrunk: 12 of 18 images written now, to 32 pixels at quality 90; from {before:,} to "
        f"{after:,} bytes in all\n"
        "kept as they are: 1 with no pixels that can be decoded (dog/cut.png); "
        "1 with transparency (cat/clear.png)\n"
    ) in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_stopped_start_goes_on_and_another_size_is_another_plan(
    source: Path, tmp_path: Path, capsys: Printed
) -> None:
    out = tmp_path / "out"
    make(source, out, *OPTIONS)
    whole = contents(out)
    assert len(whole) > 2
    (out / "train-000001.tar").unlink()
    capsys.readouterr()
    make(source, out, *OPTIONS, "--quality", 90)  # which it is without a word
    assert contents(out) == whole
    printed = capsys.readouterr().out
    assert f"keeping {len(whole) - 1} complete shards" in printed
    assert "shrunk: 12 of 18" not in printed
    for other in (("--max-side", 31), ("--quality", 80)):
        with pytest.raises(UserError, match="holds shards of another source or other options"):
            make(source, out, *OPTIONS, *other)
    with pytest.raises(UserError, match="holds shards of another source or other options"):
        make(source, out, *OPTIONS[2:])
    make(source, out, *OPTIONS, "--quality", 80, "--overwrite")
    assert contents(out).keys() == whole.keys()
    assert contents(out) != whole


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--quality=80"], "^--quality=80 needs --max-side, such as --max-side 320$"),
        (["--max-side=0"], "^--max-side=0 is no number of pixels from 1 to 65,500; try 320$"),
        (["--max-side=70000"], "^--max-side=70000 is no number of pixels from 1 to 65,500;"),
        (["--max-side=32", "--quality=0"], "^--quality=0 is not in 1 to 100; try 90$"),
        (["--max-side=32", "--quality=101"], "^--quality=101 is not in 1 to 100; try 90$"),
        (["--max-side=x"], "--max-side"),
    ],
)
def test_sizes_and_qualities_that_are_none(
    source: Path, tmp_path: Path, options: list[str], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        make(source, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
