"""Images with captions, questions and answers, and an image-text run on them."""

from dataclasses import replace
from pathlib import Path

import pytest

import pretrain.vilt.run
from data.shards import ImageFile, write_shard
from tests.conftest import COLOURS, NUM_CLASSES, make_captioned

NUM_RARE = 3  # of the 36 training samples whose answer is violet


def make_asked(number: int) -> ImageFile:
    """Make a sample with captions, a question with its answer, and what else may be a label."""
    answer = "violet" if number % 12 == 5 else COLOURS[number % NUM_CLASSES]
    record = {"question": "What colour is it?", "answer": answer, "right": number % 2 == 0}
    return replace(make_captioned(number), record=record)


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 36 training samples, of which one has no image, and 12 of validation."""
    folder = tmp_path_factory.mktemp("asked")
    write_shard(folder / "train.tar", map(make_asked, range(36)))
    write_shard(folder / "val.tar", map(make_asked, range(100, 112)))
    return folder


def pretrain_on(asked: Path, encoder: list[str], *more: str) -> None:
    keys = ["data.max_tokens=12", "data.vocabulary_size=100", "data.workers=0", "run.threads=1"]
    steps = ["optim.batch_size=12", "data.max_bad_ratio=0.2", f"data.shards={asked}/train.tar"]
    pretrain.vilt.run.main([*encoder, *keys, *steps, *more])


@pytest.fixture(scope="session")
def pretrained(asked: Path, encoder: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for two steps."""
    run = tmp_path_factory.mktemp("vilt") / "run"
    pretrain_on(asked, encoder, "optim.steps=2", "optim.lr=2e-3", f"run.dir={run}")
    return run


@pytest.fixture(scope="session")
def tiny_classify(asked: Path) -> list[str]:
    """Give the arguments of a run that answers questions, but for what it begins from."""
    return [
        f"data.train={asked}/train.tar",
        f"data.val={asked}/val.tar",
        "data.caption_key=question",
        "data.label_key=answer",
        "data.max_bad_ratio=0.2",
        "data.workers=0",
        "optim.steps=8",
        "optim.batch_size=12",
        "optim.warmup_steps=2",
        "optim.lr=2e-3",
        "run.log_every=1",
        "run.checkpoint_every=2",
        "run.eval_every=2",
        "run.keep_checkpoints=0",
        "run.threads=1",
    ]
