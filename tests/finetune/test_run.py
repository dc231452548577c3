"""Fine-tuning as users run it: baselines, recipes, labels, results; exact whatever happens."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from timm.models import save_for_hf

import finetune.run
from data.settings import RunStopped, UserError
from finetune.load import load_classifier
from pretrain.configuration.layers import read_yaml
from pretrain.encoder.facts import image_size
from pretrain.records.logs import read_records
from tests.launching import run_ranks

RESNET = ["encoder.name=test_resnet", "data.image_size=32"]
MODERN = [
    "head.init=probe",
    "mix.mixup=0.8",
    "mix.cutmix=1",
    "head.label_smoothing=0.1",
    "data.augment=rand-m9-mstd0.5-inc1",
    "encoder.args.drop_path_rate=0.1",
    "optim.ema=0.9",
    "optim.algorithm=adamw",
    "optim.lr=1e-3",
    "optim.layer_decay=0.75",
]


@pytest.fixture
def without_sizes(tiny_finetune: list[str]) -> list[str]:
    return [a for a in tiny_finetune if not a.startswith(("encoder.", "data.image_size"))]


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def weights(run: Path) -> dict[str, bytes]:
    """Read what the last checkpoint holds, and what the run has measured."""
    last = max((run / "checkpoints").iterdir())
    files = {str(p.relative_to(last)): p.read_bytes() for p in last.rglob("*") if p.is_file()}
    records = [
        {name: value for name, value in record.items() if not name.startswith("speed/")}
        for record in read_records(run / "metrics.jsonl")
    ]
    return {**files, "metrics": json.dumps(records).encode()}


def stopped_at(step: int, run: Path, copy: Path) -> str:
    """Copy a finished run as if it had been killed after it committed `step`."""
    shutil.copytree(run, copy, symlinks=True)
    (copy / "result.json").unlink()
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return f"run.dir={copy}"


# ---------------------------------------------------------------- exact


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (3, 0)])
def test_the_modern_recipe_continues_to_the_bit(
    tmp_path: Path, tiny_finetune: list[str], world: int, workers: int
) -> None:
    # 3 ranks take 4 images each; bad samples and padding are among them
    told = [*tiny_finetune, *MODERN, "optim.batch_size=12", "optim.steps=12"]
    run_ranks([*told, f"run.dir={tmp_path}/run"], world, tmp_path, script="finetune.run")
    copy = stopped_at(4, tmp_path / "run", tmp_path / "copy")
    told += [copy, f"data.workers={workers}"]
    run_ranks(told, world, tmp_path, script="finetune.run")
    assert weights(tmp_path / "copy") == weights(tmp_path / "run")
    assert result(tmp_path / "copy") == result(tmp_path / "run")


def test_loader_processes_by_the_cores(tmp_path: Path, tiny_finetune: list[str]) -> None:
    """As it is where nothing is said: each part of a run gets their number, not the word."""
    run = tmp_path / "run"
    finetune.run.main([*tiny_finetune, "data.workers=auto", "optim.steps=2", f"run.dir={run}"])
    assert type(read_yaml(str(run / "config.yaml"))["data"]["workers"]) is int
    assert result(run)["steps"] == 2


@pytest.mark.parametrize("world", [1, 3])
def test_batch_norms_continue_to_the_bit(
    tmp_path: Path, without_sizes: list[str], world: int
) -> None:
    told = [*without_sizes, *RESNET, "optim.batch_size=12", "optim.steps=12"]
    run_ranks([*told, f"run.dir={tmp_path}/run"], world, tmp_path, script="finetune.run")
    copy = stopped_at(4, tmp_path / "run", tmp_path / "copy")
    run_ranks([*told, copy], world, tmp_path, script="finetune.run")
    assert weights(tmp_path / "copy") == weights(tmp_path / "run")


@pytest.mark.parametrize("kind", ["transformer", "resnet"])
def test_figures_are_the_same_on_one_two_and_three_ranks(
    tmp_path: Path, tiny_finetune: list[str], without_sizes: list[str], kind: str
) -> None:
    """A finished run is validated again by as many ranks as start it."""
    told = without_sizes + RESNET if kind == "resnet" else tiny_finetune
    told = [*told, "optim.batch_size=12", "optim.steps=8", f"run.dir={tmp_path}/run"]
    results: list[dict[str, Any]] = []
    for world in (1, 2, 3):
        run_ranks(told, world, tmp_path / "logs", script="finetune.run")
        results.append(result(tmp_path / "run"))
        (tmp_path / "run/result.json").unlink()
    for other in results[1:]:
        assert other["confusion"] == results[0]["confusion"]
        assert other["accuracy"] == results[0]["accuracy"]
        assert other["loss"] == pytest.approx(results[0]["loss"], rel=1e-6)
    assert sum(results[0]["support"]) == 10


def test_a_step_that_is_skipped_leaves_the_statistics(
    tmp_path: Path, without_sizes: list[str]
) -> None:
    told = [*without_sizes, *RESNET, "optim.steps=3", "optim.warmup_steps=0"]
    told += ["data.std=[1e-40,1e-40,1e-40]", "run.checkpoint_every=2"]  # pixels that overflow
    with pytest.raises(
        RunStopped, match=r"the last step's result is no finite number \(train/loss"
    ):
        finetune.run.main([*told, f"run.dir={tmp_path}/run"])
    for name, value in load_classifier(tmp_path / "run").state_dict().items():
        assert value.isfinite().all(), name
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            start = 1.0 if name.endswith("running_var") else 0.0
            assert (value == start).all(), name


def test_a_cut_model_is_tuned_and_validated_as_a_whole_one(
    tmp_path: Path, tiny_finetune: list[str]
) -> None:
    told = [*tiny_finetune, "head.tuned_blocks=1", "head.pooling=both", "optim.steps=4"]
    for parallel in ("ddp", "fsdp"):
        more = [f"run.parallel={parallel}", f"run.dir={tmp_path}/{parallel}"]
        run_ranks([*told, *more], 2, tmp_path / "logs", script="finetune.run")
    whole, cut = result(tmp_path / "ddp"), result(tmp_path / "fsdp")
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert cut["confusion"] == whole["confusion"]
    assert load_classifier(tmp_path / "fsdp").class_names == ["0", "1", "2"]


# ---------------------------------------------------------------- classifiers


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["head.pooling=class"],
        ["head.pooling=both", "optim.ema=0.5"],
        ["head.kind=mlp", "head.tuned_blocks=1"],
        RESNET,
    ],
)
def test_a_classifier_is_loaded_with_its_names(
    tmp_path: Path, tiny_finetune: list[str], without_sizes: list[str], more: list[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\n")  # the fourth class occurs in no sample
    told = [*(without_sizes if more is RESNET else tiny_finetune), *more, "optim.lr=0.1"]
    finetune.run.main([*told, "optim.steps=8", f"data.classes={names}", f"run.dir={tmp_path}/run"])
    model = load_classifier(tmp_path / "run")
    assert model.class_names == ["ant", "bee", "cat", "dog"]
    assert not model.training
    found = result(tmp_path / "run")
    assert found["classes"] == model.class_names
    assert found["accuracy_by_class"][3] is None
    told = json.loads((tmp_path / "run/encoder/config.json").read_text())
    assert told["label_names"] == model.class_names
    if model.head is None:
        copy = shutil.copytree(tmp_path / "run/encoder", tmp_path / "folder")
        side = image_size(model.encoder)[0]
        pixels = torch.randint(256, (2, 3, side, side), dtype=torch.uint8)
        assert torch.equal(load_classifier(copy).logits(pixels), model.logits(pixels))
        assert load_classifier(copy).pooling == model.pooling


def test_a_pooling_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", global_pool="max", num_classes=3)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    with pytest.raises(UserError, match="pools by max, and only avg and token are read here"):
        load_classifier(tmp_path)


def test_supervised_pretraining_hands_its_encoder_on_without_the_hidden_layer(
    tmp_path: Path, tiny_finetune: list[str]
) -> None:
    finetune.run.main([*tiny_finetune, "head.kind=mlp", f"run.dir={tmp_path}/supervised"])
    AcceleratorState._reset_state(reset_partial_state=True)
    more = [f"encoder.init={tmp_path}/supervised", "optim.steps=2", "optim.lr=0"]
    finetune.run.main([*tiny_finetune, *more, f"run.dir={tmp_path}/tuned"])
    start, end = load_classifier(tmp_path / "supervised"), load_classifier(tmp_path / "tuned")
    for name, value in start.encoder.state_dict().items():
        assert torch.equal(value, end.encoder.state_dict()[name]), name
    assert end.head is None


def test_a_finished_run_is_validated_on_other_shards(
    tmp_path: Path, shards: Path, tiny_finetune: list[str]
) -> None:
    told = [*tiny_finetune, "optim.steps=4", f"run.dir={tmp_path}/run"]
    told += [f"data.train={shards}/train-[12].tar", "data.max_bad_ratio=0.1"]
    finetune.run.main(told)
    assert sum(result(tmp_path / "run")["support"]) == 10
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune.run.main([*told, f"data.val={shards}/train-0.tar"])
    assert sum(result(tmp_path / "run")["support"]) == 20


def test_images_that_cannot_be_validated_are_said_once(
    tmp_path: Path, shards: Path, tiny_finetune: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    told = [*tiny_finetune, "optim.steps=4", "run.eval_every=2", "data.max_bad_ratio=0.2"]
    told += [f"data.train={shards}/train-[02].tar", f"data.val={shards}/train-1.tar"]
    told += [f"run.dir={tmp_path}/run"]
    finetune.run.main(told)
    said = [line for line in caplog.messages if "data.val" in line]
    assert said == ["not used of data.val: train-1.tar/022: no image format that Pillow knows"]
    assert sum(result(tmp_path / "run")["support"]) == 6


# ---------------------------------------------------------------- many labels


def bright(channels: list[int]) -> bytes:
    pixels = np.full((16, 16, 3), 40, np.uint8)
    pixels[..., channels] = 220
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Write images with 0, 1 or 2 of 3 classes; class k makes channel k bright."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 48), ("val", 24)):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for sample in range(number):
                classes = generator.permutation(3)[: sample % 3].tolist()
                text = " ".join(map(str, classes)).encode()
                for extension, content in (("png", bright(classes)), ("cls", text)):
                    member = tarfile.TarInfo(f"{sample:03d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return tmp_path


def test_many_labels_are_learnt(tmp_path: Path, many: Path, tiny_finetune: list[str]) -> None:
    told = [a for a in tiny_finetune if not a.startswith(("data.train", "data.val"))]
    told += [f"data.train={many}/train.tar", f"data.val={many}/val.tar", "data.multi_label=true"]
    told += ["optim.steps=60", "optim.algorithm=adamw", "optim.lr=3e-3", "mix.mixup=0.2"]
    run_ranks([*told, f"run.dir={tmp_path}/run"], 2, tmp_path, script="finetune.run")
    found = result(tmp_path / "run")
    assert found["map"] > 0.8
    assert sum(found["support"]) == 24
    assert load_classifier(tmp_path / "run").is_multi_label
    assert load_classifier(
        shutil.copytree(tmp_path / "run/encoder", tmp_path / "copy")
    ).is_multi_label


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["mix.mixup=0.8", "optim.batch_size=9"], "mix.* mixes pairs, and a forward pass takes 9"),
        (["data.augment=augmix"], "data.augment=augmix is no RandAugment recipe of timm"),
        (["head.pooling=max"], "head.pooling=max is not one of average, class, both"),
        (["head.tuned_blocks=9"], "head.tuned_blocks=9, but the encoder has 2 transformer blocks"),
        (["data.classes=nowhere"], "data.classes=nowhere: no such file"),
        (["data.val_ratio=1"], "data.val_ratio=1.0 is not in [0, 1); 0 sets nothing"),
        (["data.val_ratio=0.1"], "and data.val_ratio=0.1 both choose the validation images"),
        (["data.multi_label=true", "data.fraction=2"], "data.fraction=2.0 is not in (0, 1]"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    tmp_path: Path, tiny_finetune: list[str], more: list[str], text: str
) -> None:
    with pytest.raises(UserError) as caught:
        finetune.run.main([*tiny_finetune, *more, f"run.dir={tmp_path}/run"])
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
