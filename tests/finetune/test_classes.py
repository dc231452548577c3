"""A test folder that lacks classes of the training folder: its labels are matched by name.

Through the entry points, from folders of images on: a folder numbers its classes from 0, so that
class 0 of a test folder with only `boot` and `dress` is not class 0 of training.
"""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

import finetune.fewshot
import finetune.probe
import finetune.run
import pretrain.run
from data.index.open import open_manifest
from data.reading.reader import ShardReader
from data.settings import UserError
from data.shards import ImageFile, write_shard
from finetune.load import load_classifier
from pretrain.records.logs import read_records
from tests.launching import ROOT, Ranks, run_forked, run_ranks

pytestmark = pytest.mark.timeout(300)

CLASSES = ["boot", "coat", "dress", "hat"]
COLOURS = {"boot": (220, 30, 30), "coat": (30, 220, 30), "dress": (30, 30, 220), "hat": (9, 9, 9)}
PARTS = ["coat", "dress"]  # what the test folder holds


def make_image(name: str, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(-25, 25, (20, 20, 3))
    pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def make_shards(work: Path, name: str, classes: dict[str, str], number: int) -> Path:
    """Write a folder a class, named as the values, and make shards of them as a user does."""
    for place, (kind, called) in enumerate(classes.items()):
        folder = work / f"{name}-images" / called
        folder.mkdir(parents=True)
        for image in range(number):
            seed = 10_000 * len(name) + 100 * place + image
            (folder / f"{image:02d}.png").write_bytes(make_image(kind, seed))
    script = [sys.executable, str(ROOT / "scripts/make_shards.py")]
    done = run_forked([*script, str(work / f"{name}-images"), str(work / name)])
    assert done.returncode == 0, done.stderr
    return work / name


def renumbered(source: Path, target: Path, names: Path) -> Path:
    """Write a test folder again, with training's class numbers and its list."""
    manifest = open_manifest(source, "data.val")
    reader = ShardReader(manifest)
    samples: list[ImageFile] = []
    for place in range(manifest.num_samples):
        members = reader.read(0, place, {"png", "cls"})
        label = CLASSES.index(PARTS[int(members["cls"])])
        samples.append(ImageFile(reader.key(0, place), "png", members["png"], label))
    target.mkdir()
    write_shard(target / "train-000000.tar", samples)
    shutil.copy(names, target)
    return target


@pytest.fixture(scope="module")
def clothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make `train` of four classes, `test` of two, `right` numbered as `train`, `other` of new."""
    work = tmp_path_factory.mktemp("clothing")
    train = make_shards(work, "train", {name: name for name in CLASSES}, 12)
    test = make_shards(work, "test", {name: name for name in PARTS}, 6)
    make_shards(work, "other", {"coat": "coat", "boot": "glove"}, 4)
    renumbered(test, work / "right", train / "classes.txt")
    assert (test / "classes.txt").read_text() == "coat\ndress\n"
    return work


def splits(work: Path, val: str, group: str = "data") -> list[str]:
    return [f"{group}.train={work}/train", f"{group}.val={work}/{val}"]


def restart() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def tuning(tiny_finetune: list[str]) -> list[str]:
    own = [a for a in tiny_finetune if not a.startswith(("data.train", "data.val"))]
    return [*own, "optim.algorithm=adamw", "optim.lr=3e-3", "optim.steps=30"]


def tuned(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


# ---------------------------------------------------------------- fine-tuning


def test_fine_tuning_measures_a_test_folder_by_name(
    tmp_path: Path, clothing: Path, tuning: list[str]
) -> None:
    more = [*tuning, "data.workers=1"]  # labels are read in loader processes
    for val in ("right", "test"):
        restart()
        finetune.run.main([*more, *splits(clothing, val), f"run.dir={tmp_path}/{val}"])
    found, right = tuned(tmp_path / "test"), tuned(tmp_path / "right")
    assert right["accuracy"] > 0.9, "it has learnt, or the test would say nothing"
    assert found == right
    assert found["support"] == [0, 6, 6, 0]
    assert load_classifier(tmp_path / "test").class_names == CLASSES
    # a finished run, measured on another folder, and on what it cannot name
    restart()
    finetune.run.main([*more, *splits(clothing, "test"), f"run.dir={tmp_path}/right"])
    assert tuned(tmp_path / "right") == right
    restart()
    with pytest.raises(UserError, match=r"is of class \[glove\] \(1 in .*other/classes.txt\)"):
        finetune.run.main([*more, *splits(clothing, "other"), f"run.dir={tmp_path}/right"])


def test_ranks_measure_it_alike(tmp_path: Path, clothing: Path, tuning: list[str]) -> None:
    told = [*tuning, *splits(clothing, "test"), "optim.steps=4"]
    for world in (1, 2):
        run_ranks([*told, f"run.dir={tmp_path}/{world}"], world, tmp_path, script="finetune.run")
    one, two = tuned(tmp_path / "1"), tuned(tmp_path / "2")
    assert one["confusion"] == two["confusion"]


def test_a_class_that_training_lacks_is_one_line_and_status_2(
    tmp_path: Path, clothing: Path, tuning: list[str]
) -> None:
    told = [*tuning, *splits(clothing, "other"), f"run.dir={tmp_path}/run"]
    with Ranks(told, 1, tmp_path / "logs", script="finetune.run") as ranks:
        assert ranks.wait() == [2]
        [line] = [line for line in ranks.output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: data.val: train-000000.tar/glove/")
    assert "is of class [glove] (1 in" in line
    assert not (tmp_path / "run").exists()


def test_many_labels_are_matched_by_name(tmp_path: Path, clothing: Path, tuning: list[str]) -> None:
    more = [*tuning, "data.multi_label=true"]
    for val in ("right", "test"):
        restart()
        finetune.run.main([*more, *splits(clothing, val), f"run.dir={tmp_path}/{val}"])
    assert tuned(tmp_path / "test") == tuned(tmp_path / "right")
    assert tuned(tmp_path / "test")["support"] == [0, 6, 6, 0]


def test_a_run_goes_on_with_the_classes_that_it_began_with(
    tmp_path: Path, clothing: Path, tuning: list[str]
) -> None:
    train = shutil.copytree(clothing / "train", tmp_path / "train")
    told = [*tuning, f"data.train={train}", f"data.val={clothing}/test", "optim.steps=4"]
    finetune.run.main([*told, f"run.dir={tmp_path}/run"])
    (train / "classes.txt").write_text("boot\ndress\ncoat\nhat\n")
    restart()
    text = r"run.dir=.*run holds a model whose class 1 is \[coat\], and now it is \[dress\]"
    with pytest.raises(UserError, match=text):
        finetune.run.main([*told, f"run.dir={tmp_path}/run"])


# ---------------------------------------------------------------- frozen encoders


@pytest.mark.parametrize("group", ["fewshot", "probe"])
def test_a_frozen_encoder_is_measured_by_name(
    tmp_path: Path, clothing: Path, encoder: list[str], group: str
) -> None:
    main = {"fewshot": finetune.fewshot.main, "probe": finetune.probe.main}[group]
    told = [*encoder, "data.workers=0", f"{group}.threads=1", f"{group}.features={tmp_path}/kept"]
    told += ["fewshot.shots=[5]"] if group == "fewshot" else ["probe.penalties=[0.1]"]
    cells: dict[str, Any] = {}
    for val in ("right", "test"):
        restart()
        main([*told, *splits(clothing, val), f"{group}.dir={tmp_path}/{val}"])
        cells[val] = tuned(tmp_path / val)["cells"]
    assert cells["test"] == cells["right"]
    figure = "accuracy/5shot" if group == "fewshot" else "accuracy/linear_top1"
    assert cells["right"][0][figure] > 0.9
    restart()
    with pytest.raises(UserError, match=r"data.val: .* is of class \[glove\]"):
        main([*told, *splits(clothing, "other"), f"{group}.dir={tmp_path}/other"])
    # labels are kept with the features: another list must not find them
    train = shutil.copytree(clothing / "train", tmp_path / "train")
    (train / "classes.txt").write_text("hat\ncoat\nboot\ndress\n")
    restart()
    main([*told, *splits(clothing, "test"), f"data.train={train}", f"{group}.dir={tmp_path}/new"])
    assert tuned(tmp_path / "new")["cells"][0][figure] < 0.6


def test_the_probe_of_pretraining_measures_by_name(
    tmp_path: Path, clothing: Path, tiny: list[str]
) -> None:
    told = [*tiny, "optim.steps=2", "optim.warmup_steps=0", "probe.shots=[5]", "probe.num_seeds=2"]
    probed: dict[str, Any] = {}
    for val in ("right", "test"):
        restart()
        run = tmp_path / val
        pretrain.run.main([*told, *splits(clothing, val, "probe"), f"run.dir={run}"])
        [record] = [r for r in read_records(run / "metrics.jsonl") if "probe/knn" in r]
        probed[val] = {key: value for key, value in record.items() if key.startswith("probe/")}
    assert probed["test"] == probed["right"]
    assert probed["right"]["probe/5shot"] > 0.9
    restart()
    with pytest.raises(UserError, match=r"probe.val: .* is of class \[glove\]"):
        pretrain.run.main([*told, *splits(clothing, "other", "probe"), f"run.dir={tmp_path}/x"])
    restart()
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(clothing / "right/train-000000.tar", bare)
    more = [
        *splits(clothing, "right", "probe"),
        f"probe.val={bare}",
        f"run.dir={tmp_path}/bare-run",
    ]
    with pytest.raises(UserError, match=r"set probe.classes=FILE to a list that holds for all"):
        pretrain.run.main([*told, *more])
    restart()
    pretrain.run.main([*told, *more, f"probe.classes={tmp_path}/names.txt"])
