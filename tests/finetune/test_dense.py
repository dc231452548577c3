"""The script of dense evaluation."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from timm.models import save_for_hf

import finetune.dense
from data.settings import RunStopped, UserError
from pretrain.evaluation.dense import memory
from tests.launching import run_ranks
from tests.segmented import as_png, make_image, make_mask, make_members, write_segmented, write_tar

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 24 training images and 7 validation images; one of each cannot be used."""
    folder = tmp_path_factory.mktemp("masks")
    for split, numbers in (("train", range(24)), ("val", range(100, 107))):
        samples = {f"{number:03d}": make_members(number) for number in numbers}
        bad = f"{numbers[5]:03d}"
        samples[bad] = {"png": samples[bad]["png"]}
        write_tar(folder / f"{split}.tar", samples.items())
    return folder


@pytest.fixture
def arguments(tmp_path: Path, masks: Path) -> list[str]:
    """Give the arguments of a quick measure."""
    return [
        "encoder.init=none",
        "encoder.name=vit_tiny_patch16_224",
        "encoder.patch_size=4",
        "encoder.embed_dim=32",
        "encoder.depth=2",
        "encoder.num_heads=2",
        f"data.train={masks}/train.tar",
        f"data.val={masks}/val.tar",
        "data.image_size=[20,24]",
        "data.num_classes=3",
        "data.ignored=9",
        "data.max_bad_ratio=0.3",
        "data.workers=0",
        "dense.batch_size=4",
        "dense.threads=1",
        "dense.epochs=20",
        "dense.penalties=[0.01]",
        f"dense.dir={tmp_path}/out",
    ]


