"""scripts/embed.py: a row an image in each format; a kill costs a part; no other file goes."""

import csv
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet
import pytest

import scripts.embed
from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from pretrain.evaluation import feature_files, feature_parts
from pretrain.evaluation.embedding import Part
from tests.conftest import make_sample, no_root_rights
from tests.launching import Ranks, run_ranks


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed") / "encoder"
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=8, embed_dim=16, depth=1, num_heads=2
    )
    save_encoder(make_encoder(config, (16, 16)), folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(3):
        (folder / f"a, {number}.png").write_bytes(make_sample(number).data)
    (folder / "b.png").write_bytes(b"none")
    return folder


def embed(encoder: Path, images: Path | str, out: Path, *options: str) -> None:
    arguments = [str(encoder), str(images), "--out", str(out), "--workers", "0", *options]
    scripts.embed.main(arguments)


# ---------------------------------------------------------------- formats


def test_one_table_has_the_numbers_of_the_array(
    encoder: Path, images: Path, tmp_path: Path
) -> None:
    for name in ("new/f.npy", "g.csv", "f.parquet"):
        for _ in range(2):  # what the command itself has written it replaces
            embed(encoder, images, tmp_path / name)
    values = np.load(tmp_path / "new/f.npy")
    names = list(csv.reader((tmp_path / "new/f.csv").read_text().splitlines()))
    header, *rows = csv.reader((tmp_path / "g.csv").read_text().splitlines())
    assert header == ["row", "key", *map(str, range(16))]
    assert [row[:2] for row in rows] == names[1:]
    assert sorted(Path(row[1]).name for row in rows) == ["a, 0.png", "a, 1.png", "a, 2.png"]
    assert np.array_equal(np.array([row[2:] for row in rows], np.float32), values)
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table["key"] == [row[1] for row in rows]
    assert np.array_equal(np.array(table["features"], np.float32), values)
    files = {path.name for path in tmp_path.rglob("*")}
    assert files == {"new", "f.npy", "f.csv", "g.csv", "f.parquet"}


def test_patches_are_alike_in_both_formats(encoder: Path, images: Path, tmp_path: Path) -> None:
    for name in ("f.npy", "f.parquet"):
        embed(encoder, images, tmp_path / name, "--patches")
    values = np.load(tmp_path / "f.npy")
    assert values.shape == (3, 4, 16)
    assert values.dtype == np.float16
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert np.array_equal(np.array(table["features"], np.float16), values)


def test_a_disk_that_is_too_small_is_told_before_an_image_is_read(
    encoder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 2 * 4 * 16 * 4  # the file and its parts: 4 images of 16 numbers of 4 bytes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(feature_parts, "read_parts", interrupt)
    disk = Mock(return_value=usage._replace(free=needed - 1))
    monkeypatch.setattr(shutil, "disk_usage", disk)
    with pytest.raises(UserError, match=r"take 0.0 MB, and the disk has 0.0 MB left; make room"):
        embed(encoder, images, tmp_path / "f.npy")
    disk.return_value = usage._replace(free=needed)
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, images, tmp_path / "f.npy")


# ---------------------------------------------------------------- kills, ranks

_PART = 16 * 4 * 8  # bytes: 8 images


def small_parts(num_kept: int | None = None) -> None:
    """Make parts of 8 images, and die when so many are written."""
    feature_parts._PART_BYTES = _PART
    keep: Callable[..., None] = feature_parts.Parts.keep
    kept: list[Part] = []

    def keep_or_die(parts: feature_parts.Parts, part: Part) -> None:
        if len(kept) == num_kept:
            os.kill(os.getpid(), signal.SIGKILL)
        keep(parts, part)
        kept.append(part)

    feature_parts.Parts.keep = keep_or_die  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("name", "starts"),
    [("f.npy", [(0, 1), (1, 3), (3, 2)]), ("f.parquet", [(0, 1), (2, 1)])],
)
def test_a_kill_and_the_number_of_ranks_leave_each_bit(
    encoder: Path, shards: Path, tmp_path: Path, name: str, starts: list[tuple[int, int]]
) -> None:
    files: list[bytes] = []
    for first, then in starts:
        out = tmp_path / f"{first}-{then}" / name
        common = [str(encoder), f"{shards}/train-*.tar", "--out", str(out), "--batch-size", "4"]
        common += ["--workers", "0"]
        if first:
            kill = partial(small_parts, 2)
            with Ranks(common, first, tmp_path, script="scripts.embed", prepare=kill) as ranks:
                assert -signal.SIGKILL in ranks.wait()
            assert not out.exists()
            assert len(list(out.parent.glob(f"{name}.parts/part-*"))) == 2
        said = run_ranks(common, then, tmp_path, script="scripts.embed", prepare=small_parts)
        assert ("16 images are there already" in said) == (first > 0)
        assert "images: 1 of 36 images cannot be used, such as train-1.tar/022" in said
        files.append(out.read_bytes())
        assert {path.suffix for path in out.parent.iterdir()} <= {out.suffix, ".csv"}
    assert len(set(files)) == 1


def test_parts_of_other_features_are_refused(
    encoder: Path, images: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "f.npy", tmp_path / "f.npy.parts"
    monkeypatch.setattr(feature_parts, "read_parts", interrupt)
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, images, out)
    refused = pytest.raises(UserError, match=r"f.npy.parts holds parts of other features \(of an")
    for options in (["--pooling", "class"], ["--batch-size", "3"]):
        with refused:
            embed(encoder, images, out, *options)
    with refused:
        embed(encoder, f"{shards}/train-*.tar", out)
    (folder / "about.json").unlink()
    with pytest.raises(KeyboardInterrupt):  # killed between the two
        embed(encoder, images, out)
    (folder / "about.json").unlink()
    (folder / "mine.txt").touch()
    with refused:
        embed(encoder, images, out)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("name", ["mine.npy", "mine.csv"])
def test_a_table_of_the_users_is_refused_before_an_image_is_read(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("photo,species\n1.jpg,oak\n")
    with pytest.raises(UserError, match=r"would replace .*/mine.csv, which this command has not"):
        scripts.embed.main(["none", "none", "--out", str(tmp_path / name)])
    assert mine.read_text().startswith("photo")


@pytest.mark.parametrize("name", ["mine.npy", "mine.parquet"])
def test_an_array_of_the_users_is_refused_before_an_image_is_read(
    tmp_path: Path, name: str
) -> None:
    pytest.importorskip("pyarrow")
    mine = tmp_path / name
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"would replace .*/{name}, which this command has not"):
        scripts.embed.main(["none", "none", "--out", str(mine)])
    assert mine.read_bytes() == b"mine"


def test_a_place_that_takes_no_file_is_told_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o555)
    with no_root_rights(), pytest.raises(UserError, match=r"--out=.* cannot be written: Perm"):
        scripts.embed.main(["none", "none", "--out", "f.npy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "f.txt"], r"ends neither in .npy, which NumPy reads, nor in .parquet nor .csv"),
        (["--out", "f.csv", "--patches"], "a row would hold all patches of an image; with --pat"),
        (["--out", "f.npy", "--patches", "--pooling", "class"], "not allowed with argument"),
        (
            ["--out", "f.npy", "--patches", "--mirror"],
            "--mirror takes a mean, and a patch li",
        ),
        (["--out", "f.parquet"], r"needs pyarrow, which is not installed; run pip install -e '.\["),
    ],
)
def test_a_mistake_in_an_option_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr(feature_files, "find_spec", Mock(return_value=None))
    with pytest.raises(UserError, match=message):
        scripts.embed.main(["none", "none", *options])
