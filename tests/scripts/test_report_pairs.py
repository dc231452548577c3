"""The report of image-text runs: charts, answers and heat maps, in plain words."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.configuration.load import load
from pretrain.records.logs import read_records
from pretrain.vilt.config import ViltConfig
from pretrain.vilt.pictures.answers import match_ratios
from pretrain.vilt.saved import Vilt
from scripts._report.charts import plots_of
from scripts._report.findings import learning
from scripts._report.history import describe, read_run
from scripts._report.one_run import figure_rows
from scripts._report.pairs.answers import answers
from scripts._report.pairs.findings import of_pairs
from scripts._report.pairs.maps import maps
from scripts._report.pairs.shown import Shown
from tests import reporting
from tests.pairs import CAPTIONS, make_batch, make_model, make_vocabulary

CHARTS = (
    *("Loss", "Loss by objective", "Does the caption belong to the image?", "Hidden words"),
    *("Word-patch alignment", "Learning rate", "Gradient norm", "Throughput"),
    *("Share of the matrix peak (MFU)", "Waiting for data"),
    "Samples that could not be used",
)


@pytest.fixture(scope="module")
def run(vilt_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(vilt_run, tmp_path_factory.mktemp("pairs") / "mine", symlinks=True)


def show(*, has_aspect: bool, alignment: float = 0.1) -> Shown:
    vocabulary = make_vocabulary()
    model = make_model(vocabulary, has_aspect=has_aspect)
    config = load(ViltConfig, ["data.shards=unread", f"loss.alignment={alignment}"])
    batch = make_batch(vocabulary, has_aspect=has_aspect)
    names = ["a.tar/1", "a.tar/2", "a.tar/3"]
    return Shown(Vilt(model, vocabulary, config), batch, names, CAPTIONS, "validation")


def test_the_page_is_whole_and_needs_nothing_else(run: Path, monkeypatch: pytest.MonkeyPatch):
    reporting.report(monkeypatch, run, "--images", 3)
    page = (run / "report.html").read_text()
    assert "image-text pretraining (ViLT); weights: matching 1, words 1, alignment 0.1" in page
    assert "://" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    pictures = re.findall(r"<img [^>]*>", page)
    assert pictures
    assert all(re.search(r' alt="[^"]+"', picture) for picture in pictures)
    assert [plot.title for plot in plots_of(read_run(run))] == [*CHARTS]
    assert page.count('<article class="panel">') == 3
    assert "3 validation images, evenly spread and not chosen." in page
    assert "This is the image half alone" in page
    assert "Nearest images" in page


def test_the_charts_hold_the_figures_beside_their_baselines(run: Path):
    plots = {plot.title: plot for plot in plots_of(read_run(run))}
    records = read_records(run / "metrics.jsonl")
    words = {line.label: line.points for line in plots["Hidden words"].lines}
    measured = [record for record in records if "val/loss" in record]
    for label, key in {
        "right words, validation": "val/accuracy_words",
        "without the image": "val/accuracy_words_blank",
        "most frequent word": "val/accuracy_words_majority",
    }.items():
        assert [value for _, value in words[label]] == [100 * r[key] for r in measured], label
    one_answer = plots["Does the caption belong to the image?"].lines[-1]
    majority = [100 * record["val/accuracy_matching_majority"] for record in measured]
    assert [value for _, value in one_answer.points] == majority


def test_masked_patches_are_told_in_their_own_unit():
    record = {"step": 4.0, "val/loss": 9.0, "val/loss_patches": 2.0}
    classes = {"accuracy_mask": 0.5, "accuracy_majority": 0.4, "accuracy_neighbour": 0.6}
    own = {f"val/{name}_patches": value for name, value in classes.items()}
    [text] = learning([record | own])
    assert text.startswith("It names the class of 50.0 % of the masked validation patches.")
    pixels = {"loss": 2.0, "loss_mean": 3.0, "loss_neighbour": 4.0}
    [text] = learning([record | {f"val/{name}_patches": v for name, v in pixels.items()}])
    assert text.startswith("The mean squared error of the validation patches is 2.0000.")
    figures = {"loss": 9.0, "loss_patches": 2.0, "class_entropy_patches": 1.0}
    labels = [row[0] for row in figure_rows("weighted sum", [figures])]
    assert labels[:2] == ["Loss (weighted sum)", "Patches: Loss (nats)"]


def test_runs_stand_side_by_side(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = shutil.copytree(run, tmp_path / "other", symlinks=True)
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("matching: 1.0", "matching: 2.0"))
    output = tmp_path / "both.html"
    reporting.report(monkeypatch, run, other, "--output", output, "--images", 1)
    page = output.read_text()
    assert "loss.matching" in page
    assert "Validation loss, objectives matching 2, words 1, alignment 0.1" in page
    assert "Hidden words, without the image" in page
    assert page.count("other: Pairs and what the model answers") == 1


def test_a_run_says_how_large_images_of_their_own_aspect_are(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    assert describe(read_run(copy))["Images"] == "16 x 16 pixels"
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("long_side: null", "long_side: 32"))
    words = "16 pixels the short side, 32 at most the long one"
    assert describe(read_run(copy))["Images"] == words


@pytest.mark.parametrize("has_aspect", [False, True], ids=["one size", "own aspect"])
def test_pairs_are_shown_beside_the_answers(has_aspect: bool):
    shown = show(has_aspect=has_aspect)
    page = answers(shown).body
    model, batch = shown.vilt.model, shown.batch
    for part in (batch["tokens"], batch["tokens"].roll(-1, 0)):
        for score in match_ratios(model, batch, part).tolist():
            assert f"<td>{score:.1%}</td>".replace("%", " %") in page
    assert "another&#x27;s: “red”" in page
    assert "3 validation images" in page
    assert re.search(r"prefers the own caption for [0-3] of 3 images\.", page)
    for caption in CAPTIONS:
        assert f"<blockquote>{caption}</blockquote>" in page


def test_a_caption_like_the_next_one_is_no_other():
    shown = show(has_aspect=False)
    tokens = shown.batch["tokens"][:1].expand(3, -1)
    same = shown._replace(batch=shown.batch | {"tokens": tokens}, captions=3 * CAPTIONS[:1])
    page = answers(same).body
    assert "another&#x27;s: " not in page
    assert "prefers the own caption" not in page


@pytest.mark.parametrize("has_aspect", [False, True], ids=["one size", "own aspect"])
def test_each_image_has_a_map_of_some_of_its_words(has_aspect: bool):
    section = maps(show(has_aspect=has_aspect))
    rows = [re.findall(r'<th scope="row">(.*?)</th>', f.picture) for f in section.figures]
    assert rows == [["a", "redish", "block"], ["blue", "the"], ["red"]]
    assert section.figures[0].caption == f"“{CAPTIONS[0]}”"
    assert section.figures[0].picture.count("<img ") == 6
    assert section.figures[0].export("png").startswith(b"\x89PNG")
    assert "loss.alignment is 0" not in section.body


def test_an_untrained_plan_is_named():
    assert "as loss.alignment is 0" in maps(show(has_aspect=False, alignment=0)).body


def test_attention_of_another_kind_has_no_maps():
    shown = show(has_aspect=False)
    blocks: Any = shown.vilt.model.encoder.blocks
    blocks[1].attn = torch.nn.Identity()
    section = maps(shown)
    assert not section.figures
    assert "whose maps are not known here" in section.notes[0]


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        (
            {"accuracy_matching": 0.9, "accuracy_matching_majority": 0.52},
            "right for 52.0 %. It is better",
        ),
        (
            {"accuracy_matching": 0.51, "accuracy_matching_majority": 0.52},
            "It is not yet better than that.",
        ),
        (
            {"accuracy_words": 0.6, "accuracy_words_majority": 0.1, "accuracy_words_blank": 0.4},
            "40.0 % of them, 20.0 points less: so much it reads off the images.",
        ),
        (
            {"accuracy_words": 0.4, "accuracy_words_majority": 0.1, "accuracy_words_blank": 0.42},
            "about as many: it does not look at the images yet.",
        ),
        ({"loss": 1.0, "accuracy": 0.5}, ""),
    ],
)
def test_findings_say_how_the_objectives_stand(figures: dict[str, float], text: str):
    assert text in " ".join(of_pairs("validation", figures))
