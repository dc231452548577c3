"""Classifiers of images and sentences as users train them: exact, and begun as they are told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

import finetune.vilt.classify
import pretrain.run
from data.batch import Request
from data.captions.config import CaptionedLabelledDataConfig
from data.captions.labels import KeyedClasses
from data.captions.samples import CaptionedSamples
from data.index.open import open_manifest
from data.settings import UserError
from data.shards import write_shard
from finetune.load import load_classifier
from finetune.vilt.load import load_vilt_classifier
from pretrain.vilt.saved import load_vilt
from scripts import verify_run
from scripts._export.source import load_source
from tests.conftest import make_sample
from tests.finetune.test_run import result, stopped_at, weights
from tests.finetune.vilt.conftest import NUM_RARE, pretrain_on
from tests.launching import run_ranks

pytestmark = pytest.mark.slow


def start(*told: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune.vilt.classify.main(list(told))


@pytest.fixture(scope="module")
def tuned(
    tmp_path_factory: pytest.TempPathFactory, pretrained: Path, tiny_classify: list[str]
) -> Path:
    run = tmp_path_factory.mktemp("tuned") / "run"
    start(*tiny_classify, f"encoder.init={pretrained}", f"run.dir={run}")
    return run


# ---------------------------------------------------------------- exact


def test_a_run_goes_on_to_the_bit(
    tmp_path: Path, pretrained: Path, tiny_classify: list[str]
) -> None:
    told = [*tiny_classify, f"encoder.init={pretrained}", "run.keep_best=true", "run.patience=3"]
    told += ["data.long_side=24", "data.max_patches=10", "text.dropout=0.1", "data.max_classes=3"]
    start(*told, f"run.dir={tmp_path}/run")
    copy = stopped_at(4, tmp_path / "run", tmp_path / "copy")
    start(*told, copy, "data.workers=1")
    assert weights(tmp_path / "copy") == weights(tmp_path / "run")
    assert result(tmp_path / "copy") == result(tmp_path / "run")


@pytest.mark.faults  # a short form: the same of images alone, and of retrieval
def test_figures_are_the_same_on_two_ranks(
    tmp_path: Path, tuned: Path, pretrained: Path, tiny_classify: list[str]
) -> None:
    copy = shutil.copytree(tuned, tmp_path / "run", symlinks=True)
    (copy / "result.json").unlink()
    told = [*tiny_classify, f"encoder.init={pretrained}", f"run.dir={copy}"]
    run_ranks(told, 2, tmp_path / "logs", script="finetune.vilt.classify")
    one, two = result(tuned), result(copy)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert two["confusion"] == one["confusion"]
    assert sum(one["support"]) == 12


# ---------------------------------------------------------------- what it begins from


def start_weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a classifier that learnt nothing, but for its head."""
    state = load_vilt_classifier(run).model.state_dict()
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def test_it_begins_as_what_it_is_told(
    tmp_path: Path, asked: Path, encoder: list[str], pretrained: Path, tiny_classify: list[str]
) -> None:
    still = ["optim.lr=0", "optim.steps=1", "optim.warmup_steps=0"]
    pretrain_on(asked, encoder, "optim.lr=0", "optim.steps=1", f"run.dir={tmp_path}/untrained")
    start(*tiny_classify, *still, f"encoder.init={pretrained}", f"run.dir={tmp_path}/init")
    start(*tiny_classify, *still, f"encoder.like={pretrained}", f"run.dir={tmp_path}/like")
    for source, run in ((pretrained, "init"), (tmp_path / "untrained", "like")):
        expected, found = load_vilt(source).model.state_dict(), start_weights(tmp_path / run)
        assert {"text.words.weight", "pooler.dense.weight", "encoder.pos_embed"} <= found.keys()
        for name, value in found.items():
            assert torch.equal(value, expected[name]), name
    vocabularies = {
        load_vilt_classifier(tmp_path / run).vocabulary.sha256 for run in ("init", "like")
    }
    assert vocabularies == {load_vilt(pretrained).vocabulary.sha256}


def test_a_classifier_is_loaded_with_its_names(tuned: Path) -> None:
    trained = load_vilt_classifier(tuned)
    assert trained.model.class_names == ["blue", "green", "red", "violet"]
    assert result(tuned)["classes"] == trained.model.class_names
    assert not trained.model.training
    batch = trained.model.example_batch(2)
    assert trained.model.logits(batch).shape == (2, 4)
    with pytest.raises(UserError, match="classifies images with sentences"):
        load_classifier(tuned)
    assert load_source(str(tuned), keep_head=True).classifier is None


