"""Memory that loader processes lend: it is used again, and never while anybody holds it."""

import gc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from data import shared_memory as lending
from data.index.open import open_manifest
from data.samples import Samples
from data.stream import Share, TrainingStream

SHAPE = (2, 3, 4, 4)
BATCH = 4


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a loader process of one's own: what is lent comes back at once."""
    monkeypatch.setattr(lending, "get_worker_info", lambda: SimpleNamespace(id=0))
    for name, empty in (("_blocks", []), ("_known", set()), ("_borrowed", {})):
        monkeypatch.setattr(lending, name, empty)


def stream(shards: Path, workers: int) -> TrainingStream:
    manifest = open_manifest(f"{shards}/train-*.tar", "data.shards")
    samples = Samples(manifest, (8, 8), seed=3, crop_area=(0.2, 1.0))
    return TrainingStream(samples, BATCH, Share(0, 1, BATCH), workers)


def expected(shards: Path, last: int) -> list[Tensor]:
    return [batch.tensors["image"] for [batch] in stream(shards, 0).steps(0, last)]


def send(images: Tensor) -> Tensor:
    sent = lending.lend(images)
    assert isinstance(sent, lending.Loan)
    return lending.borrow(sent)


# ---------------------------------------------------------------- over processes


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_held_is_never_overwritten(shards: Path, workers: int) -> None:
    """Of every third batch a view, and of every fifth all: more than there are blocks."""
    views: dict[int, Tensor] = {}
    for step, [batch] in enumerate(stream(shards, workers).steps(0, 60)):
        if step % 3 == 0:
            views[step] = batch.tensors["image"][step % BATCH, :, 1:]
        if step % 5 == 0:
            views[step] = batch.tensors["image"]
    wanted = expected(shards, 60)
    for step, view in views.items():
        same = wanted[step] if step % 5 == 0 else wanted[step][step % BATCH, :, 1:]
        assert torch.equal(view, same), step


def test_blocks_are_used_again_and_pixels_are_right(shards: Path) -> None:
    wanted = expected(shards, 40)
    addresses: set[int] = set()
    for step, [batch] in enumerate(stream(shards, 1).steps(0, 40)):
        addresses.add(batch.tensors["image"].data_ptr())
        assert torch.equal(batch.tensors["image"], wanted[step])
    assert len(addresses) <= 5  # two made ahead, one in each hand


def test_nothing_is_kept_of_a_stream_that_ended(shards: Path) -> None:
    list(stream(shards, 1).steps(0, 4))
    left = stream(shards, 1).steps(0, 40)
    [batch] = next(left)
    assert lending._borrowed
    del left
    gc.collect()
    assert not lending._borrowed
    assert torch.equal(batch.tensors["image"], expected(shards, 1)[0])


# ---------------------------------------------------------------- a block's life


@pytest.mark.usefixtures("worker")
def test_a_block_is_free_when_nothing_refers_to_its_images() -> None:
    first = lending.blank_images(SHAPE)
    images = send(first.fill_(7))
    view = images[1, :, 2:]
    del images
    assert lending.blank_images(SHAPE).data_ptr() != first.data_ptr()
    assert int(view.min()) == 7
    del view
    again = lending.blank_images(SHAPE)
    assert again.data_ptr() == first.data_ptr()
    assert not again.any()


@pytest.mark.usefixtures("worker")
def test_a_block_is_sent_once_and_fits_one_size() -> None:
    images = lending.blank_images(SHAPE)
    [block] = lending._blocks
    loans = [lending.lend(images) for _ in range(2)]
    assert all(isinstance(loan, lending.Loan) for loan in loans)
    first, second = (loan for loan in loans if isinstance(loan, lending.Loan))
    assert first.block is block
    assert second.block is None
    lending.borrow(first)
    assert int(block[-1]) == lending._FREE
    assert lending.blank_images((1, *SHAPE[1:])).data_ptr() != block.data_ptr()
    assert lending.blank_images(SHAPE).data_ptr() == block.data_ptr()


@pytest.mark.usefixtures("worker")
def test_more_blocks_than_are_kept_are_sent_as_they_are() -> None:
    held = [lending.blank_images(SHAPE) for _ in range(lending._MAX_BLOCKS + 1)]
    assert len({images.data_ptr() for images in held}) == len(held)
    assert all(isinstance(lending.lend(images), lending.Loan) for images in held[:-1])
    assert lending.lend(held[-1]) is held[-1]
    assert held[-1].is_shared()


@pytest.mark.usefixtures("worker")
def test_a_fork_gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    images = send(lending.blank_images(SHAPE))
    [block] = lending._blocks
    monkeypatch.setattr(lending.os, "getpid", lambda: 0)
    del images
    assert int(block[-1]) == lending._LENT
