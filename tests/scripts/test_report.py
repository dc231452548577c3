"""scripts/report.py, on small runs, and the parts it is made of."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from data.settings import UserError
from pretrain.records import checkpoint
from pretrain.records.checkpoint import hash_file
from scripts._report import watching
from scripts._report.history import read_run
from tests import reporting
from tests.reporting import IMAGES, LABELLED, make_runs

Report = Callable[..., str]
Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, the pretraining runs `mine`, `plain` and the fine-tuning run `tuned`.

    `mine` is the paper's; `plain` predicts pixels, sees no mask, and has no positions.
    """
    folder = tmp_path_factory.mktemp("report")
    masks = ("corruption.mask_ratio=1.0", "corruption.random_ratio=0.0")
    other = ("target.kind=normalised_pixels", "encoder.sees_masked=false", "encoder.position=none")
    make_runs(
        folder,
        ("pretrain", "run.dir=mine", *IMAGES),
        ("pretrain", "run.dir=plain", *IMAGES, *masks, *other),
        ("finetune", "run.dir=tuned", *LABELLED),
    )
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
        reporting.report(monkeypatch, *arguments)
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
    for figure in ("Reconstructions", "Principal filters", "position embeddings", "rollout"):
        assert figure in page
    assert "Does it learn more than copying?" in page
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
    assert "by layer and pooling" not in page
    assert '<th scope="row">pretrained</th><td>50.0 ± 2.0 %</td>' in page
    assert '<th scope="row">untrained</th><td>25.0 ± 0.0 %</td>' in page
    assert '<th scope="row">finetune-long</th><td>&lt;mine&gt;</td><td>81.2 %</td>' in page


@pytest.mark.parametrize("num_val", [10, 9])
def test_encoders_measured_on_other_images_are_not_compared(
    run: Path, report: Report, num_val: int
):
    images = {"data.train.sha256": "a", "num_train": 35, "data.val.sha256": "b", "num_val": 10}
    for name, more in (("fewshot", {}), ("fewshot-untrained", {"num_val": num_val})):
        (run / name).mkdir()
        result = {**images, "accuracy/5shot": 0.5, **more}
        (run / name / "result.json").write_text(json.dumps(result))
    report(run)
    page = (run / "report.html").read_text()
    assert ("Pretraining helped where it beats untrained." in page) == (num_val == 10)
    assert ("were measured on different images" in page) == (num_val == 9)


def test_few_shot_is_shown_by_layer_and_pooling(run: Path, report: Report):
    cells = [
        {"layer": layer, "pooling": pooling, "accuracy/1shot": 0.1, "accuracy/5shot": 0.2 * layer}
        for layer in (1, 2)
        for pooling in ("average", "class")
    ]
    (run / "fewshot").mkdir()
    result = {"cells": cells, **cells[0], "deviation/5shot": 0.01}
    (run / "fewshot/result.json").write_text(json.dumps(result))
    report(run)
    page = (run / "report.html").read_text()
    assert '<th scope="row">pretrained, layer 2, class</th><td>10.0 ± 0.0 %</td>' in page
    assert "Best of pretrained, by 5 images a class: layer 2, average, 40.0 ± 0.0 %." in page
    label = "Few-shot accuracy by layer and pooling: accuracy (%), 5 images a class over layer"
    assert f'aria-label="{label}; last values: pretrained, average 40, ' in page


