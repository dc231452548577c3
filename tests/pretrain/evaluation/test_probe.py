"""The probe of a run that is under way: what it says, and that it changes nothing."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import finetune.fewshot
import finetune.probe
import pretrain.run
from data.config import DataConfig
from data.settings import UserError
from data.shards import ImageFile, write_shard
from data.stream import Share
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.evaluation.config import ProbeConfig
from pretrain.evaluation.measures import MeasureConfig, measure_images
from pretrain.evaluation.probe import Probe, SpectrumProbe
from pretrain.evaluation.spectrum import MEASURES
from pretrain.records.logs import read_records
from tests.conftest import make_png
from tests.launching import run_ranks

STEPS = 12
SHORT = [f"optim.steps={STEPS}", "run.checkpoint_every=5", "optim.batch_size=12"]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def arguments(tiny: list[str]) -> list[str]:
    """Give the arguments of a run of four epochs."""
    return [*tiny, *SHORT]


@pytest.fixture(scope="module")
def probe(shards: Path) -> list[str]:
    """Give the keys of a probe at each fifth step."""
    return [
        f"probe.train={shards}/train-*.tar",
        f"probe.val={shards}/val-0.tar",
        "probe.every=5",
        "probe.shots=[1,5]",
        "probe.num_seeds=2",
    ]


def split(run: Path) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Read what a run logged without its speed, and the probe's figures by step."""
    rest: list[dict[str, Any]] = []
    probed: dict[int, dict[str, float]] = {}
    for record in read_records(run / "metrics.jsonl"):
        own = {name: value for name, value in record.items() if name.startswith("probe/")}
        others = {k: v for k, v in record.items() if k not in own and not k.startswith("speed/")}
        rest.append(others)
        if own:
            probed[record["step"]] = own
    return rest, probed


@pytest.fixture(scope="module")
def unlabelled(shards: Path) -> str:
    """Give the key of a probe without labels."""
    return f"probe.images={shards}/train-*.tar"


SPECTRUM = {f"{name}{end}" for name in MEASURES for end in ("", "_patches")}
WAYS: dict[str, tuple[int, list[str]]] = {
    "one": (1, []),
    "workers": (1, ["data.workers=2"]),
    "ema": (1, ["optim.ema=0.9"]),
    "ddp2": (2, []),
    "fsdp2": (2, ["run.parallel=fsdp"]),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_a_run_is_the_same_to_the_bit_with_a_probe_in_it(
    tmp_path: Path, arguments: list[str], probe: list[str], unlabelled: str, way: str
) -> None:
    world, more = WAYS[way]
    probe = [*probe, unlabelled]
    more = [*arguments, *more, "encoder.args.drop_path_rate=0.2"]  # draws from torch's generator
    with_probe, without = tmp_path / "with", tmp_path / "without"
    output = run_ranks([*more, *probe, f"run.dir={with_probe}"], world, tmp_path / "logs")
    run_ranks([*more, f"run.dir={without}"], world, tmp_path / "logs")
    assert split(with_probe)[0] == split(without)[0]
    assert (with_probe / "encoder/model.safetensors").read_bytes() == (
        without / "encoder/model.safetensors"
    ).read_bytes()
    probed = split(with_probe)[1]
    assert list(probed) == [5, 10, 12]
    for figures in probed.values():
        accuracies = [figures.pop(f"probe/{name}") for name in ("knn", "1shot", "5shot")]
        assert all(0 <= value <= 1 for value in accuracies)
        assert set(figures) == {f"probe/{name}" for name in SPECTRUM}
        assert all(1 <= figures[f"probe/rankme{end}"] <= 32.001 for end in ("", "_patches"))
    for key in ("probe.train", "probe.images"):
        assert output.count(f"not used of {key}: train-1.tar/022") == 1


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory, arguments: list[str], probe: list[str]) -> Path:
    """Pretrain in pieces on two ranks, and probe in between."""
    folder = tmp_path_factory.mktemp("fsdp")
    more = [*arguments, *probe, "run.parallel=fsdp", "probe.layer=1", "probe.pooling=both"]
    run_ranks([*more, f"run.dir={folder}/run"], 2, folder / "logs")
    return folder / "run"


