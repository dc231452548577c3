"""Results that lie in a run's folder: few-shot accuracy, and fine-tuning from it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.text import count
from finetune.results import name_encoder, table_rows
from pretrain.pictures.page import as_image, table
from scripts._report.drawing import chart, wrapped
from scripts._report.figures import Figure, Line, Plot, Section, file_name
from scripts._report.findings import percent
from scripts._report.history import read_json

Cell = dict[str, Any]

_ENCODERS = {"pretrained": "", "untrained": "-untrained"}  # and the ends of their folders' names
_RESULT, _PREDICTIONS = "result.json", "predictions.png"
_FROZEN = {"Frozen features": "probe", "Classes of pixels": "dense"}  # each in a folder of its name
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


# ---------------------------------------------------------------- probe and dense evaluation


def frozen(folder: Path) -> Iterator[Section]:
    """Show what `probe.py` and `dense.py` left in a run's folder, of both encoders."""
    for title, name in _FROZEN.items():
        found = _measured(folder, name)
        results = {kind: read_json(of / _RESULT) for kind, of in found.items()}
        cells = [{"encoder": kind, **cell} for kind, of in results.items() for cell in _cells(of)]
        header, *rows = table_rows(cells)
        pictures = [_predictions(kind, of) for kind, of in found.items()]
        shown = tuple(picture for picture in pictures if picture is not None)
        notes = (_how_to_compare(list(results.values())),) if len(results) > 1 else ()
        yield Section(title, table(header, rows) if rows else "", shown, notes)


def _predictions(kind: str, folder: Path) -> Figure | None:
    """Return the picture of predicted masks, where there is one."""
    path = folder / _PREDICTIONS
    if not path.is_file():
        return None
    content = path.read_bytes()
    title = f"Predicted classes of pixels, {kind}"
    alt = f"{title}: images, their masks, and what the best head makes of them"
    return Figure(
        title,
        file_name(title),
        as_image(content, alt),
        "Validation images, their masks, and the classes that the best layer and head name, on "
        "features of patches that are frozen. Outlines can be no finer than the patches.",
        lambda suffix: content if suffix == "png" else wrapped(content),
        is_wide=True,
    )


# ---------------------------------------------------------------- few-shot


def few_shot(folder: Path) -> Section:
    """Compare the pretrained with the untrained encoder; an empty section without a result."""
    results = _read_few_shot(folder)
    title = "Few-shot accuracy"
    if not results:
        return Section(title)
    cells = {name: _cells(result) for name, result in results.items()}
    shots = shots_of([cell for of_encoder in cells.values() for cell in of_encoder])
    rows = [
        [_row_name(name, cell, of_encoder), *(shot(cell, num) for num in shots)]
        for name, of_encoder in cells.items()
        for cell in of_encoder
    ]
    body = table(["Encoder", *(f"{num} a class" for num in shots)], rows)
    plot = _by_layer(cells, shots)
    charts = (chart(plot),) if len({x for line in plot.lines for x, _ in line.points}) > 1 else ()
    notes = [_best_text(name, own) for name, own in cells.items() if len(own) > 1]
    note = (
        "Accuracy of a ridge regression on frozen features, by labelled images a class: mean ± "
        f"deviation over choices of those images. {_how_to_compare(list(results.values()))}"
    )
    return Section(title, body, charts, (*notes, note))


def best_pretrained(folder: Path) -> Cell:
    """Return the pretrained encoder's best layer and pooling; empty without a result."""
    return best(_cells(_read_few_shot(folder).get("pretrained", {})))


def best(cells: list[Cell]) -> Cell:
    """Return the layer and pooling of the highest accuracy, with 5 images a class or as near."""
    key = f"accuracy/{shown_shots(shots_of(cells))}shot"
    return max(cells, key=lambda cell: cell.get(key, -1.0), default={})


def view_name(cell: Cell) -> str:
    """Name the layer and pooling of a result; an empty text where it has none."""
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


def _read_few_shot(folder: Path) -> dict[str, dict[str, Any]]:
    found = _measured(folder, "fewshot")
    return {kind: read_json(of / _RESULT) for kind, of in found.items()}


