"""The script of the probe with heads that read patches: its table, its file, several ranks."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file

import finetune.probe
from data.settings import UserError
from pretrain.evaluation.attentive import Sweep, attentive_probe
from pretrain.evaluation.classifiers import silent
from pretrain.evaluation.features import Features
from tests.conftest import MountDisk
from tests.launching import Ranks, run_ranks

pytestmark = pytest.mark.timeout(300)
QUICK = ["probe.steps=3", "probe.queries=4", "probe.rates=[0.01]"]
HEADS = ["probe.heads=[linear,knn,attentive,efficient]", *QUICK]


@pytest.fixture
def arguments(quick_probe: list[str]) -> list[str]:
    """Name the arguments of a quick measure in short."""
    return quick_probe


def measure(*arguments: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune.probe.main(list(arguments))


def result(folder: Path) -> dict[str, Any]:
    """Read a result without the time that it took."""
    read = json.loads((folder / "result.json").read_text())
    assert read.pop("seconds") > 0
    return read


def patch_files(folder: Path) -> dict[str, Path]:
    """Find the files that hold patches, by their splits."""
    found: dict[str, Path] = {}
    for path in folder.glob("features/*.safetensors"):
        with safe_open(path, "pt") as file:
            if "patches" in list(file.keys()):
                found[path.name.partition("-")[0]] = path
    return found


def test_poolings_and_heads_stand_in_one_table(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["probe.layers=all", "probe.poolings=[average,class]"]
    measure(*arguments, *more, f"probe.dir={tmp_path}/plain")
    capsys.readouterr()
    measure(*arguments, *more, *HEADS)
    read, plain = result(tmp_path / "out"), result(tmp_path / "plain")
    names = ("average", "class", "attentive", "efficient")
    cells = {(cell["layer"], cell["pooling"]): cell for cell in read["cells"]}
    assert list(cells) == [(layer, name) for layer in (1, 2) for name in names]
    for cell in plain["cells"]:  # what is pooled is as without those heads
        assert cells[cell["layer"], cell["pooling"]] == cell
    assert plain.keys() < read.keys()
    assert (read["queries"], read["steps"], read["rates"], read["seed"]) == (4, 3, [0.01], 0)
    last = cells[2, "efficient"]
    assert last["accuracy/linear_top5"] == 1  # of three classes
    assert last["rate"] == 0.01
    assert last["decay"] in read["decays"]
    table = capsys.readouterr().out.splitlines()
    row = [line for line in table if "| efficient |" in line][-1]
    header, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (table[2], row))
    shown = dict(zip(header, row, strict=True))
    assert shown["pooling"] == "efficient"
    assert shown["linear_top1"] == f"{last['accuracy/linear_top1']:.2%}"
    assert (shown["knn_top1"], shown["penalty"], shown["rate"]) == ("", "", "0.01")
    assert shown["held_out_loss"] == f"{last['held_out_loss']:g}"


def test_the_heads_are_fitted_on_the_patches_of_the_file(
    tmp_path: Path, arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        measure(*arguments, *QUICK, "probe.heads=[knn,efficient]", "probe.layers=[2,1]")
    # (36 + 10 images) x 2 layers x 16 patches x width 32 x 2 bytes
    said = f"the patch features take {94208 / 2**30:.3g} GiB in {tmp_path}/out/features"
    assert caplog.text.index(said) < caplog.text.index("reading the features of data.train")
    kept = load_file(patch_files(tmp_path / "out")["train"])
    patches, positions = kept["patches"], kept["positions"]
    assert (patches.shape, patches.dtype) == ((35, 2, 16, 32), torch.bfloat16)  # one image is bad
    assert positions.tolist() == [number for number in range(36) if number != 22]
    assert kept["labels"].tolist() == [number % 3 for number in positions.tolist()]
    [path] = set(tmp_path.glob("out/features/train-*")) - {patch_files(tmp_path / "out")["train"]}
    pooled = load_file(path)
    cells = [cell for cell in result(tmp_path / "out")["cells"] if cell["pooling"] == "efficient"]
    assert [cell["layer"] for cell in cells] == [2, 1]
    for place, cell in enumerate(cells):
        average = pooled[f"{cell['layer']}/average"]
        assert torch.allclose(patches[:, place].float().mean(1), average, atol=0.02)
        assert not torch.allclose(patches[:, 1 - place].float().mean(1), average, atol=0.02)
        train = Features(patches[:, place], kept["labels"], positions)
        sweep = Sweep([0.01], [1e-3, 1e-1], 3, 4, 0)
        assert attentive_probe("efficient", train, sweep, silent).held_out == cell["held_out_loss"]


def test_several_ranks_give_the_same_figures_and_the_same_file(
    tmp_path: Path, arguments: list[str]
) -> None:
    arguments = [*arguments, *HEADS, "probe.layers=all", "probe.penalties=[0.1]"]
    measure(*arguments)
    files = patch_files(tmp_path / "out")
    for world in (2, 3):
        more = [*arguments, f"probe.dir={tmp_path}/{world}"]
        run_ranks(more, world, tmp_path / "logs", script="finetune.probe")
        assert result(tmp_path / str(world)) == result(tmp_path / "out")
        for key, path in patch_files(tmp_path / str(world)).items():
            assert path.name == files[key].name
            assert path.read_bytes() == files[key].read_bytes()


@pytest.mark.parametrize("kept", [0, 7, 4000, 5000])
def test_patches_are_read_once_and_a_torn_file_is_made_anew(
    tmp_path: Path, arguments: list[str], caplog: pytest.LogCaptureFixture, kept: int
) -> None:
    arguments = [*arguments, *QUICK, "probe.heads=[attentive]"]
    arguments.remove("probe.queries=4")
    measure(*arguments)
    first, files = result(tmp_path / "out"), patch_files(tmp_path / "out")
    whole = files["train"].read_bytes()
    files["train"].write_bytes(whole[:kept])
    with caplog.at_level(logging.INFO):
        measure(*arguments)
        assert caplog.text.count("are taken from") == 1
        assert "reading the features of data.train" in caplog.text
        assert files["train"].read_bytes() == whole
        caplog.clear()
        measure(
            *arguments,
            "probe.seed=1",
            f"probe.dir={tmp_path}/other",
            f"probe.features={tmp_path}/out/features",
        )
        assert caplog.text.count("are taken from") == 2
        assert "reading" not in caplog.text
    other = result(tmp_path / "other")
    assert other["held_out_loss"] != first["held_out_loss"]
    measure(*arguments)
    assert result(tmp_path / "out") == first


# ---------------------------------------------------------------- disks


def test_too_little_room_is_said_before_any_image_is_read(
    tmp_path: Path,
    arguments: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage("/")
    small = usage._replace(free=1 << 15)
    monkeypatch.setattr(shutil, "disk_usage", Mock(return_value=small))
    with caplog.at_level(logging.INFO), pytest.raises(UserError) as caught:
        measure(*arguments, *HEADS)
    assert str(caught.value) == (
        f"probe.features={tmp_path}/out/features: the patch features take 4.39e-05 GiB, and "
        "3.05e-05 GiB are free there; name a folder on another disk, or fewer probe.layers"
    )
    assert "reading" not in caplog.text
    measure(*arguments)  # what is pooled needs no such room


def test_a_disk_that_fills_up_is_one_line_on_all_ranks(
    tmp_path: Path, arguments: list[str], mount_disk: MountDisk
) -> None:
    disk = mount_disk("64k")
    more = [*arguments, *HEADS, "probe.layers=all", f"probe.features={disk}"]
    with Ranks(more, 2, tmp_path / "logs", script="finetune.probe", prepare=_see_room) as ranks:
        assert ranks.wait() == [1, 1]
        lines = [line for line in ranks.output.splitlines() if line.startswith("stopped")]
    assert lines == [
        "stopped: the patches of data.train are not kept: No space left on device; make room"
    ]
    assert not list(disk.glob(".*.tmp"))


def _see_room() -> None:
    """Let the disk seem large: another program will fill it."""
    usage = shutil.disk_usage("/")
    shutil.disk_usage = lambda _: usage


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (["probe.heads=[]"], "probe.heads is empty; leave it out"),
        (
            ["probe.heads=[mlp]"],
            "probe.heads=mlp is not one of linear, knn, retrieval, attentive, eff",
        ),
        (["probe.heads=[attentive]", "probe.layers=[3]"], "probe.layers=3 is not in 1..2, the enc"),
        (
            ["probe.heads=[efficient]", "probe.queries=5"],
            "probe.queries=5 does not divide the encoder's width, 32, on which each query has its "
            "share; try a power of 2",
        ),
        (
            ["probe.heads=[attentive]", "probe.queries=4"],
            "probe.queries is read by efficient alone; add one to probe.heads, or leave it out",
        ),
        (["probe.steps=9"], "probe.steps is read by attentive, efficient alone; add one to probe."),
        (
            ["probe.heads=[attentive]", "probe.poolings=[class]"],
            "probe.poolings is read by linear, knn, retrieval alone; add one to probe.heads, or le",
        ),
        (["probe.heads=[attentive]", "probe.steps=0"], "probe.steps=0 must be above 0"),
        (["probe.heads=[attentive]", "probe.rates=[]"], "probe.rates=[] must be numbers above 0;"),
        (
            ["probe.heads=[attentive]", "probe.decays=[-1]"],
            "probe.decays=[-1.0] must be numbers from 0; try [0, 0.1]",
        ),
        (
            ["probe.heads=[attentive]", "data.fraction=0.5"],
            "probe.rates and probe.decays make 8 pairs, but data.train (data.fraction=0.5) has "
            "only 18 images to choose among them; name one of each",
        ),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], told: list[str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        measure(*arguments, *told)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)