def test_the_last_probe_is_what_the_scripts_say_of_the_encoder(
    tmp_path: Path, fsdp: Path, shards: Path
) -> None:
    """The run was cut over two ranks; the scripts read its encoder whole on one."""
    common = [f"encoder.init={fsdp}", f"data.train={shards}/train-*.tar", "data.workers=0"]
    common += [f"data.val={shards}/val-0.tar"]
    keys = {"layers": "1", "poolings": "[both]", "batch_size": "6", "threads": "1"}

    def measure(main: Any, group: str, *more: str) -> dict[str, Any]:
        own = [f"{group}.{key}={value}" for key, value in keys.items()]
        main([*common, *own, *more, f"{group}.dir={tmp_path}/{group}"])
        return json.loads((tmp_path / group / "result.json").read_text())

    shots = measure(finetune.fewshot.main, "fewshot", "fewshot.shots=[1,5]", "fewshot.num_seeds=2")
    linear = measure(finetune.probe.main, "probe", "probe.penalties=[0.1]")
    last = split(fsdp)[1][STEPS]
    assert last["probe/1shot"] == pytest.approx(shots["accuracy/1shot"], abs=1e-12)
    assert last["probe/5shot"] == pytest.approx(shots["accuracy/5shot"], abs=1e-12)
    assert last["probe/knn"] == pytest.approx(linear["accuracy/knn_top1"], abs=1e-12)


def test_without_labels_the_last_spectrum_is_what_the_script_says_of_the_encoder(
    tmp_path: Path, arguments: list[str], unlabelled: str
) -> None:
    more = [unlabelled, "probe.every=0", "probe.layer=1", f"run.dir={tmp_path}/run"]
    pretrain.run.main([*arguments, *more])
    [(step, figures)] = split(tmp_path / "run")[1].items()
    assert step == STEPS
    images = unlabelled.removeprefix("probe.images=")
    config = MeasureConfig(layers=(1,), crops=0, batch_size=5, workers=0)
    pooled, patches = measure_images(str(tmp_path / "run"), images, config).cells
    for name in MEASURES:
        assert figures[f"probe/{name}"] == pytest.approx(pooled[name], rel=1e-5)
        assert figures[f"probe/{name}_patches"] == pytest.approx(patches[name], rel=1e-5)


def test_averaged_weights_are_probed_where_there_are_any(
    tmp_path: Path, arguments: list[str], probe: list[str]
) -> None:
    """Averaged over all steps almost nothing is learnt: the probe sees the untrained encoder."""
    more = [*arguments, *probe, "optim.lr=1e-1", "probe.every=0"]
    for ema in ("0.999999", "0"):
        pretrain.run.main([*more, f"optim.ema={ema}", f"run.dir={tmp_path}/{ema}"])
    pretrain.run.main([*more, "optim.lr=1e-12", f"run.dir={tmp_path}/still"])
    averaged, trained, untrained = (
        split(tmp_path / name)[1] for name in ("0.999999", "0", "still")
    )
    assert list(averaged) == [STEPS]
    assert averaged == untrained
    assert trained != untrained