def test_a_run_on_pixels_without_positions_is_told_in_its_own_terms(
    folder: Path, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    run = shutil.copytree(folder / "plain", tmp_path / "plain", symlinks=True)
    report(run)
    page = (run / "report.html").read_text()
    assert "target normalised_pixels, random masks on 50 % of the patches; masked patches" in page
    assert "The mean squared error of the validation patches is " in page
    assert "copying the nearest visible patch" in page
    assert 'aria-label="Loss: loss (mean squared error) over step; ' in page
    assert "Principal filters of the patch embedding" in page
    assert "Similarity of position embeddings: none, since the encoder has no table" in page
    for other in ("nats", "ccuracy", "each class is", "nan"):
        assert other not in re.sub(r"<summary>.*?</details>", "", page, flags=re.DOTALL)


def test_samples_that_could_not_be_used_are_drawn_over_the_steps(run: Path, report: Report):
    assert "Samples that could not be used" not in report(run)
    entries = [json.dumps({"step": step, "reason": "torn"}) + "\n" for step in (2, 2, 4)]
    (run / "bad_samples.jsonl").write_text("".join(entries))
    report(run)
    page = (run / "report.html").read_text()
    assert 'aria-label="Samples that could not be used: samples since the start over step' in page
    assert "3 times a sample could not be used" in page


def test_a_run_that_diverged_has_a_page(run: Path, report: Report):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records[-1] |= {"train/loss": None, "val/loss": None, "optim/grad_norm": None}
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    report(run)
    assert "the run has diverged" in (run / "report.html").read_text()


# ---------------------------------------------------------------- figures in files


def test_figures_are_written_twice_alike(run: Path, report: Report, tmp_path: Path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        report(run, "--figures", folder)
    first, second = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert first == second
    for name in ("loss", "accuracy-by-distance", "reconstructions", "attention-rollout"):
        picture = Image.open(io.BytesIO(first[f"{name}.png"]))
        assert picture.width > 500
        assert first[f"{name}.svg"].rstrip().endswith(b"</svg>")
    assert Image.open(io.BytesIO(first["loss.png"])).info["dpi"] == pytest.approx((200, 200), 1e-3)
    page = (run / "report.html").read_text()
    assert len(first) == 2 * page.count("<figcaption>")


# ---------------------------------------------------------------- several runs


def test_runs_are_set_side_by_side(
    folder: Path, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    output = tmp_path / "both.html"
    before = sorted(folder.rglob("*"))
    report("mine", "plain", "--output", output, "--figures", tmp_path / "figures", "--images", 2)
    page = output.read_text()
    assert sorted(folder.rglob("*")) == before
    assert "<h1>2 runs side by side</h1>" in page
    differing = '<th scope="row">{}</th><td>{}</td><td>{}</td>'
    assert differing.format("encoder.sees_masked", "True", "False") in page
    assert differing.format("target.kind", "mean_colour", "normalised_pixels") in page
    for alike in ("run.dir", "optim.lr"):
        assert f'<th scope="row">{alike}</th>' not in page
    for chart in (
        "Validation loss, target mean_colour, 3 bits: loss (nats)",
        "Validation loss, target normalised_pixels: loss (mean squared error)",
        "Throughput: images per second",
    ):
        assert f'aria-label="{chart} over step' in page
    assert "<h2>mine: Reconstructions</h2>" in page
    assert "<h2>plain: What the encoder has learnt</h2>" in page
    assert (tmp_path / "figures/plain-reconstructions.svg").is_file()
    assert (tmp_path / "figures/throughput.png").is_file()


def test_runs_of_one_name_are_told_apart(run: Path, folder: Path, report: Report, tmp_path: Path):
    output = tmp_path / "both.html"
    report(folder / "mine", run, "--output", output)
    page = output.read_text()
    assert f'<th scope="col">{folder.name}/mine</th>' in page
    assert f'<th scope="col">{tmp_path.name}/mine</th>' in page
    assert "Nothing but run.dir." in page


def test_training_images_stand_in_for_validation(run: Path, report: Report):
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(config, "data.val_shards", None)
    OmegaConf.save(config, run / "config.yaml")
    report(run)
    page = (run / "report.html").read_text()
    assert "8 training images (the run has no validation shards)" in page


def test_missing_shards_and_checkpoints_are_said(run: Path, report: Report, tmp_path: Path):
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(config, "data.val_shards", str(tmp_path / "val.tar"))
    OmegaConf.save(config, run / "config.yaml")
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
    assert "econstructions" not in page
    assert "What the encoder has learnt" not in page
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
        (("mine",), "--output is missing; name the file for the report of 2 runs"),
        (("mine", "mine", "--output", "x.html"), "mine is named twice; name each run once"),
        (
            ("tuned", "--output", "x.html"),
            "tuned is a fine-tuning run, which have no measures in common",
        ),
        (("--figures", "train.tar"), "--figures=train.tar cannot be written: File exists; "),
        (("--images", 0), "argument --images: 0 is no whole number above 0"),
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


# ---------------------------------------------------------------- while a run goes on


def test_a_page_is_kept_up_to_date_until_the_run_ends(
    run: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is held for two looks; then the run has ended."""
    looks, pages, hashed = [True, True, False], list[str](), list[Path]()

    def hash_it(path: Path) -> str:
        hashed.append(path)
        return hash_file(path)

    def is_alive(_: Path) -> bool:
        return looks.pop(0)

    def look(_: float) -> None:
        pages.append((run / "report.html").read_text())

    monkeypatch.setattr(checkpoint, "hash_file", hash_it)
    monkeypatch.setattr(watching, "_lives", is_alive)
    monkeypatch.setattr("time.sleep", look)
    said = report(run, "--watch", 7)
    assert said.startswith(f"{run}/report.html is written every 7 seconds until the run ends\n")
    assert len(pages) == 2
    for page in pages:
        assert '<meta http-equiv="refresh" content="7">' in page
        assert "They are drawn once the run has ended." in page
    assert hashed
    assert len(hashed) == len(set(hashed))  # a checkpoint that stays is read once
    last = (run / "report.html").read_text()
    assert "refresh" not in last
    assert "Reconstructions" in last
    with pytest.raises(SystemExit, match="2"):  # it is for the page of one run
        report(run, run, "--output", "x.html", "--watch")