def run(arguments: list[str]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune.dense.main(arguments)


def result(folder: Path) -> dict[str, Any]:
    """Read a result without the time that it took."""
    read = json.loads((folder / "result.json").read_text())
    assert read.pop("seconds") > 0
    return read


def test_each_head_learns_what_the_colours_tell(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run([*arguments, "dense.layers=all"])
    read, out = result(tmp_path / "out"), tmp_path / "out"
    assert (read["num_train"], read["num_bad_train"], read["num_val"]) == (23, 1, 6)
    heads = ["linear", "logistic", "knn"]
    cells = [(cell["layer"], cell["head"]) for cell in read["cells"]]
    assert cells == [(layer, head) for layer in (1, 2) for head in heads]
    masks = np.stack([make_mask(number) for number in range(100, 107) if number != 105])
    shares = [(masks == number).sum() / (masks != 9).sum() for number in range(3)]
    assert read["pixels_by_class"] == pytest.approx(shares)
    for cell in read["cells"]:
        assert cell["iou/mIoU"] == pytest.approx(np.mean(cell["iou_by_class"]))
        assert cell["accuracy/pixel_accuracy"] > 0.7  # a third by chance
        assert cell["iou/held_out_mIoU"] > 0.5
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "means over the 3 classes of data.val's masks. By class, layer " in table
    ledger = [json.loads(line) for line in (out / "bad_samples.jsonl").read_text().splitlines()]
    named = [(line["split"], line["key"], line["reason"]) for line in ledger]
    reason = "no mask: it has no .seg.png member"
    assert named == [("data.train", "005", reason), ("data.val", "105", reason)]
    with Image.open(out / "predictions.png") as picture:
        assert picture.width > 500
    run([*arguments, "dense.layers=all"])  # the ledger is of this run
    assert len((out / "bad_samples.jsonl").read_text().splitlines()) == 2
    assert result(out) == read


def test_several_ranks_give_the_same_figures(tmp_path: Path, arguments: list[str]) -> None:
    run(arguments)
    for world in (2, 3):
        own = [*arguments, f"dense.dir={tmp_path}/{world}"]
        run_ranks(own, world, tmp_path / "logs", script="finetune.dense")
        folder = tmp_path / str(world)
        assert result(folder) == result(tmp_path / "out")
        ledgers = [(of / "bad_samples.jsonl").read_text() for of in (folder, tmp_path / "out")]
        assert ledgers[0] == ledgers[1]


def test_a_cnns_feature_maps_are_patches(tmp_path: Path, arguments: list[str]) -> None:
    torch.manual_seed(0)
    cnn = timm.create_model("test_resnet", num_classes=0)
    save_for_hf(cnn, str(tmp_path / "cnn"), safe_serialization=True)
    others = [a for a in arguments if not a.startswith("encoder.")]
    own = ["data.image_size=[40,48]", "dense.layers=[2,1]", "dense.heads=[logistic,knn]"]
    run([*others, f"encoder.init={tmp_path}/cnn", *own])
    read = result(tmp_path / "out")
    assert [cell["layer"] for cell in read["cells"]] == [2, 2, 1, 1]
    assert read["image_size"] == [40, 48]
    assert all(cell["accuracy/pixel_accuracy"] > 0.6 for cell in read["cells"])


def test_a_class_that_training_lacks_counts_as_nothing(
    tmp_path: Path, arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    mask = make_mask(1)
    mask[:10] = 3
    members = {"png": as_png(make_image(mask % 3, 1)), "seg.png": as_png(mask)}
    val = write_tar(tmp_path / "val.tar", [("new", members), ("old", make_members(2))])
    own = ["data.num_classes=5", f"data.val={val}", "dense.heads=[logistic]"]
    run([*arguments, *own])
    text = "data.val has the class [3], which no mask of data.train has: no head can name "
    assert text in caplog.text
    [cell] = result(tmp_path / "out")["cells"]
    assert (cell["iou_by_class"][3], cell["iou_by_class"][4]) == (0, None)
    there = [iou for iou in cell["iou_by_class"] if iou is not None]
    assert cell["iou/mIoU"] == pytest.approx(sum(there) / len(there))
    assert "No mask of data.val has 1, 4." in (tmp_path / "out/table.md").read_text()


def test_names_are_those_beside_the_shards(tmp_path: Path, arguments: list[str]) -> None:
    for split, numbers in (("train", range(12)), ("val", range(20, 23))):
        write_segmented(tmp_path / split / "a.tar", numbers)
        (tmp_path / split / "classes.txt").write_text("red\ngreen\nblue\n")
    own = [f"data.train={tmp_path}/train/a.tar", f"data.val={tmp_path}/val/a.tar"]
    run([*arguments, *own, "data.num_classes=null", "dense.heads=[logistic]", "dense.pictures=0"])
    assert result(tmp_path / "out")["classes"] == ["red", "green", "blue"]
    assert "| green " in (tmp_path / "out/table.md").read_text()
    assert not (tmp_path / "out/predictions.png").exists()
    with pytest.raises(UserError, match=r"data.num_classes=4, but .*classes.txt names 3"):
        run([*arguments, *own, "data.num_classes=4"])


def test_memory_that_would_not_do_is_told_before_an_image_is_read(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def few(_: torch.device) -> int:
        return 100_000

    monkeypatch.setattr(memory, "free_bytes", few)
    with pytest.raises(UserError, match=r"^dense.layers: the patch features of 31 images .* take "):
        run(arguments)
    assert "start:" not in caplog.text


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("data.num_classes=null", "data.num_classes is missing, and nothing names the classes"),
        ("data.num_classes=256", "data.num_classes=256 is not in 2..255; a mask has 8 bits"),
        ("data.ignored=256", "data.ignored=256 is not in 0..255"),
        ("data.image_size=[21,24]", "data.image_size=21 is not a multiple of encoder.patch_size=4"),
        ("dense.layers=[3]", "dense.layers=3 is not in 1..2, the encoder's blocks"),
        ("dense.heads=[svm]", "dense.heads=['svm'] must be some of linear, logistic, knn"),
        ("dense.rates=[0]", "dense.rates=[0.0] must be numbers above 0"),
        ("dense.distances=[]", "dense.distances=[] must be some of cosine, euclidean"),
        (
            "dense.heads=[knn] dense.epochs=3",
            "dense.epochs is read by linear alone; add one to dense.heads, or leave it out",
        ),
        ("dense.poolings=[class]", "dense.poolings is no key"),
        ("data.multi_label=true", "data.multi_label=true, but a frozen encoder is measured by one"),
        ("data.fraction=0.3", "dense.heads: linear has 3 settings, but data.train (data.fraction"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], argument: str, text: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(text)}") as caught:
        run([*arguments, *argument.split()])
    assert "\n" not in str(caught.value)


def test_what_cannot_be_judged_is_told(tmp_path: Path, arguments: list[str], shards: Path) -> None:
    with pytest.raises(UserError, match=r"^data.val: no sample has a mask, KEY.seg.png beside KEY"):
        run([*arguments, f"data.val={shards}/val-0.tar"])
    with pytest.raises(
        RunStopped, match=r"of the samples of data.train cannot be used \(1 of 24\)"
    ):
        run([*arguments, "data.max_bad_ratio=0.01"])
    void = make_members(1) | {"seg.png": as_png(np.full((20, 24), 9, np.uint8))}
    val = write_tar(tmp_path / "void.tar", [("a", void)])
    with pytest.raises(UserError, match=r"^data.val: no pixel has a class, all are data.ignored"):
        run([*arguments, f"data.val={val}"])
    only = write_tar(tmp_path / "only.tar", [("a", {"seg.png": make_members(1)["seg.png"]})])
    with pytest.raises(UserError, match=r"holds 1 sample and no image"):
        run([*arguments, f"data.val={only}"])
