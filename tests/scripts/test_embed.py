"""scripts/embed.py: a row an image, as array or table; no file of the user's is replaced."""

import csv
from pathlib import Path

import numpy as np
import pytest

import scripts.embed
from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from tests.conftest import make_sample, no_root_rights


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


def test_one_table_has_the_numbers_of_the_array(
    encoder: Path, images: Path, tmp_path: Path
) -> None:
    for name in ("new/f.npy", "g.csv"):
        for _ in range(2):  # what the command itself has written it replaces
            out = str(tmp_path / name)
            scripts.embed.main([str(encoder), str(images), "--out", out, "--workers", "0"])
    values = np.load(tmp_path / "new/f.npy")
    names = list(csv.reader((tmp_path / "new/f.csv").read_text().splitlines()))
    header, *rows = csv.reader((tmp_path / "g.csv").read_text().splitlines())
    assert header == ["row", "key", *map(str, range(16))]
    assert [row[:2] for row in rows] == names[1:]
    assert sorted(Path(row[1]).name for row in rows) == ["a, 0.png", "a, 1.png", "a, 2.png"]
    assert np.array_equal(np.array([row[2:] for row in rows], np.float32), values)


@pytest.mark.parametrize("name", ["mine.npy", "mine.csv"])
def test_a_table_of_the_users_is_refused_before_an_image_is_read(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("photo,species\n1.jpg,oak\n")
    with pytest.raises(UserError, match=r"would replace .*/mine.csv, which this command has not"):
        scripts.embed.main(["none", "none", "--out", str(tmp_path / name)])
    assert mine.read_text().startswith("photo")


def test_a_place_that_takes_no_file_is_told_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o555)
    with no_root_rights(), pytest.raises(UserError, match=r"--out=.* cannot be written: Perm"):
        scripts.embed.main(["none", "none", "--out", "f.npy"])
    with pytest.raises(UserError, match=r"ends neither in .npy, which NumPy reads, nor in .csv"):
        scripts.embed.main(["none", "none", "--out", "f.txt"])
