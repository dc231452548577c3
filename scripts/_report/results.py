"""Results that lie in a run's folder: few-shot accuracy, and fine-tuning from it."""

import re
from pathlib import Path
from typing import Any

from data.text import count
from finetune.results import name_encoder
from scripts._report.drawing import chart
from scripts._report.figures import Line, Plot, Section
from scripts._report.findings import percent
from scripts._report.history import read_json
from scripts._report.page import table

Cell = dict[str, Any]

_FEW_SHOT = {"pretrained": "fewshot/result.json", "untrained": "fewshot-untrained/result.json"}
_POOLINGS = {"average": ("blue", "o"), "class": ("orange", "s"), "both": ("green", "^")}
_IMAGES = ("data.train.sha256", "num_train", "data.val.sha256", "num_val")  # of a result
_SHOWN_SHOTS = 5  # the paper's
_FINE_TUNING = ("finetune", "scratch")  # how their folders' names begin
_ACCURACIES = {
    "accuracy": "Top 1",
    "accuracy_top5": "Top 5",
    "accuracy_balanced": "Mean over classes",
    "map": "Mean average precision",
}


# ---------------------------------------------------------------- few-shot


def few_shot(folder: Path, prefix: str = "") -> Section:
    """Compare the pretrained with the untrained encoder; an empty section without a result."""
    cells = read_cells(folder)
    if not cells:
        return Section("Few-shot accuracy")
    shots = sorted({num for of_encoder in cells.values() for num in shots_of(of_encoder)})
    rows = [
        [_row_name(name, cell, of_encoder), *(shot(cell, num) for num in shots)]
        for name, of_encoder in cells.items()
        for cell in of_encoder
    ]
    note = (
        "Accuracy of a ridge regression on frozen features, by labelled images a class: mean ± "
        f"deviation over choices of those images. {_how_to_compare(folder)}"
    )
    notes = [_best_text(name, found) for name, found in cells.items() if len(found) > 1]
    body = table(["Encoder", *(f"{num} a class" for num in shots)], rows)
    plots = [plot for plot in [_by_layer(cells, shots)] if plot]
    charts = tuple(chart(plot, prefix) for plot in plots)
    return Section("Few-shot accuracy", body, charts, (*notes, note))


def best(cells: list[Cell]) -> Cell:
    """Return the layer and pooling of the highest accuracy, with 5 images a class or as near."""
    key = f"accuracy/{shown_shots(shots_of(cells))}shot"
    return max(cells, key=lambda cell: cell.get(key, -1.0), default={})


def view_name(cell: Cell) -> str:
    """Name the layer and pooling of a result; an empty text where it says none."""
    return f"layer {cell['layer']}, {cell['pooling']}" if "layer" in cell else ""


def _best_text(name: str, cells: list[Cell]) -> str:
    num, chosen = shown_shots(shots_of(cells)), best(cells)
    return (
        f"Best of {name}, by {count(num, 'image')} a class: {view_name(chosen)}, "
        f"{shot(chosen, num)}. The images that measure it also chose it."
    )


def shown_shots(shots: list[int]) -> int:
    """Return the number of labelled images a class that stands for all."""
    return min(shots, key=lambda num: abs(num - _SHOWN_SHOTS), default=0)


def read_cells(folder: Path) -> dict[str, list[Cell]]:
    """Return what was measured: encoder's name -> a result for each layer and pooling."""
    results = _read_few_shot(folder)
    return {name: result.get("cells") or [result] for name, result in results.items()}


def _read_few_shot(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        name: read_json(folder / file)
        for name, file in _FEW_SHOT.items()
        if (folder / file).is_file()
    }


def _how_to_compare(folder: Path) -> str:
    """Say what a difference means; where the encoders saw other images, it means nothing."""
    results = _read_few_shot(folder).values()
    known = ({result[key] for result in results if key in result} for key in _IMAGES)
    if all(len(values) < 2 for values in known):
        return "Pretraining helped where it beats untrained."
    return (
        "Pretrained and untrained were measured on different images, so their accuracies cannot be "
        "compared: measure both with the same data.train and data.val."
    )


def shots_of(cells: list[Cell]) -> list[int]:
    """Return for how many images a class there are accuracies."""
    found = (re.fullmatch(r"accuracy/(\d+)shot", key) for cell in cells for key in cell)
    return sorted({int(match[1]) for match in found if match})


def shot(cell: Cell, num: int) -> str:
    """Write an accuracy with its deviation; an empty text without one."""
    mean = cell.get(f"accuracy/{num}shot")
    deviation = cell.get(f"deviation/{num}shot", 0)
    return "" if mean is None else f"{100 * mean:.1f} ± {100 * deviation:.1f} %"


def _row_name(name: str, cell: Cell, cells: list[Cell]) -> str:
    """Name a layer and pooling where there is more than one."""
    return f"{name}, {view_name(cell)}" if len(cells) > 1 else name


def _by_layer(cells: dict[str, list[Cell]], shots: list[int]) -> Plot | None:
    """Draw the accuracy over layers, a line a pooling; None of a single layer."""
    num = shown_shots(shots)
    if len({cell.get("layer") for of_encoder in cells.values() for cell in of_encoder}) < 2:
        return None
    lines = [
        _line(name, pooling, [cell for cell in of_encoder if cell["pooling"] == pooling], num)
        for name, of_encoder in cells.items()
        for pooling in dict.fromkeys(cell.get("pooling") for cell in of_encoder)
        if pooling in _POOLINGS
    ]
    return Plot(
        "Few-shot accuracy by layer and pooling",
        f"accuracy (%), {count(num, 'image')} a class",
        tuple(line for line in lines if line.points),
        "Higher is better; layer 1 is the first block's output, the last one what the head reads. "
        "'average' is over the patches, 'class' is the class token, which gets no loss in "
        "pretraining. Bars are the deviation over choices of the labelled images.",
        "layer",
    )


def _line(name: str, pooling: str, cells: list[Cell], num: int) -> Line:
    key, (colour, marker) = f"{num}shot", _POOLINGS[pooling]
    held = sorted(
        (cell for cell in cells if f"accuracy/{key}" in cell), key=lambda cell: cell["layer"]
    )
    return Line(
        f"{name}, {pooling}",
        colour,
        "joined" if name == "pretrained" else "dotted",
        tuple((cell["layer"], 100 * cell[f"accuracy/{key}"]) for cell in held),
        marker,
        tuple(100 * cell.get(f"deviation/{key}", 0.0) for cell in held),
    )


# ---------------------------------------------------------------- fine-tuning


def fine_tuning(folder: Path) -> Section:
    """Show what fine-tuning and training from scratch gave; an empty section without a result."""
    results = read_fine_tuning(folder)
    if not results:
        return Section("Fine-tuning")
    held = {
        key: label
        for key, label in _ACCURACIES.items()
        if any(key in result for result in results.values())
    }
    rows = [_row(name, result, list(held)) for name, result in results.items()]
    header = ["Run", "Started from", *held.values(), "Steps"]
    note = "Validation accuracy at the last step; random weights are from scratch."
    return Section("Fine-tuning", table(header, rows), notes=(note,))


def read_fine_tuning(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results of the runs in a run's folder, by their folders' names."""
    paths = [path for kind in _FINE_TUNING for path in folder.glob(f"{kind}*/result.json")]
    return {path.parent.name: read_json(path) for path in sorted(paths)}


def _row(name: str, result: dict[str, Any], keys: list[str]) -> list[str]:
    accuracies = (percent(result[key]) if key in result else "" for key in keys)
    return [name, name_encoder(result), *accuracies, str(result.get("steps", ""))]
