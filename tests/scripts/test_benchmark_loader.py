"""scripts/benchmark.py loader: its record, its sources, and the exact resize it is held to."""

import atexit
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import islice
from multiprocessing.forkserver import ensure_running, set_forkserver_preload
from pathlib import Path

import numpy as np
import pytest
import torch

from data.images import jpeg
from data.images.decoding import decode
from data.index.open import open_manifest
from data.settings import UserError
from data.shards import ImageFile, write_shard
from pretrain.machine.apart import in_fresh_process
from scripts._benchmark.installed import choose
from scripts._benchmark.loading.loader import OURS, PACKAGES, RATIOS, copy_images
from scripts._benchmark.loading.one_core import PRELOAD, start_on_one_core, take_turn
from scripts._benchmark.loading.sources import SOURCES, Images, ours, read_images
from scripts._benchmark.options import LoaderOptions
from scripts._benchmark.photographs import make_photograph_shard

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"
PHOTOS = Path(__file__).resolve().parents[3] / "shared/data/photos"
SHORT = ["--rounds=1", "--seconds=0.01", "--batch-size=4", "--image-size=32"]
SIDE = 40


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "loader", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """Start the server that processes are forked from, with torch imported once."""
    set_forkserver_preload(PRELOAD)
    ensure_running()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = tmp_path_factory.mktemp("photographs")
    shard = make_photograph_shard(folder)
    return copy_images(LoaderOptions(image_size=SIDE, batch_size=8), [shard], folder)


# ---------------------------------------------------------------- as a user starts it


@pytest.mark.faults
def test_it_measures_speeds_without_shards(tmp_path: Path) -> None:
    path = tmp_path / "loader.json"
    done = run(*SHORT, "--against=pil_uint8,webdataset_ours", f"--json={path}")
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    variants = {OURS, "pil_uint8", "webdataset_ours"}
    names = {"loader_vs_pil_uint8", "stream_vs_webdataset"}
    assert set(record["ratios"]) == names | {f"{name}_cpu" for name in names}
    for unit in ("images_per_second", "images_per_cpu_second"):
        assert set(record[unit]) == variants
        for values in record[unit].values():
            assert 0 < values["min"] <= values["median"] <= values["max"] < math.inf
    speeds = record["images_per_second"]
    ratio = speeds[OURS]["median"] / speeds["webdataset_ours"]["median"]
    assert record["ratios"]["stream_vs_webdataset"] == pytest.approx(ratio)
    assert record["settings"]["against"] == "pil_uint8,webdataset_ours"
    assert record["settings"]["shards"] == []
    assert record["decodes_crops"] == jpeg.is_available()
    assert "stream_vs_webdataset_cpu" in done.stdout


def test_a_mistake_is_one_line_and_status_2() -> None:
    done = run("--against=pil,tensorflow")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "'tensorflow' is not one of pil, " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_not_installed_is_named_with_the_extra() -> None:
    missing = [name for name, package in PACKAGES.items() if not package.is_installed]
    if not missing:
        pytest.skip("all alternatives are installed")
    with pytest.raises(UserError, match=re.escape("run pip install -e '.[bench]' here")):
        choose(missing[0], PACKAGES)


def test_each_ratio_has_its_source() -> None:
    assert {name for pair in RATIOS.values() for name in pair} == set(SOURCES)
    assert {OURS, *PACKAGES} == set(SOURCES)


# ---------------------------------------------------------------- the images


def test_only_what_all_see_alike_is_copied(shards: Path, tmp_path: Path) -> None:
    images = copy_images(LoaderOptions(), [f"{shards}/train-*.tar"], tmp_path)
    assert images.num_images == 35  # of 36: one is no image
    assert len(read_images(images.shards)) == 35
    assert open_manifest(images.shards, "SHARDS").num_samples == 35


def test_without_an_image_that_all_read_there_is_nothing_to_measure(tmp_path: Path) -> None:
    shard = tmp_path / "one.tar"
    write_shard(shard, [ImageFile("0", "png", b"no image")])
    with pytest.raises(UserError, match="hold no plain RGB or grey JPEG or PNG"):
        copy_images(LoaderOptions(), [str(shard)], tmp_path)


def test_padding_is_no_image(shards: Path, tmp_path: Path) -> None:
    images = Images([f"{shards}/train-0.tar"], 20, 16, 16, str(tmp_path))
    assert [len(batch) for batch in islice(ours(images), 4)] == [16, 4, 16, 4]


# ---------------------------------------------------------------- the sources


Crops = tuple[list[tuple[int, ...]], str, float, float]


def first_crops(images: Images) -> dict[str, Crops | str]:
    """Return of each source the shapes, the type, the mean and the deviation, or what went wrong.

    In a process of its own: some libraries leave threads and shared memory behind.
    """
    multiprocessing.set_start_method("fork", force=True)  # as OneCore has it
    names = [name for name in SOURCES if name == OURS or PACKAGES[name].is_installed]
    found: dict[str, Crops | str] = {}
    for name in names:
        try:
            source = SOURCES[name](images)
            batches = [next(source) for _ in range(3)]
        except Exception:
            found[name] = traceback.format_exc()
            continue
        pixels = torch.cat([batch.float() for batch in batches])
        shapes = [tuple(batch.shape) for batch in batches]
        found[name] = shapes, str(batches[0].dtype), float(pixels.mean()), float(pixels.std())
    atexit._run_exitfuncs()
    return found


@pytest.fixture(scope="module")
def crops(photographs: Images) -> dict[str, Crops | str]:
    return in_fresh_process(first_crops, photographs)


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_source_gives_crops_of_the_photographs(
    name: str, photographs: Images, crops: dict[str, Crops | str]
) -> None:
    if name not in crops:
        pytest.skip(f"{name} {PACKAGES[name].complaint}")
    made = crops[name]
    assert isinstance(made, tuple), made
    shapes, dtype, mean, std = made
    shape = (8, SIDE, SIDE, 3) if name == "dali" else (8, 3, SIDE, SIDE)
    assert shapes == [shape] * 3
    is_float = name in ("pil", "webdataset", "streaming")
    assert dtype == ("torch.float32" if is_float else "torch.uint8")
    if is_float:
        mean, std = 127.5 * (mean + 1), 127.5 * std
    whole = np.concatenate([np.ravel(decode(c)) for c in read_images(photographs.shards)])
    assert mean == pytest.approx(whole.mean(), abs=40)  # 24 crops
    assert std == pytest.approx(whole.std(), rel=0.4)


def where_it_runs() -> Iterator[list[int]]:
    while True:
        time.sleep(0.01)
        yield list(os.sched_getaffinity(0))  # its length, the number of cores, counts as images


def busy_worker() -> Iterator[list[int]]:
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    yield [1]
    raise RuntimeError("the third batch is missing")


def test_a_source_is_held_to_one_core_and_its_cpu_time_is_counted() -> None:
    with start_on_one_core("waiting", where_it_runs) as waiting:
        turn = waiting.call(take_turn, 0.1)
    assert turn.seconds >= 0.1
    assert turn.num_images <= turn.seconds / 0.01  # one core each time
    assert 0 < turn.cpu_seconds < turn.seconds / 2  # it sleeps


def test_what_a_source_raises_is_told() -> None:
    with start_on_one_core("broken", busy_worker) as broken:
        broken.wait_until_made()
        with pytest.raises(RuntimeError, match="the third batch is missing"):
            broken.call(take_turn, 0.1)
