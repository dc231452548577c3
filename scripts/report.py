"""Write a run's report: is it learning, is it fast, what did it cost.

    python scripts/report.py RUN [--output PATH] [--images 8]

RUN is the folder of a pretraining or fine-tuning run, finished or not; nothing in it is changed.
RUN/report.html is one file that works offline. For a pretraining run it shows colour
reconstructions of validation images, written to RUN/reconstructions.png too; start the script from
the folder in which the run was started, so that its shards are found. What lies in
RUN/fewshot/result.json, RUN/fewshot-untrained/result.json, RUN/finetune*/result.json and
RUN/scratch*/result.json is shown too.
"""

import argparse
import sys
from base64 import b64encode
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.index.opening import open_manifest
from data.loader import Samples
from data.settings import UserError, require, run_entry_point
from data.shards import atomic_write
from pretrain.config import PretrainConfig, load
from pretrain.encoder import image_size, patch_size
from pretrain.reconstruct import Reconstruction, draw_grid, load_model, panels, pick, reconstruct
from scripts.report_page import findings
from scripts.report_page.charts import charts_for
from scripts.report_page.drawing import require_matplotlib, smoothing
from scripts.report_page.findings import percent
from scripts.report_page.history import Run, describe, read_run
from scripts.report_page.page import bullets, chart_figure, definitions, section, table
from scripts.report_page.results import few_shot, fine_tuning

_TEMPLATE = Path(__file__).with_name("report_template.html")
_PICTURES = "reconstructions.png"
_FIGURES = {
    "loss": "Loss (nats)",
    "class_entropy": "Baseline: class frequencies only (nats)",
    "accuracy": "Accuracy",
    "accuracy_mask": "Accuracy, masked patches",
    "accuracy_random": "Accuracy, random patches",
    "accuracy_kept": "Accuracy, kept patches",
    "accuracy_neighbour": "Baseline: nearest visible patch's colour",
    "accuracy_majority": "Baseline: most frequent class",
    "accuracy_top5": "Accuracy, top 5",
    "accuracy_balanced": "Accuracy, mean over classes",
}


def main(arguments: list[str]) -> None:
    """Read the run, draw, write the page."""
    options = _parse(arguments)
    require_matplotlib()
    run = read_run(options.run)
    output: Path = options.output or run.folder / "report.html"
    sections = [
        _answers(run),
        _charts(run),
        _figures(run),
        _reconstructions(run, options.images) if run.is_pretraining else "",
        few_shot(run.folder),
        fine_tuning(run.folder),
        _configuration(run.folder),
        _software(),
    ]
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Run {run.folder.resolve().name}"),
        summary=definitions(describe(run)),
        sections="\n".join(filter(None, sections)),
    )
    _write(output, page.encode())
    print(f"report: {output} ({len(page.encode()) / 1000:,.0f} kB)")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--output", type=Path, help="file to write (RUN/report.html)")
    parser.add_argument("--images", type=int, default=8, help="images to reconstruct (8)")
    options = parser.parse_args(arguments)
    require(options.images > 0, f"--images={options.images} must be above 0; the default is 8")
    return options


def _write(path: Path, content: bytes) -> None:
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; name a file elsewhere with --output"
        ) from error


# ---------------------------------------------------------------- what the records say


def _answers(run: Run) -> str:
    batch_size = run.config["optim"]["batch_size"]
    answers = {
        "Is it learning?": findings.learning(run.records),
        "Is it fast?": findings.speed(run.records),
        "What did it cost?": findings.cost(run.records, batch_size, run.num_bad),
    }
    boxes = "".join(
        f'<div class="panel"><h3>{title}</h3>{bullets(texts)}</div>'
        for title, texts in answers.items()
    )
    return section("In short", f'<div class="grid">{boxes}</div>')


def _charts(run: Run) -> str:
    figures = "".join(chart_figure(chart, run.records) for chart in charts_for(run.records))
    width = smoothing(len(run.records))
    note = f"Smoothed lines and training baselines are means over the last {width} records."
    return section(
        "Over the steps", f'<div class="grid charts">{figures}</div>', note * (width > 1)
    )


