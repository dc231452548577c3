"""What is refused before a run begins: shards without captions, or with several images."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from data.captions.check import check_captions
from data.captions.config import CaptionConfig
from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.settings import UserError
from tests.conftest import make_png

JSON = json.dumps({"caption": "a cat", "url": "u"}).encode()


def shards_of(folder: Path, members: dict[str, bytes | None], number: int = 3) -> Manifest:
    """Write samples with these members by extension; None is an image."""
    with tarfile.open(folder / "a.tar", "w") as tar:
        for sample in range(number):
            for extension, content in members.items():
                data = make_png(sample) if content is None else content
                info = tarfile.TarInfo(f"{sample}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return open_manifest(str(folder / "a.tar"), "data.shards")


@pytest.mark.parametrize(
    ("members", "caption_key"),
    [
        ({"png": None, "txt": b"a cat"}, None),
        ({"png": None, "txt": b"a cat", "json": JSON}, "caption"),
        ({"png": None, "thumb.jpg": None, "txt": b"a cat"}, None),  # no image of this sample
        ({"png": None, "npy": b"features", "txt": b"a cat"}, None),
    ],
)
def test_captioned_shards_pass(
    tmp_path: Path, members: dict[str, bytes | None], caption_key: str | None
) -> None:
    config = CaptionConfig(caption_key=caption_key)
    check_captions(shards_of(tmp_path, members), config, "data.shards")


@pytest.mark.parametrize(
    ("members", "caption_key", "message"),
    [
        (
            {"png": None, "cls": b"1"},
            None,
            r"data\.shards: no \.txt in the first 3 samples, but \.png, \.cls, so there are no "
            r"captions; each image KEY\.jpg needs KEY\.txt",
        ),
        (
            {"png": None, "json": JSON},
            None,
            r"no \.txt in the first 3 samples, but \.png, \.json; name the key of KEY\.json that "
            r"holds the captions, data\.caption_key=NAME, of caption, url",
        ),
        (
            {"png": None, "txt": b"a cat"},
            "caption",
            r"no \.json in .*; leave data\.caption_key=caption out, and KEY\.txt is read",
        ),
        (
            {"png": None, "json": JSON},
            "text",
            r"data\.caption_key=text is no key of the \.json of a\.tar/0, which has caption, url; ",
        ),
        (
            {"png": None, "jpg": None, "txt": b"a cat"},
            None,
            r"data\.shards: a\.tar/0 has 2 images \(\.png, \.jpg\), as most samples have, and a "
            r"caption tells of one",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(
    tmp_path: Path, members: dict[str, bytes | None], caption_key: str | None, message: str
) -> None:
    manifest = shards_of(tmp_path, members)
    with pytest.raises(UserError, match=message) as caught:
        check_captions(manifest, CaptionConfig(caption_key=caption_key), "data.shards")
    assert "\n" not in str(caught.value)


def test_a_folder_of_images_is_refused_with_the_way_to_shards(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(make_png(0))
    (tmp_path / "photos/a.txt").write_text("a cat")
    manifest = open_manifest(str(tmp_path / "photos"), "data.shards")
    with pytest.raises(UserError, match=r"is read as images alone.* SHARDS --captions`, then"):
        check_captions(manifest, CaptionConfig(), "data.shards")
