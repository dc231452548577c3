"""scripts/report.py, on small runs, and the parts it is made of."""

import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from data.index.opening import open_manifest
from data.settings import UserError
from data.shards import ImageFile, write_shard
from scripts.report_page.history import read_run

Report = Callable[..., str]
Printed = pytest.CaptureFixture[str]

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "report.py"
SIZE, PATCH = 32, 8
ENCODER = ("name=vit_tiny_patch16_224", "patch_size=8", "embed_dim=32", "depth=1", "num_heads=2")
COMMON = (
    *(f"encoder.{setting}" for setting in ENCODER),
    *("run.log_every=2", "run.eval_every=3", "optim.steps=6", "optim.batch_size=8"),
    *(f"data.image_size={SIZE}", "data.workers=0", "optim.warmup_steps=2"),
)


def write_images(path: Path, count: int) -> None:
    """A shard of random colour gradients in 2 classes."""
    generator = np.random.default_rng(count)
    ramp = np.linspace(0, 1, SIZE)[:, None, None] * np.ones((1, SIZE, 1))
    samples: list[ImageFile] = []
    for number in range(count):
        start, end = generator.uniform(0, 255, (2, 3))
        content = io.BytesIO()
        Image.fromarray((start + (end - start) * ramp).astype(np.uint8)).save(content, "PNG")
        samples.append(ImageFile(f"{number:04d}", "png", content.getvalue(), number % 2))
    write_shard(path, samples)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, the pretraining run `mine` and the fine-tuning run `tuned`."""
    folder = tmp_path_factory.mktemp("report")
    write_images(folder / "train.tar", 24)
    write_images(folder / "val.tar", 6)
    starts = {
        "pretrain": ("run.dir=mine", "data.shards=train.tar", "data.val_shards=val.tar"),
        "finetune": ("run.dir=tuned", "data.train=train.tar", "data.val=val.tar"),
    }
    open_manifest(folder, "data")  # once: below both runs would index the same shards
    runs = [
        subprocess.Popen(
            [sys.executable, ROOT / name / "run.py", *COMMON, "optim.ema=0.5", *more],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, more in starts.items()
    ]
    for run in runs:
        errors = run.communicate()[1]
        assert run.returncode == 0, errors
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pretraining run; the working folder is the one it was started in."""
    monkeypatch.chdir(folder)
    return shutil.copytree(folder / "mine", tmp_path / "mine", symlinks=True)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> Report:
    """Run the script in this process: arguments -> what it printed."""

    def start(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        monkeypatch.setattr(sys, "path", [*sys.path])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return start


# ---------------------------------------------------------------- the page


def test_the_page_is_whole_and_needs_nothing_else(run: Path, report: Report):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    printed = report(run)
    page = (run / "report.html").read_text()
    assert re.fullmatch(rf"report: {run}/report\.html \(\d+ kB\)\n", printed)
    assert "://" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    for heading in ("Is it learning?", "Is it fast?", "What did it cost?", "Last figures"):
        assert heading in page
    for chart in ("Loss", "Accuracy on corrupted patches", "Learning rate", "Throughput"):
        assert f'aria-label="{chart}: ' in page
    for baseline in ("class frequencies only", "most frequent class", "nearest visible patch"):
        assert baseline in page
    assert "6 of 6 (2.0 epochs)" in page
    assert "6 validation images, predicted by step-00000006" in page
    assert "embed_dim: 32" in page
    assert "Few-shot" not in page
    assert "Fine-tuning" not in page
    assert {path: path.read_bytes() for path in before} == before


def test_the_pictures_are_the_same_each_time(run: Path, report: Report):
    report(run)
    first = (run / "reconstructions.png").read_bytes()
    report(run, "--output", run / "other.html")
    assert (run / "reconstructions.png").read_bytes() == first
    assert (run / "other.html").read_text() == (run / "report.html").read_text()
    report(run, "--images", 2)
    assert (run / "reconstructions.png").read_bytes() != first


def test_results_beside_the_run_are_shown(run: Path, report: Report):
    shots = {"accuracy/5shot": 0.5, "deviation/5shot": 0.02}
    for name in ("fewshot", "fewshot-untrained", "finetune-long"):
        (run / name).mkdir()
    (run / "fewshot/result.json").write_text(json.dumps(shots))
    (run / "fewshot-untrained/result.json").write_text(json.dumps({"accuracy/5shot": 0.25}))
    result = {"accuracy": 0.8125, "encoder.init": "<mine>", "steps": 6}
    (run / "finetune-long" / "result.json").write_text(json.dumps(result))
    report(run)
    page = (run / "report.html").read_text()
    assert '<th scope="row">pretrained</th><td>50.0 ± 2.0 %</td>' in page
    assert '<th scope="row">untrained</th><td>25.0 ± 0.0 %</td>' in page
    assert '<th scope="row">finetune-long</th><td>&lt;mine&gt;</td><td>81.2 %</td>' in page


def test_training_images_stand_in_for_validation(run: Path, report: Report):
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(config, "data.val_shards", None)
    OmegaConf.save(config, run / "config.yaml")
    report(run)
    page = (run / "report.html").read_text()
    assert "8 training images (the run has no validation shards)" in page


def test_missing_shards_and_checkpoints_are_said(
    run: Path, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    report(run)
    assert "val.tar does not exist" in (run / "report.html").read_text()
    shutil.rmtree(run / "checkpoints")
    report(run)
    assert "the run has no whole checkpoint" in (run / "report.html").read_text()
    assert not (run / "reconstructions.png").exists()


def test_a_run_in_progress_is_left_alone(run: Path, report: Report):
    unfinished = run / "checkpoints" / ".writing-step-00000008"
    unfinished.mkdir()
    report(run)
    assert unfinished.is_dir()


def test_a_fine_tuning_run_has_a_report(folder: Path, report: Report, tmp_path: Path):
    output = tmp_path / "tuned.html"
    report(folder / "tuned", "--output", output)
    page = output.read_text()
    assert "mean over classes" in page
    assert 'aria-label="Accuracy: ' in page
    assert "reconstructions" not in page
    assert not (folder / "tuned" / "reconstructions.png").exists()


# ---------------------------------------------------------------- mistakes


def test_a_missing_run_is_one_line_and_status_2(report: Report, capsys: Printed):
    with pytest.raises(SystemExit) as stop:
        report("no/run")
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == "error: RUN=no/run is no folder; name a run's, such as runs/demo\n"
    assert printed.out == ""


def test_a_folder_without_records_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no metrics\.jsonl; name a folder that pretrain"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"has no record yet; the first comes after run\.log_every"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: .*; restore or delete it"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", 0), "--images=0 must be above 0; the default is 8"),
        (("--output", "no/folder/x.html"), "x.html cannot be written: No such file or directory"),
    ],
)
def test_wrong_options_are_named(
    run: Path, report: Report, capsys: Printed, arguments: tuple[object, ...], message: str
):
    with pytest.raises(SystemExit) as stop:
        report(run, *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_matplotlib_is_named(
    run: Path, report: Report, capsys: Printed, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stop:
        report(run)
    assert stop.value.code == 2
    assert "pip install -e '.[report]'" in capsys.readouterr().err
