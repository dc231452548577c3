"""The images below a folder, by their endings, and what lies there beside them."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

import data.folder.images
from data.folder.images import list_images, missing_decoder
from data.images.decoding import decode
from data.index.open import open_manifest
from data.reading.reader import ShardReader
from data.samples import pick_image
from data.settings import UserError
from data.shards import (
    HEIF_EXTENSIONS,
    PICTURE_EXTENSIONS,
    ImageFile,
    choose_image,
    write_shard,
)

SMOOTH = Image.linear_gradient("L").resize((32, 24)).convert("RGB")


def encode(ending: str) -> bytes:
    """Write a picture as its ending says; one of two colours where the format has no more."""
    kind = Image.registered_extensions()[f".{ending}"]
    content = io.BytesIO()
    SMOOTH.save(content, kind, **({"sizes": [(32, 24)]} if kind == "ICO" else {}))
    return content.getvalue()


READ_HERE = sorted(e for e in PICTURE_EXTENSIONS if missing_decoder(e) is None)


def test_no_decoder_is_missing_here() -> None:
    """All endings but HEIC's are read by the Pillow that is installed."""
    assert PICTURE_EXTENSIONS - set(READ_HERE) <= HEIF_EXTENSIONS


@pytest.mark.parametrize("ending", sorted(set(READ_HERE) - HEIF_EXTENSIONS))
def test_each_ending_is_listed_and_decoded(ending: str, tmp_path: Path) -> None:
    """From a folder, through a shard, to the right pixels."""
    path = tmp_path / f"x.{ending.upper()}"
    path.write_bytes(encode(ending))
    listing = list_images(tmp_path)
    assert listing.images == [path.name]
    write_shard(tmp_path / "x.tar", [ImageFile("x", ending, path.read_bytes())])
    members = ShardReader(open_manifest(tmp_path, "x")).read(0, 0, {ending})
    pixels = decode(pick_image(members))
    expected = torch.frombuffer(bytearray(SMOOTH.tobytes()), dtype=torch.uint8)
    difference = pixels.permute(1, 2, 0).float() - expected.view(24, 32, 3)
    assert difference.abs().mean() < 4


def test_what_needs_an_extra_is_named_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: str) -> None:
        return None

    monkeypatch.setattr(data.folder.images, "find_spec", none)
    missing_decoder.cache_clear()
    for name in ("a.HEIC", "b.heif", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    listing = list_images(tmp_path)
    assert listing.images == ["c.jpg"]
    text = "2 images that need pip install -e '.[heic]' (1 .heic, 1 .heif: a.HEIC, b.heif)"
    assert listing.left_out() == [text]
    (tmp_path / "c.jpg").unlink()
    with pytest.raises(UserError) as error:
        list_images(tmp_path).require_images("SOURCE")
    assert text in str(error.value)
    missing_decoder.cache_clear()


def test_what_is_no_image_is_counted_by_ending(tmp_path: Path) -> None:
    for name in ("a.cr2", "b.NEF", "c.svg", "d.pdf", "e.psd", "f.svg", "README", "é.jpg", "u.PNG"):
        (tmp_path / name).write_bytes(b"x")
    listing = list_images(tmp_path)
    assert listing.images == ["u.PNG", "é.jpg"]
    assert listing.left_out() == [
        "7 files that are no images (2 .svg, 1 without ending, 1 .cr2, 1 .nef, 1 .pdf, 1 .psd: "
        "README, a.cr2, b.NEF and 4 more)"
    ]


def test_a_heic_beside_a_picture_comes_after_it() -> None:
    assert choose_image(["heic", "jpg"], 3) == "jpg"
    assert choose_image(["heic", "npy"], 3) == "heic"
    assert choose_image(["jpg", "npy"], 5) == "npy"
