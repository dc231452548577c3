"""Images and masks in one geometry; each sample that cannot be used is named with the reason."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batch import Request
from data.images.boxes import evaluation_box
from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.labels.classes import match_classes
from data.segmented import IGNORED, SegmentedSamples, check_masks
from data.settings import UserError
from data.storage.locations import Storage
from tests import segmented
from tests.conftest import make_png
from tests.segmented import as_png, make_image, make_mask, make_members, write_tar


def opened(path: Path) -> Manifest:
    return open_manifest(str(path), "data.train", Storage())


def read(path: Path, size: tuple[int, int] = (20, 24)) -> SegmentedSamples:
    return SegmentedSamples(
        opened(path), size, num_classes=segmented.NUM_CLASSES, ignored=segmented.IGNORED
    )


def test_masks_come_as_they_are_at_their_own_size(tmp_path: Path) -> None:
    shard = segmented.write_segmented(tmp_path / "a.tar", range(3))
    batch = read(shard)[Request(0, 0, 4)]
    assert batch.tensors["weight"].tolist() == [1, 1, 1, 0]
    assert batch.tensors["label"].dtype == torch.uint8
    for number in range(3):
        mask = make_mask(number)
        expected = np.where(mask == segmented.IGNORED, IGNORED, mask)
        assert np.array_equal(batch.tensors["label"][number].numpy(), expected)
        pixels = batch.tensors["image"][number].permute(1, 2, 0).numpy()
        assert np.array_equal(pixels, make_image(mask, number))
    assert (batch.tensors["label"][3] == IGNORED).all()


@pytest.mark.parametrize("size", [(10, 12), (13, 31), (40, 16), (64, 64)])
def test_a_mask_is_cut_as_its_image_is(tmp_path: Path, size: tuple[int, int]) -> None:
    """An image that shows its mask's edges has them at the same place after the cut."""
    mask = np.zeros((50, 70), np.uint8)
    mask[20:33, 12:51] = 1
    image = np.repeat(mask[..., None] * 255, 3, axis=2)
    shard = write_tar(tmp_path / "a.tar", [("a", {"png": as_png(image), "seg.png": as_png(mask)})])
    batch = read(shard, size)[Request(0, 0, 1)]
    shown = (batch.tensors["image"][0, 0] > 127).numpy()
    box = evaluation_box(50, 70, size)
    rows = [int(box.top + (i + 0.5) * box.height / size[0]) for i in range(size[0])]
    columns = [int(box.left + (i + 0.5) * box.width / size[1]) for i in range(size[1])]
    found = batch.tensors["label"][0].numpy()
    assert np.array_equal(found, mask[np.ix_(rows, columns)])
    assert (shown != found).mean() < 0.03  # the image is smoothed at its edges


def test_numbers_are_renumbered_by_the_classes_names(tmp_path: Path) -> None:
    train = segmented.write_segmented(tmp_path / "train/a.tar", range(2))
    val = segmented.write_segmented(tmp_path / "val/a.tar", range(2, 4))
    (tmp_path / "train/classes.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "val/classes.txt").write_text("blue\nred\ngreen\n")
    classes = match_classes(opened(train), opened(val), None, "data")
    samples = SegmentedSamples(
        opened(val), (20, 24), num_classes=3, ignored=segmented.IGNORED, numbering=classes.val
    )
    found = samples[Request(0, 0, 2)].tensors["label"].numpy()
    table = np.full(256, IGNORED, np.uint8)
    table[:3] = [2, 0, 1]
    assert np.array_equal(found, table[np.stack([make_mask(2), make_mask(3)])])


def test_each_bad_sample_is_named_with_its_reason(tmp_path: Path) -> None:
    good, mask = make_members(1), make_mask(1)
    wrong = mask.copy()
    wrong[:2, :2], wrong[5, 5] = 3, 77
    samples = {
        "good": good,
        "no-mask": {"png": good["png"]},
        "no-image": {"seg.png": good["seg.png"]},
        "smaller": good | {"seg.png": as_png(mask[:10])},
        "unknown": good | {"seg.png": as_png(wrong)},
        "colours": good | {"seg.png": good["png"]},
        "deep": good | {"seg.png": as_png(mask.astype(np.uint16) * 256)},
        "cut": good | {"seg.png": good["seg.png"][:60]},
        "bad-image": good | {"png": b"no image"},
        "good-too": good,
    }
    batch = read(write_tar(tmp_path / "a.tar", samples.items()))[Request(0, 0, 10)]
    assert [place.key for place in batch.places] == ["good", "good-too"]
    assert torch.equal(batch.tensors["label"][0], batch.tensors["label"][9])
    assert (batch.tensors["label"][1:9] == IGNORED).all()
    reasons = {str(entry.key): entry.reason for entry in batch.bad}
    assert reasons["no-mask"] == "no mask: it has no .seg.png member"
    assert reasons["no-image"].startswith("no image among its members (.seg.png)")
    assert reasons["smaller"] == ".seg.png is 24x10, and its image 24x20"
    assert reasons["unknown"] == (
        ".seg.png has 3, 77, which is neither one of 3 classes nor data.ignored=9"
    )
    assert reasons["colours"].startswith(
        ".seg.png: is a PNG of mode RGB, not a grey or palette PNG"
    )
    assert reasons["deep"].startswith(".seg.png: is a PNG of mode I;16, not a grey")
    assert reasons["cut"].startswith(".seg.png: cannot be decoded: ")
    assert reasons["bad-image"] == "no image format that Pillow knows"
    assert all("\n" not in reason for reason in reasons.values())


def test_images_without_any_mask_are_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [(f"{n}", {"png": make_png(n)}) for n in range(3)])
    text = "data.val: no sample has a mask, KEY.seg.png beside KEY.jpg, but .png; write shards"
    with pytest.raises(UserError, match=re.escape(text)):
        check_masks(opened(shard), "data.val")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.png").write_bytes(make_png(1))
    with pytest.raises(UserError, match=r"folder is read as images alone, and masks come from "):
        check_masks(opened(tmp_path / "folder"), "data.train")
    check_masks(opened(segmented.write_segmented(tmp_path / "b.tar", range(2))), "data.val")
