"""The few-shot script: its table, its result, the features that it keeps, on several ranks."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

import finetune.fewshot
from data.settings import RunStopped, UserError
from data.shards import ImageFile, write_shard
from pretrain.encoder import EncoderConfig, load_encoder, make_encoder, save_encoder
from pretrain.evaluation.fingerprint import identity
from tests.conftest import make_png
from tests.launching import Ranks, run_ranks

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def arguments(tmp_path: Path, shards: Path, encoder: list[str]) -> list[str]:
    """Give the arguments of a quick measure."""
    return [
        *encoder,
        f"data.train={shards}/train-*.tar",
        f"data.val={shards}/val-0.tar",
        "data.workers=0",
        "fewshot.shots=[1,5]",
        "fewshot.num_seeds=2",
        "fewshot.batch_size=4",
        "fewshot.threads=1",
        f"fewshot.dir={tmp_path}/out",
    ]


def elsewhere(tmp_path: Path) -> list[str]:
    """Give another folder for the result, and the same one for the features."""
    return [f"fewshot.dir={tmp_path}/other", f"fewshot.features={tmp_path}/out/features"]


def result(folder: Path) -> dict[str, Any]:
    """Read a result without the time that it took."""
    read = json.loads((folder / "result.json").read_text())
    assert read.pop("seconds") > 0
    return read


def test_all_layers_and_poolings_stand_in_one_table(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["fewshot.layers=all", "fewshot.poolings=[average,class,both]"]
    finetune.fewshot.main([*arguments, *more])
    read = result(tmp_path / "out")
    views = [(cell["layer"], cell["pooling"]) for cell in read["cells"]]
    assert views == [(layer, name) for layer in (1, 2) for name in ("average", "class", "both")]
    assert read["accuracy/5shot"] == read["cells"][0]["accuracy/5shot"]
    told = ("encoder.init", "num_train", "num_bad_train", "num_val", "num_seeds", "penalty")
    assert [read[key] for key in told] == ["none", 35, 1, 10, 2, 10.0]
    table = (tmp_path / "out/table.md").read_text()
    assert capsys.readouterr().out == f"random weights: 10 images\n\n{table}"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["layer", "pooling", "1shot", "5shot"]
    for row, cell in zip(rows[2:], read["cells"], strict=True):
        shown = f"{cell['accuracy/5shot']:.2%} ± {cell['deviation/5shot']:.2%}"
        assert row == [str(cell["layer"]), cell["pooling"], row[2], shown]


def test_the_last_block_alone_is_read_unless_asked(tmp_path: Path, arguments: list[str]) -> None:
    finetune.fewshot.main(arguments)
    assert [cell["layer"] for cell in result(tmp_path / "out")["cells"]] == [2]


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_give_the_same_figures(
    tmp_path: Path, arguments: list[str], world: int
) -> None:
    arguments = [*arguments, "fewshot.layers=all", "fewshot.poolings=[average,both]"]
    finetune.fewshot.main(arguments)
    more = [*arguments, f"fewshot.dir={tmp_path}/ranks"]
    output = run_ranks(more, world, tmp_path / "logs", script="finetune.fewshot")
    assert result(tmp_path / "ranks") == result(tmp_path / "out")
    assert output.count("random weights: 10 images") == 1
    assert output.count("data.train: 1 of 36 images cannot be used, such as") == 1
    names = [
        sorted(path.name for path in tmp_path.glob(f"{n}/features/*")) for n in ("out", "ranks")
    ]
    assert names[0] == names[1]
    # and what they keep is found again, by any number of them
    again = run_ranks(more, world, tmp_path / "logs", script="finetune.fewshot")
    assert "the features of data.train are taken from" in again
    assert again.count(".safetensors (1 image cannot be used)\n") == 1  # not of data.val
    assert f"the result is in {tmp_path}/ranks/result.json, the table below in" in again
    assert result(tmp_path / "ranks") == result(tmp_path / "out")


# ---------------------------------------------------------------- features on disk


def extractions(caplog: pytest.LogCaptureFixture, arguments: list[str]) -> int:
    """Measure; return how many splits were read from images: each that is kept says so."""
    caplog.clear()
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps its precision
    with caplog.at_level(logging.INFO):
        finetune.fewshot.main(arguments)
    return 2 - sum("are taken from" in record.getMessage() for record in caplog.records)


def test_features_are_kept_and_used_for_the_same_alone(
    tmp_path: Path, arguments: list[str], shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert extractions(caplog, arguments) == 2
    first = result(tmp_path / "out")
    assert extractions(caplog, [*arguments, "fewshot.batch_size=8"]) == 0
    assert result(tmp_path / "out") == first
    for other in (
        "encoder.num_heads=4",  # the same weights
        "encoder.depth=1",
        "data.image_size=20",
        "data.mean=[0.1,0.2,0.3]",
        "fewshot.layers=[1,2]",
        "fewshot.poolings=[class]",
        "fewshot.precision=bf16",
    ):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)  # it is another encoder's
        assert extractions(caplog, [*arguments, *elsewhere(tmp_path), other]) == 2, other
    part = [*arguments, f"data.train={shards}/train-[12].tar", "fewshot.shots=[1]"]
    part += ["data.max_bad_ratio=0.1"]
    assert extractions(caplog, part) == 1
    assert extractions(caplog, [*part, f"data.val={shards}/train-0.tar"]) == 1
    other = result(tmp_path / "out")  # which says that its images were others
    assert all(other[key] != first[key] for key in ("data.train.sha256", "data.val.sha256"))
    assert extractions(caplog, arguments) == 0
    assert result(tmp_path / "out") == first


def test_another_encoder_of_the_same_shape_is_read_anew(
    tmp_path: Path, arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert extractions(caplog, arguments) == 2
    config = EncoderConfig("vit_tiny_patch16_224", "none", 4, 32, 2, 2)
    torch.manual_seed(1)
    save_encoder(make_encoder(config, (16, 16)), tmp_path / "other")
    more = [*elsewhere(tmp_path), f"encoder.init={tmp_path}/other"]
    assert extractions(caplog, [*arguments, *more]) == 2
    assert result(tmp_path / "other")["encoder.init"] == f"{tmp_path}/other"
    assert identity(load_encoder(tmp_path / "other")) != identity(make_encoder(config, (16, 16)))
    assert identity(load_encoder(tmp_path / "other")) == identity(load_encoder(tmp_path / "other"))


@pytest.mark.parametrize("kept", [0, 7, 600])
def test_a_torn_file_of_features_is_never_used(
    tmp_path: Path, arguments: list[str], caplog: pytest.LogCaptureFixture, kept: int
) -> None:
    finetune.fewshot.main(arguments)
    first = result(tmp_path / "out")
    [path] = tmp_path.glob("out/features/train-*")
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    assert extractions(caplog, arguments) == 1
    assert path.read_bytes() == whole
    assert result(tmp_path / "out") == first


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("fewshot.layers=[0]", "fewshot.layers=[0] is neither a list of numbers from 1 nor all"),
        ("fewshot.layers=last", "fewshot.layers=last is neither a list of numbers from 1 nor all"),
        ("fewshot.layers=[]", "fewshot.layers=[] is neither a list of numbers from 1 nor all"),
        ("fewshot.layers=3", "fewshot.layers=3 is not in 1..2, the encoder's blocks"),
        ("fewshot.poolings=[]", "fewshot.poolings is empty; leave it out"),
        ("fewshot.precision=fp16", "fewshot.precision=fp16 is not one of fp32, bf16"),
        ("data.multi_label=true", "data.multi_label=true, but a frozen encoder is measured by one"),
        ("data.augment=rand-m9", "data.augment=rand-m9, but a frozen encoder sees images as they"),
        (
            "data.crop_area=[0.5,1]",
            "data.crop_area=[0.5, 1.0], but a frozen encoder sees no random",
        ),
        ("data.trace=true", "data.trace=true, but a frozen encoder takes no steps; leave it out"),
        ("fewshot.dir=/dev/null/a", "fewshot.dir=/dev/null/a is no folder that can be written"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], argument: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        finetune.fewshot.main([*arguments, argument])
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_a_set_without_labels_is_one_line_and_status_2_on_two_ranks(
    tmp_path: Path, arguments: list[str]
) -> None:
    write_shard(tmp_path / "a.tar", [ImageFile("000", "png", make_png(999), None)])
    more = [*arguments, f"data.val={tmp_path}/a.tar", "encoder.init=none"]
    with Ranks(more, 2, tmp_path / "logs", script="finetune.fewshot") as ranks:
        assert ranks.wait() == [2, 2]
        lines = [line for line in ranks.output.splitlines() if "indexing" not in line]
    assert lines == [
        "error: data.val: a.tar/000: no .cls member; each sample needs a class number from 0 "
        "beside its image"
    ]


def test_too_many_unusable_images_stop_the_measure(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(
        RunStopped, match=r"2.8% of the samples of data.train cannot be used \(1 of 36\), more"
    ):
        finetune.fewshot.main([*arguments, "data.max_bad_ratio=0.01"])
    assert not (tmp_path / "out/result.json").exists()
