"""A record of metrics.jsonl in words: how the loss stands, and how fast the run is."""

from collections.abc import Mapping

from data.text import percent

Record = Mapping[str, float | None]

BASELINES = {  # of a loss, by the figure that states it; the lowest is shown
    "class_entropy": "a model that knows only how frequent each class is",
    "loss_neighbour": "copying the nearest visible patch",
    "loss_mean": "always naming the mean",
}
_SHOWN = {
    "accuracy": "accuracy",
    "map": "mean average precision",
    "knn": "k-NN accuracy",
    "accuracy_matching": "matching",
    "accuracy_words": "words",
}
_BESIDE = {  # of a figure: what it is shown beside, the first that is known
    "accuracy_matching": {"accuracy_matching_majority": "chance"},
    "accuracy_words": {
        "accuracy_words_blank": "without the image",
        "accuracy_words_majority": "most frequent",
    },
}


def baseline_of(record: Record, split: str = "train") -> tuple[str, float] | None:
    """Return what a model without learning would do, in words, and its loss; None if none is known.

    Args:
        record: Of one step.
        split: train or val.
    """
    known = [
        (value, text)
        for name, text in BASELINES.items()
        if (value := record.get(f"{split}/{name}")) is not None
    ]
    return (min(known)[1], min(known)[0]) if known else None


def standing(record: Record, split: str = "train") -> list[str]:
    """Say how a split stands: its loss beside the baseline's, its accuracy; empty if not measured.

    Args:
        record: Of one step.
        split: train, val or probe.
    """
    prefix = "" if split == "train" else f"{split} "
    loss, baseline = record.get(f"{split}/loss"), baseline_of(record, split)
    texts = [f"{prefix}loss {_number(loss)}"] if loss is not None else []
    if texts and baseline is not None:
        texts[0] += f" (baseline {_number(baseline[1])})"
    for name, text in _SHOWN.items():
        value = record.get(f"{split}/{name}")
        if value is not None:
            own = f"{prefix if name != 'knn' else ''}{text} {percent(value):>6}"
            texts.append(own + _beside(record, split, name))
    return texts


def _beside(record: Record, split: str, name: str) -> str:
    """Return ` (BASELINE 14.5 %)` of a figure; empty where it has none."""
    for baseline, text in _BESIDE.get(name, {}).items():
        value = record.get(f"{split}/{baseline}")
        if value is not None:
            return f" ({text} {percent(value)})"
    return ""


def speed(record: Record) -> list[str]:
    """Say how many images a second were trained on, the MFU, and how much of the time was waited.

    The MFU is left out where a run has none, as older ones.
    """
    names = ("images_per_second", "mfu", "data_wait_ratio")
    rate, mfu, waited = (record.get(f"speed/{name}") for name in names)
    texts = [] if rate is None else [f"{_rate(rate):>5} images/s"]
    texts += [] if mfu is None else [f"MFU {100 * mfu:2.0f} %"]
    return texts if waited is None else [*texts, f"waiting for data {100 * waited:2.0f} %"]


def line(record: Record, total: int, time: str) -> str:
    """Put a record on one line, with what each has in the same columns.

    Args:
        record: Of one step.
        total: Steps of the run.
        time: How long it will take yet, or took.
    """
    step = f"step {record['step']:>{len(str(total))}.0f}/{total}"
    measured = [text for split in ("val", "probe") for text in standing(record, split)]
    return "  ".join([step, *standing(record), *speed(record), f"{time:>17}", *measured])


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 1 else f"{value:.4f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
