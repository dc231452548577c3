"""Image-text runs: the same batches, swaps and masks on any ranks, and resumed to the bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

import pretrain.run
import pretrain.vilt.run
from data.captions.vocabulary import Vocabulary
from data.index.open import open_manifest
from data.settings import UserError
from pretrain.configuration.load import load
from pretrain.encoder import load_encoder
from pretrain.records.logs import read_records
from pretrain.vilt.config import ViltConfig
from pretrain.vilt.saved import load_vilt
from pretrain.vilt.vocabulary import open_vocabulary
from tests.launching import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[3]
STEPS = 12
MORE = ["data.max_bad_ratio=0.2"]  # two of 36 are bad: one image, one caption


def records(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.items() if not name.startswith("speed/")}
        for record in read_records(run / "metrics.jsonl")
    ]


def batches(run: Path) -> list[list[str]]:
    ranks = [read_records(path) for path in sorted((run / "trace").iterdir())]
    return [[key for line in lines for key in line["keys"]] for lines in zip(*ranks, strict=True)]


def assert_equal(found: Path, expected: Path) -> None:
    assert records(found) == records(expected)
    for name in ("model", "optimizer"):
        path = f"checkpoints/step-{STEPS:08d}/{name}.safetensors"
        assert (found / path).read_bytes() == (expected / path).read_bytes(), name
    for name in ("bad_samples.jsonl", "tokenizer.json", "encoder/model.safetensors"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def cut_to(step: int, run: Path, copy: Path) -> list[str]:
    """Copy a run as if it had been killed after it committed `step`; return `run.dir`."""
    shutil.copytree(run, copy, symlinks=True)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return [f"run.dir={copy}"]


@pytest.fixture(scope="module")
def arguments(tiny_vilt: list[str]) -> list[str]:
    return [*tiny_vilt, *MORE]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, arguments: list[str]) -> Path:
    run = tmp_path_factory.mktemp("vilt") / "one"
    pretrain.vilt.run.main([*arguments, f"run.dir={run}"])
    return run


def test_each_sample_with_an_image_and_a_caption_is_in_one_batch_an_epoch(one: Path) -> None:
    steps = batches(one)
    for epoch in range(4):
        keys = [key for step in steps[3 * epoch : 3 * epoch + 3] for key in step]
        assert len(keys) == len(set(keys)) == 34
    ledger = read_records(one / "bad_samples.jsonl")
    reasons = {(entry["key"], entry["reason"]) for entry in ledger}
    assert reasons == {
        ("022", "no image format that Pillow knows"),
        ("030", "no caption: it has no .txt member"),
    }


def test_it_learns_and_says_so_beside_its_baselines(one: Path) -> None:
    first, last = records(one)[0], records(one)[-1]
    assert last["train/loss_words"] < first["train/loss_words"] - 0.3
    for name in ("accuracy_matching", "accuracy_words", "accuracy_words_majority"):
        assert 0 <= last[f"val/{name}"] <= 1
    assert {"val/accuracy_words_blank", "val/loss_alignment", "val/cut_ratio"} <= last.keys()
    assert "train/accuracy_words_blank" not in last


def test_a_run_goes_on_to_the_bit(tmp_path: Path, one: Path, arguments: list[str]) -> None:
    pretrain.vilt.run.main([*arguments, *cut_to(4, one, tmp_path / "cut"), "data.workers=2"])
    assert_equal(tmp_path / "cut", one)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.faults)])
def test_batches_swaps_and_masks_are_those_of_one_rank(
    tmp_path: Path, one: Path, arguments: list[str], world: int
) -> None:
    run = tmp_path / "run"
    micro = ["run.micro_batch_size=1"]  # a swapped caption is always that of another request
    whole = [*arguments, *micro, f"run.dir={run}"]
    run_ranks(whole, world, tmp_path / "logs", script="pretrain.vilt.run")
    assert batches(run) == batches(one)
    for found, expected in zip(records(run), records(one), strict=True):
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6)
        draws = ("accuracy_matching_majority", "cut_ratio", "accuracy_words_majority")
        for name in draws:
            assert found[f"train/{name}"] == pytest.approx(expected[f"train/{name}"], rel=1e-9)
    assert read_records(run / "bad_samples.jsonl") == read_records(one / "bad_samples.jsonl")


@pytest.mark.parametrize(
    "more",
    [
        ["loss.patches=1", "loss.words=0", "optim.ema=0.9"],
        ["data.long_side=24", "data.max_patches=10", "text.dropout=0.1", "run.precision=bf16"],
        ["loss.matching=0", "loss.alignment=0", "run.grad_checkpointing=full"],
        pytest.param(["run.compile=true"], marks=pytest.mark.faults),
    ],
)
def test_any_form_goes_on_to_the_bit(tmp_path: Path, arguments: list[str], more: list[str]) -> None:
    whole = [*arguments, *more, f"run.dir={tmp_path}/whole"]
    pretrain.vilt.run.main(whole)
    pretrain.vilt.run.main([*whole, *cut_to(8, tmp_path / "whole", tmp_path / "cut")])
    assert_equal(tmp_path / "cut", tmp_path / "whole")


def test_a_run_starts_from_another_one(tmp_path: Path, one: Path, arguments: list[str]) -> None:
    more = [f"encoder.init={one}", "optim.steps=1", "optim.lr=0", f"run.dir={tmp_path}/next"]
    sizes = [a for a in arguments if not a.startswith("encoder.")]
    pretrain.vilt.run.main([*sizes, *more])
    before, after = load_vilt(one), load_vilt(tmp_path / "next")
    state = after.model.state_dict()
    for name, value in before.model.state_dict().items():
        assert value.equal(state[name]), name
    assert after.vocabulary.sha256 == before.vocabulary.sha256


def test_a_part_of_the_run_is_its_image_half(one: Path) -> None:
    encoder, whole = load_encoder(one), load_vilt(one).model.encoder
    saved = load_file(one / "encoder/model.safetensors")
    assert saved.keys() == whole.state_dict().keys() == encoder.state_dict().keys()
    for name, value in saved.items():
        assert value.equal(whole.state_dict()[name]), name


def test_runs_of_other_kinds_are_refused(
    tmp_path: Path, one: Path, arguments: list[str], tiny: list[str]
) -> None:
    with pytest.raises(UserError, match="holds an image-text pretraining run"):
        pretrain.run.main([*tiny, f"run.dir={one}"])
    pretrain.run.main([*tiny, "optim.steps=4", "run.eval_every=0", f"run.dir={tmp_path}/images"])
    with pytest.raises(UserError, match="holds a pretraining run, and this one is not"):
        pretrain.vilt.run.main([*arguments, f"run.dir={tmp_path}/images"])


def test_another_vocabulary_is_refused(tmp_path: Path, one: Path, arguments: list[str]) -> None:
    vocabulary = json.loads((one / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"]["zebra"] = len(vocabulary["model"]["vocab"])
    path = tmp_path / "other.json"
    path.write_text(json.dumps(vocabulary))
    others = [a for a in arguments if "vocabulary_size" not in a]
    given = f"data.vocabulary={path}"
    with pytest.raises(UserError, match="vocabulary"):
        pretrain.vilt.run.main([*others, given, f"run.dir={one}"])
    with pytest.raises(UserError, match=r"is not the vocabulary of encoder\.init="):
        pretrain.vilt.run.main([*others, given, f"encoder.init={one}", f"run.dir={tmp_path}/next"])


def test_a_vocabulary_takes_the_place_of_a_recipes_size() -> None:
    recipe = str(ROOT / "configs/pretrain/vilt-small.yaml")
    given = ["data.shards=a.tar", "data.vocabulary=words.json"]
    data = load(ViltConfig, [recipe, *given]).data
    assert (data.vocabulary, data.vocabulary_size) == ("words.json", 30522)


def test_a_vocabulary_of_other_texts_is_warned_of(
    tmp_path: Path, arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "words.json"
    Vocabulary.learn(["zebra crossing"] * 9, 100).save(path)
    others = [a for a in arguments if "vocabulary_size" not in a]
    config = load(ViltConfig, [*others, f"data.vocabulary={path}"])
    images = open_manifest(config.data.shards, "data.shards")
    assert open_vocabulary(Accelerator(cpu=True), config, images).piece(5)
    assert "8.3 % of the words are whole pieces of the vocabulary" in caplog.text


@pytest.mark.parametrize("key", ["data.shards", "data.val_shards"])
def test_images_without_captions_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: list[str], shards: Path, key: str
) -> None:
    others = [argument for argument in arguments if not argument.startswith(f"{key}=")]
    with pytest.raises(UserError, match=rf"{key}: no \.txt in the first 8 samples, but "):
        pretrain.vilt.run.main([*others, f"{key}={shards}/val-0.tar", f"run.dir={tmp_path}/run"])
    assert not (tmp_path / "run").exists()