def _measured(folder: Path, name: str) -> dict[str, Path]:
    """Return the folder of a measure's result by what the encoder was, where there is one."""
    folders = {kind: folder / f"{name}{suffix}" for kind, suffix in _ENCODERS.items()}
    return {kind: of for kind, of in folders.items() if (of / _RESULT).is_file()}


def _cells(result: dict[str, Any]) -> list[Cell]:
    """Return a result for each layer and pooling."""
    return result.get("cells") or [result]


def _how_to_compare(results: list[dict[str, Any]]) -> str:
    """Explain a difference; where the encoders saw other images, it has no meaning."""
    known = ({result[key] for result in results if key in result} for key in _IMAGES)
    if all(len(values) < 2 for values in known):
        return "Pretraining helped where it beats untrained."
    return (
        "Pretrained and untrained were measured on different images, so their accuracies cannot be "
        "compared: measure both with the same data.train and data.val."
    )


def shots_of(cells: list[Cell]) -> list[int]:
    """Return for how many images a class there are accuracies."""
    matches = (re.fullmatch(r"accuracy/(\d+)shot", key) for cell in cells for key in cell)
    return sorted({int(match[1]) for match in matches if match})


def shot(cell: Cell, num: int) -> str:
    """Write an accuracy with its deviation; an empty text without one."""
    mean = cell.get(f"accuracy/{num}shot")
    deviation = cell.get(f"deviation/{num}shot", 0)
    return "" if mean is None else f"{100 * mean:.1f} ± {100 * deviation:.1f} %"


def _row_name(name: str, cell: Cell, cells: list[Cell]) -> str:
    """Name a layer and pooling where there is more than one."""
    return f"{name}, {view_name(cell)}" if len(cells) > 1 else name


def _by_layer(cells: dict[str, list[Cell]], shots: list[int]) -> Plot:
    """Draw the accuracy over layers, a line a pooling."""
    num = shown_shots(shots)
    lines = [
        _line(name, pooling, [cell for cell in own if cell.get("pooling") == pooling], num)
        for name, own in cells.items()
        for pooling in _POOLINGS
    ]
    return Plot(
        "Few-shot accuracy by layer and pooling",
        f"accuracy (%), {count(num, 'image')} a class",
        tuple(line for line in lines if line.points),
        "Higher is better; layer 1 is the first block's output, the last one what the head reads. "
        "'average' is over the patches, 'class' is the class token, which gets no loss in "
        "pretraining. Bars are the deviation over choices of the labelled images.",
        "layer",
        start_at_zero=False,
    )


def _line(name: str, pooling: str, cells: list[Cell], num: int) -> Line:
    mean, deviation = f"accuracy/{num}shot", f"deviation/{num}shot"
    colour, marker = _POOLINGS[pooling]
    held = sorted((cell for cell in cells if mean in cell), key=lambda cell: cell["layer"])
    return Line(
        f"{name}, {pooling}",
        colour,
        "joined" if name == "pretrained" else "dotted",
        tuple((cell["layer"], 100 * cell[mean]) for cell in held),
        marker,
        tuple(100 * cell.get(deviation, 0.0) for cell in held),
    )


# ---------------------------------------------------------------- fine-tuning


def fine_tuning(folder: Path) -> Section:
    """Show what fine-tuning and training from scratch gave; an empty section without a result."""
    results = read_fine_tuning(folder)
    if not results:
        return Section("Fine-tuning")
    held = [key for key in _ACCURACIES if any(key in result for result in results.values())]
    rows = [
        [
            name,
            name_encoder(result),
            *(score(result, key) for key in held),
            str(result.get("steps", "")),
        ]
        for name, result in results.items()
    ]
    header = ["Run", "Started from", *(_ACCURACIES[key] for key in held), "Steps"]
    note = "Validation accuracy at the last step; random weights are from scratch."
    return Section("Fine-tuning", table(header, rows), notes=(note,))


def read_fine_tuning(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results of the runs in a run's folder, by their folders' names."""
    paths = [path for kind in _FINE_TUNING for path in folder.glob(f"{kind}*/result.json")]
    return {path.parent.name: read_json(path) for path in sorted(paths)}


def score(result: dict[str, Any], key: str) -> str:
    """Write an accuracy; an empty text without one."""
    return percent(result[key]) if key in result else ""