def test_the_most_frequent_answers_are_classes_and_others_wrong(
    tmp_path: Path,
    asked: Path,
    pretrained: Path,
    tiny_classify: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = [*tiny_classify, "data.max_classes=3", "optim.steps=3", "data.trace=true"]
    start(*told, f"encoder.init={pretrained}", f"run.dir={tmp_path}/run")
    assert f"data.max_classes=3: {NUM_RARE} samples of data.train left out" in caplog.text
    found = result(tmp_path / "run")
    assert found["classes"] == ["blue", "green", "red"]
    assert (sum(found["support"]), found["num_of_no_class"]) == (11, 1)
    right = sum(found["confusion"][k][k] for k in range(3))
    assert found["accuracy"] == pytest.approx(right / 12)
    verified = verify_run._verify(tmp_path / "run", None)
    assert verified.holds  # they have come, and count nothing
    train = CaptionedSamples(
        open_manifest(f"{asked}/train.tar", "data.train"),
        (16, 16),
        seed=0,
        vocabulary=load_vilt_classifier(tmp_path / "run").vocabulary,
        config=CaptionedLabelledDataConfig(caption_key="question", max_tokens=12),
        is_training=True,
        labelled=True,
        classes=KeyedClasses("answer", {"blue": 0, "green": 1, "red": 2}, has_others=True),
    )
    tensors = train[Request(0, 0, 36)].tensors
    assert tensors["weight"].sum() == 35 - NUM_RARE
    assert (tensors["label"][tensors["weight"] > 0] >= 0).all()


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["encoder.init=none"], "encoder.init is missing; give encoder.init=RUN, a run.dir of"),
        (["encoder.init=ASKED"], "is no image-text run; name a run.dir of pretrain/vilt/run.py"),
        (["encoder.like=ASKED", "encoder.init=null"], "encoder.like="),
        (["data.label_key=colour"], "has no key colour; its keys: question, answer, right"),
        (["data.caption_key=sentence"], "data.caption_key=sentence is no key of the .json of"),
        (["data.max_tokens=40"], "data.max_tokens=40 is over the 12 of encoder.init="),
        (["data.label_key=question", "data.caption_key=null"], "is What colour is it? in all sam"),
        (["data.label_key=question"], "data.label_key=question is data.caption_key, too"),
        (["data.classes=x"], "data.classes=x is for the class numbers of KEY.cls, and data.label"),
        (["data.augment=rand-m9"], "data.augment=rand-m9 is for images alone"),
        (["data.label_key=null", "data.max_classes=9"], "data.max_classes=9 needs data.label_key"),
        (["data.val=PLAIN"], "data.val: no .json in the first 4 samples, but .cls, .png, so th"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    tmp_path: Path,
    asked: Path,
    pretrained: Path,
    tiny_classify: list[str],
    more: list[str],
    text: str,
) -> None:
    write_shard(tmp_path / "plain.tar", map(make_sample, range(4)))
    more = [a.replace("ASKED", str(asked)).replace("PLAIN", f"{tmp_path}/plain.tar") for a in more]
    told = [*tiny_classify, f"encoder.init={pretrained}", *more, f"run.dir={tmp_path}/run"]
    with pytest.raises(UserError) as caught:
        start(*told)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_is_refused(
    tmp_path: Path, pretrained: Path, tiny_classify: list[str]
) -> None:
    copy = shutil.copytree(pretrained, tmp_path / "copy", symlinks=True)
    vocabulary: dict[str, Any] = json.loads((copy / "tokenizer.json").read_text())
    pieces = vocabulary["model"]["vocab"]
    pieces["red"], pieces["blue"] = pieces["blue"], pieces["red"]
    (copy / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match="is not the vocabulary that the run was trained with"):
        start(*tiny_classify, f"encoder.init={copy}", f"run.dir={tmp_path}/run")


def test_a_run_of_images_alone_is_refused(
    tmp_path: Path, tuned: Path, tiny: list[str], tiny_classify: list[str]
) -> None:
    with pytest.raises(UserError, match="holds an image-text fine-tuning run, and this one is"):
        pretrain.run.main([*tiny, f"run.dir={tuned}"])
