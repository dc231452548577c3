"""Dense evaluation's figures as tables: a row a layer and head, and a row a class."""

from typing import Any

from data.text import printable
from finetune.results import make_table
from pretrain.evaluation.dense.judging import Judged

Cell = dict[str, Any]


def make_cell(layer: int, head: str, judged: Judged) -> Cell:
    """Return what `result.json` says of a head on a layer."""
    figures = judged.figures
    held_out = {} if judged.held_out is None else {"iou/held_out_mIoU": judged.held_out}
    return {
        "layer": layer,
        "head": head,
        **held_out,
        "iou/mIoU": figures.miou,
        "accuracy/pixel_accuracy": figures.pixel_accuracy,
        "accuracy/class_accuracy": figures.class_accuracy,
        "chosen": name_setting(judged.setting),
        "iou_by_class": figures.iou,
        "accuracy_by_class": figures.accuracy,
    }


def name_setting(setting: Any) -> str:
    """Say what was chosen: a penalty, or the parts of a setting that differ."""
    if isinstance(setting, float):
        return f"penalty={setting:g}"
    first, second = setting[:2]
    return f"rate={first:g}" if isinstance(first, float) else f"{first} by {second}"


def best_of(cells: list[Cell]) -> int:
    """Return the place of the best on the held-out training images; the first, without any."""
    return max(range(len(cells)), key=lambda place: cells[place].get("iou/held_out_mIoU", 0.0))


def make_tables(cells: list[Cell], names: list[str], pixels: list[float]) -> str:
    """Return two Markdown tables: of all cells, and of the best one's classes.

    Args:
        cells: What was judged.
        names: Of the classes.
        pixels: By class, its share of the validation images' pixels.
    """
    best = cells[best_of(cells)]
    by_class = [
        {
            "class": printable(name),
            "accuracy/pixels": share,
            "iou/IoU": best["iou_by_class"][place],
            "accuracy/accuracy": best["accuracy_by_class"][place],
        }
        for place, (name, share) in enumerate(zip(names, pixels, strict=True))
        if share > 0
    ]
    left_out = [printable(name) for name, share in zip(names, pixels, strict=True) if share == 0]
    absent = f" No mask of data.val has {', '.join(left_out)}." if left_out else ""
    what = f"mIoU and class_accuracy are means over the {len(by_class)} classes of data.val's masks"
    return (
        f"{make_table(cells)}\n{what}.{absent} By class, layer {best['layer']}, {best['head']}:\n\n"
        f"{make_table(by_class)}"
    )
