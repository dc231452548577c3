"""The demo's tiles."""

import io
import tarfile
from collections import Counter
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.demo.making
import data.demo.tiles
from data.demo.tiles import PHOTOGRAPHS, TILE, demo_shards_exist, make_demo_shards, strip
from data.index.open import open_manifest
from data.reading.reader import ShardReader
from data.settings import UserError
from data.shards import ImageFile, write_shard

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "shards"
    assert not demo_shards_exist(folder)
    make_demo_shards(folder)
    return folder


def labels(folder: Path, split: str) -> Counter[int]:
    manifest = open_manifest(f"{folder}/{split}-*.tar", "data.shards")
    reader = ShardReader(manifest)
    return Counter(
        int(reader.read(number, i, {"cls"})["cls"])
        for number, shard in enumerate(manifest.shards)
        for i in range(shard.num_samples)
    )


def test_number_of_tiles_a_class(demo: Path) -> None:
    assert demo_shards_exist(demo)
    assert labels(demo, "train") == dict.fromkeys(range(8), 500)
    assert labels(demo, "val") == dict.fromkeys(range(8), 100)
    assert len((demo / "classes.txt").read_text().split()) == 8
    assert [path.name for path in sorted(demo.glob("*.tar"))] == [
        *(f"train-{i:06d}.tar" for i in range(4)),
        "val-000000.tar",
    ]
    assert len(list(demo.glob("*.tar.index"))) == 5


def test_tiles_are_images_of_one_size(demo: Path) -> None:
    reader = ShardReader(open_manifest(f"{demo}/*.tar", "data.shards"))
    for shard, sample in product(range(5), range(0, 800, 100)):
        image = Image.open(io.BytesIO(reader.read(shard, sample, {"png"})["png"]))
        assert (image.size, image.mode) == ((TILE, TILE), "RGB")


def test_no_pixel_is_in_both_splits() -> None:
    """Brighten the validation strips: no training tile may be bright, each validation tile is."""
    generator = np.random.default_rng(1)
    photographs: list[Image.Image] = []
    for photo in data.demo.tiles.load_photographs():
        pixels = generator.integers(0, 50, (photo.height, photo.width, 3), np.uint8)
        pixels[:, : strip(photo.width, is_val=True)[1]] += 200
        photographs.append(Image.fromarray(pixels))
    for is_val in (False, True):
        tiles = data.demo.tiles._draw_tiles(photographs, 400, generator, is_val=is_val)
        for sample in data.demo.tiles._samples(photographs, tiles):
            is_bright = np.asarray(Image.open(io.BytesIO(sample.data))) > 125
            assert (is_bright == is_val).all()


def test_no_two_tiles_are_equal(demo: Path) -> None:
    """Black corners of a photograph would be: then training reads what validation judges by."""
    tiles: list[bytes] = []
    for path in sorted(demo.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = [tar.extractfile(member) for member in tar if member.name.endswith(".png")]
            tiles += [file.read() for file in files if file]
    assert len(set(tiles)) == len(tiles) == data.demo.tiles.NUM_TRAIN + data.demo.tiles.NUM_VAL


@pytest.fixture
def fewer_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.demo.tiles, "NUM_TRAIN", 80)
    monkeypatch.setattr(data.demo.tiles, "NUM_VAL", 16)


@pytest.mark.usefixtures("fewer_tiles")
def test_tiles_are_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_demo_shards(tmp_path / name)
    shards = sorted((tmp_path / "a").glob("*.tar"))
    assert len(shards) == 5
    for path in shards:
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_what_exists_is_kept(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.iterdir()}
    make_demo_shards(demo)
    assert {path: path.stat().st_mtime_ns for path in demo.iterdir()} == before


@pytest.mark.usefixtures("fewer_tiles")
def test_it_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_at_the_last(path: Path, samples: Iterable[ImageFile]) -> int:
        if path.name.startswith("val-"):
            raise KeyboardInterrupt
        return write_shard(path, samples)

    monkeypatch.setattr(data.demo.making, "write_shard", fail_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        make_demo_shards(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="holds other files than the demo's; delete it or name"):
        make_demo_shards(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_without_scikit_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # pyright: ignore
    with pytest.raises(UserError, match=r"run pip install -e '\.\[demo\]' here"):
        make_demo_shards(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_the_photographs_are_named_once() -> None:
    assert len(set(PHOTOGRAPHS)) == len(PHOTOGRAPHS) == 8