def _figures(run: Run) -> str:
    """Set the last figures of both splits beside each other."""
    lasts = {
        f"{name}, step {last['step']:,.0f}": (split, last)
        for split, name in (("train", "Training batch"), ("val", "Validation"))
        if (last := findings.last_with(run.records, f"{split}/loss"))
    }
    rows = [
        [label, *(_value(key, last.get(f"{split}/{key}")) for split, last in lasts.values())]
        for key, label in _FIGURES.items()
        if any(f"{split}/{key}" in last for split, last in lasts.values())
    ]
    return section("Last figures", table(["Figure", *lasts], rows))


def _value(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return percent(value) if key.startswith("accuracy") else f"{value:.3f}"


# ---------------------------------------------------------------- reconstructions


def _reconstructions(run: Run, num_images: int) -> str:
    """Draw them, or say why there are none."""
    title = "Colour reconstructions"
    if run.checkpoint is None:
        return section(title, "", "None yet: the run has no whole checkpoint.")
    try:
        config = load(PretrainConfig, [str(run.folder / "config.yaml")])
        result, picture, split = _reconstruct(config, run.checkpoint, num_images)
    except (UserError, OSError) as error:
        remedy = "Start the script from the folder in which the run was started."
        return section(title, "", f"None: {error}. {remedy}")
    _write(run.folder / _PICTURES, picture)
    return section(title, _pictures(result, picture, split, run.checkpoint.name))


def _reconstruct(
    config: PretrainConfig, checkpoint: Path, num_images: int
) -> tuple[Reconstruction, bytes, str]:
    """Return the reconstructions, their picture, and the split that the images are from."""
    model = load_model(checkpoint, config.corruption, config.target)
    key = "val_shards" if config.data.val_shards else "shards"
    manifest = open_manifest(getattr(config.data, key), f"data.{key}", config.data.storage)
    samples = Samples(manifest, image_size(model.encoder), config.run.seed)
    images, keys = pick(samples, num_images)
    require(len(images) > 0, f"data.{key}: none of the chosen images can be read")
    result = reconstruct(model, images, keys, config.corruption.ratio)
    picture = draw_grid(panels(result, patch_size(model.encoder), config.target.bits))
    return result, picture, "validation" if key == "val_shards" else "training"


def _pictures(result: Reconstruction, picture: bytes, split: str, checkpoint: str) -> str:
    right = f"{result.num_right} of {result.num_hidden} hidden patches"
    alone = " (the run has no validation shards)" if split == "training" else ""
    reading = (
        f"{len(result.images)} {split} images{alone}, predicted by {escape(checkpoint)}. The model "
        "sees nothing of a hidden patch: all of them are replaced by the mask embedding. Hidden "
        "patches are hatched under 'corrupted'; under 'predicted' and 'true' they have the colour "
        "in the middle of the predicted and of the true class. Visible patches show the input's "
        f"own pixels in each column. The predicted class is right for {right}."
    )
    alt = f"Rows of four pictures: input, corrupted, predicted, true. Right: {right}."
    source = f"data:image/png;base64,{b64encode(picture).decode()}"
    return (
        f'<figure class="pictures"><img src="{source}" alt="{alt}">'
        f"<figcaption>{reading}</figcaption></figure>"
    )


# ---------------------------------------------------------------- what it was run with


def _configuration(folder: Path) -> str:
    text = escape((folder / "config.yaml").read_text(encoding="utf-8"))
    details = f'<summary>config.yaml</summary><pre tabindex="0"><code>{text}</code></pre>'
    return section("Configuration", f"<details>{details}</details>")


def _software() -> str:
    versions = {name: version(name) for name in ("torch", "timm", "accelerate")}
    versions = {"python": sys.version.split()[0]} | versions
    note = "Versions that wrote this report; a run does not record its own."
    return section("Software", definitions(versions), note)


if __name__ == "__main__":
    run_entry_point(main)
