"""Small shards, a tiny encoder's arguments, and a process that each test leaves as it was."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

# two files are tested at a time: threads would wait for each other; and sums come out the same on
# any number of cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a suite behind `&` is told to ignore Ctrl-C, and so is all that it starts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import numpy as np
import pytest
from PIL import Image

from data.shards import ImageFile, write_shard

hypothesis.settings.register_profile(
    "seeded",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # other programs run, too
)
hypothesis.settings.load_profile("seeded")


# ---------------------------------------------------------------- make quick


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "skip a test, or a fixture's tests, where it starts a process or a run"
    parser.addoption("--quick", action="store_true", help=text)


def _skip(*_: object, **__: object) -> NoReturn:
    pytest.skip("--quick: starts a process or a run")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """With `--quick`, let whatever starts a process or a run skip the test instead."""
    if not item.config.getoption("--quick"):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", _skip)
        patch.setattr(BaseProcess, "start", _skip)
        patch.setattr(os, "fork", _skip)
        if "pretrain.training.launch" in sys.modules:  # never import it here: it takes seconds
            patch.setattr(sys.modules["pretrain.training.launch"], "start", _skip)
        return (yield)


# ---------------------------------------------------------------- samples and shards

NUM_CLASSES = 3
BAD = 22  # the training image that is none: key 022 in train-1.tar


def make_png(seed: int, size: tuple[int, int] = (20, 24)) -> bytes:
    """Make a smooth image of width and height `size`; a class is brighter than the one before."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 160, (4, 4, 3)) + 45 * (seed % NUM_CLASSES)
    small = Image.fromarray(colours.astype(np.uint8))
    content = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(content, "PNG")
    return content.getvalue()


def make_sample(number: int) -> ImageFile:
    content = b"no image" if number == BAD else make_png(number)
    return ImageFile(f"{number:03d}", "png", content, number % NUM_CLASSES)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 36 training images to 3 shards of unequal length, and 10 validation images to one."""
    folder = tmp_path_factory.mktemp("shards")
    cuts = {"train-0": (0, 20), "train-1": (20, 27), "train-2": (27, 36), "val-0": (100, 110)}
    for name, numbers in cuts.items():
        write_shard(folder / f"{name}.tar", map(make_sample, range(*numbers)))
    return folder


COLOURS = ("red", "green", "blue")


def make_captioned(number: int) -> ImageFile:
    """Make a sample with two captions, of its class and its number."""
    colour = COLOURS[number % NUM_CLASSES]
    captions = f"a {colour} picture, number {number}", f"number {number}: {colour} and smooth"
    return replace(make_sample(number), captions=captions)


@pytest.fixture(scope="session")
def captioned_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the samples of `shards`, each with two captions; one of training has none."""
    folder = tmp_path_factory.mktemp("captioned")
    cuts = {"train-0": (0, 20), "train-1": (20, 36), "val-0": (100, 110)}
    for name, numbers in cuts.items():
        samples = [make_captioned(number) for number in range(*numbers)]
        if name == "train-1":
            samples[10] = replace(samples[10], captions=())  # number 30
        write_shard(folder / f"{name}.tar", samples)
    return folder


@pytest.fixture(scope="session")
def tiny_vilt(captioned_shards: Path, encoder: list[str]) -> list[str]:
    """Give the arguments of an image-text run of 4 epochs; 36 images make 3 batches of 12."""
    return [
        *encoder,
        f"data.shards={captioned_shards}/train-*.tar",
        f"data.val_shards={captioned_shards}/val-0.tar",
        "data.max_tokens=12",
        "data.vocabulary_size=100",
        "data.trace=true",
        "data.workers=0",
        "optim.steps=12",
        "optim.batch_size=12",
        "optim.lr=2e-3",
        "run.log_every=1",
        "run.checkpoint_every=4",
        "run.keep_checkpoints=0",
        "run.eval_every=6",
        "run.threads=1",
    ]


@pytest.fixture(scope="session")
def vilt_run(tmp_path_factory: pytest.TempPathFactory, tiny_vilt: list[str]) -> Path:
    """Train an image-text run of 12 steps, which no test may change."""
    import pretrain.vilt.run  # its own imports are paid for by those who ask for it

    run = tmp_path_factory.mktemp("vilt") / "mine"
    pretrain.vilt.run.main([*tiny_vilt, "data.max_bad_ratio=0.2", f"run.dir={run}"])
    return run


@pytest.fixture(scope="session")
def encoder() -> list[str]:
    """Name an encoder that trains at once: 16 patches of 4x4 pixels, two blocks of width 32."""
    return [
        "data.image_size=16",
        "encoder.name=vit_tiny_patch16_224",
        "encoder.patch_size=4",
        "encoder.embed_dim=32",
        "encoder.depth=2",
        "encoder.num_heads=2",
    ]


@pytest.fixture(scope="session")
def tiny(shards: Path, encoder: list[str]) -> list[str]:
    """Give the arguments of a pretraining run of 8 epochs; 36 images make 5 batches of 8."""
    return [
        *encoder,
        f"data.shards={shards}/train-*.tar",
        f"data.val_shards={shards}/val-0.tar",
        "data.trace=true",
        "data.workers=0",
        "data.resident=false",  # read, decode and crop: what the tests of the stream are about
        "optim.steps=40",
        "optim.batch_size=8",
        "optim.lr=2e-3",
        "optim.warmup_steps=4",
        "run.log_every=1",
        "run.checkpoint_every=7",
        "run.keep_checkpoints=0",
        "run.eval_every=20",
        "run.threads=1",
    ]


@pytest.fixture(scope="session")
def tiny_finetune(shards: Path, encoder: list[str]) -> list[str]:
    """Give the arguments of a fine-tuning run of 20 steps."""
    return [
        *encoder,
        f"data.train={shards}/train-*.tar",
        f"data.val={shards}/val-0.tar",
        "data.workers=0",
        "optim.steps=20",
        "optim.batch_size=8",
        "optim.warmup_steps=2",
        "run.log_every=1",
        "run.checkpoint_every=4",
        "run.keep_checkpoints=0",
        "run.threads=1",
    ]


@contextmanager
def no_root_rights() -> Generator[None]:
    """Let permissions hold, as root may do all; paths must be relative to the current folder."""
    is_root = os.geteuid() == 0
    if is_root:
        os.setegid(65534)
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
            os.setegid(0)


@contextmanager
def signal_does(number: signal.Signals, handler: Any) -> Generator[None]:
    """Handle a signal so for a while, whatever started the suite: `nohup` has it ignore SIGHUP."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


MountDisk = Callable[[str], Path]


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[MountDisk]:
    """Mount disks in memory of the sizes asked for, such as 64k; skip where it is forbidden."""
    disks: list[Path] = []

    def mount(size: str) -> Path:
        disk = tmp_path / f"disk-{len(disks)}"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("a disk can be mounted by root only")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """Undo what an entry point's `main` sets for the whole process."""
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    if "torch" in sys.modules:
        sys.modules["torch"].use_deterministic_algorithms(False)
    if "accelerate" in sys.modules:  # never import it here: it takes seconds
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