def test_no_generator_is_drawn_from(shards: Path) -> None:
    torch.manual_seed(0)
    config = EncoderConfig("vit_tiny_patch16_224", "none", 4, 32, 2, 2)
    encoder = make_encoder(config, (16, 16))
    train = f"{shards}/train-*.tar"
    asked = ProbeConfig(train, f"{shards}/val-0.tar", images=train)
    data = DataConfig(workers=1)
    how = Accelerator(cpu=True), asked, data, encoder, Share(0, 1, 8)
    probe, spectrum = Probe(*how), SpectrumProbe(*how)

    def states() -> list[str]:
        return [str(s()) for s in (random.getstate, np.random.get_state, torch.get_rng_state)]

    before = states(), torch.get_rng_state()
    figures, unusable = probe(SimpleNamespace(encoder=encoder))
    assert set(figures) == {"knn", "1shot", "5shot", "10shot"}
    assert [(split.split, len(split.entries)) for split in unusable] == [
        ("probe.train", 1),
        ("probe.val", 0),
    ]
    assert set(spectrum(SimpleNamespace(encoder=encoder)).figures) == SPECTRUM
    assert states() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_too_few_images_that_can_be_read_have_no_rank(
    shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = EncoderConfig("vit_tiny_patch16_224", "none", 4, 36, 1, 2)
    encoder = make_encoder(config, (16, 16))  # there are 36 images, and one is damaged
    asked = ProbeConfig(images=f"{shards}/train-*.tar")
    spectrum = SpectrumProbe(
        Accelerator(cpu=True), asked, DataConfig(workers=0), encoder, Share(0, 1, 8)
    )
    figures, [unusable] = spectrum(SimpleNamespace(encoder=encoder))
    assert figures == {}
    assert len(unusable.entries) == 1
    assert "probe.images: 35 images can be read, and 36 are the least: no figures" in caplog.text


# ---------------------------------------------------------------- what is refused


def refusal(arguments: list[str], run: Path) -> str:
    with pytest.raises(UserError) as caught:
        pretrain.run.main([*arguments, f"run.dir={run}"])
    assert not run.exists(), "nothing has begun"
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("probe.val=null", "probe.train is set, but probe.val is missing; name labelled shards"),
        ("probe.train=null", "probe.val is set, but probe.train is missing; name labelled shards"),
        ("probe.every=-1", "probe.every=-1 is below 0; 0: only at the end"),
        ("probe.shots=[1,0]", "probe.shots=[1, 0] must be numbers from 1; try"),
        ("probe.shots=[1,50]", "probe.shots has 50, but class 0 of probe.train has only 12 images"),
        ("probe.neighbours=40", "probe.neighbours=40 is more than the 36 images of probe.train"),
        ("probe.layer=3", "probe.layer=3 is not in 1..2, the encoder's blocks"),
        ("probe.pooling=max", "probe.pooling=max is not one of average, class, both"),
    ],
)
def test_mistakes_are_refused_before_the_first_step(
    tmp_path: Path, arguments: list[str], probe: list[str], argument: str, text: str
) -> None:
    assert refusal([*arguments, *probe, argument], tmp_path / "run").startswith(text)


def test_fewer_images_than_dimensions_are_refused(
    tmp_path: Path, arguments: list[str], shards: Path
) -> None:
    text = refusal([*arguments, f"probe.images={shards}/val-0.tar"], tmp_path / "run")
    assert text == (
        "probe.images: 10 images for features of 32 dimensions; no rank is above the number of "
        "images, so name 32 images or more"
    )


def test_a_set_without_labels_is_refused_on_all_ranks(
    tmp_path: Path, arguments: list[str], probe: list[str]
) -> None:
    write_shard(tmp_path / "a.tar", [ImageFile("000", "png", make_png(0), None)])
    text = refusal([*arguments, *probe, f"probe.val={tmp_path}/a.tar"], tmp_path / "run")
    assert text == (
        "probe.val: a.tar/000: no .cls member; each sample needs a class number from 0 beside its "
        "image"
    )


def test_a_class_that_the_training_images_lack_is_refused(
    tmp_path: Path, arguments: list[str], probe: list[str]
) -> None:
    write_shard(tmp_path / "a.tar", [ImageFile("000", "png", make_png(0), 7)])
    text = refusal([*arguments, *probe, f"probe.val={tmp_path}/a.tar"], tmp_path / "run")
    assert text.startswith("probe.val has class [7], which probe.train lacks")
