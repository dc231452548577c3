"""A run's records in sentences: is it learning, is it fast, what did it cost."""

import math
import statistics
from typing import NamedTuple

from data.text import duration, percent
from scripts._report.pairs.findings import of_pairs

Record = dict[str, float]

_SPLITS = {"train": "training", "val": "validation"}
_SCORES = {
    "accuracy": "accuracy",
    "accuracy_balanced": "mean over classes",
    "accuracy_top5": "top 5",
    "map": "mean average precision",
}
_RARE = 0.01  # of the corrupted patches; figures of fewer are noise
_TOO_LONG_A_WAIT = 0.1  # fraction of the time; above it more workers pay


def last_with(records: list[Record], key: str) -> Record:
    """Return the last record that holds a key; an empty one if none does."""
    return next((record for record in reversed(records) if key in record), {})


class Measured(NamedTuple):
    """The last figures of one split.

    Attributes:
        split: training or validation.
        step: When.
        figures: By their names within the split, the loss among them.
    """

    split: str
    step: float
    figures: Record


def last_measured(records: list[Record], split: str) -> Measured | None:
    """Return what was last measured on `train` or `val`; None if nothing was."""
    prefix = f"{split}/"
    record = last_with(records, f"{prefix}loss")
    figures = {k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)}
    return Measured(_SPLITS[split], record["step"], figures) if record else None


def newest(records: list[Record]) -> Measured:
    """Return what was last measured on validation images, else on training images."""
    measured = last_measured(records, "val") or last_measured(records, "train")
    assert measured is not None
    return measured


# ---------------------------------------------------------------- is it learning?


def learning(records: list[Record]) -> list[str]:
    """Return how the newest figures stand, of validation where there is any, in sentences."""
    name, step, figures = newest(records)
    if not math.isfinite(figures["loss"]):
        return [f"The {name} loss is not a finite number: the run has diverged. Lower optim.lr."]
    if "class_entropy" in figures:
        texts = [_against_entropy(name, figures), *_against_copying(name, figures)]
        return [*texts, *_with_distance(figures)]
    if "loss_neighbour" in figures:
        return [_against_mean(name, figures), *_with_distance(figures)]
    if texts := [*of_pairs(name, figures), *_of_patches(name, figures)]:
        return texts
    scores = ", ".join(
        f"{label} {percent(figures[key])}" for key, label in _SCORES.items() if key in figures
    )
    return [
        f"At step {step:.0f} the {name} loss is {figures['loss']:.3f} nats"
        + (f"; {scores}." if scores else ".")
    ]


def _of_patches(name: str, figures: Record) -> list[str]:
    """Say how the masked patches of an image-text run stand; nothing where it has none."""
    own = {k.removesuffix("_patches"): v for k, v in figures.items() if k.endswith("_patches")}
    return [_against_mean(name, own)] if "loss_mean" in own else _against_copying(name, own)


def _against_entropy(name: str, figures: Record) -> str:
    loss, entropy = figures["loss"], figures["class_entropy"]
    start = f"The {name} loss is {loss:.3f} nats, {abs(loss - entropy):.3f}"
    baseline = f"the {entropy:.3f} of a model that knows only how frequent each class is"
    if loss < entropy:
        return f"{start} below {baseline}."
    return f"{start} above {baseline}: it has not learnt more than that yet."


def _against_copying(name: str, figures: Record) -> list[str]:
    """Compare masked patches alone: the others can be seen, or show something else."""
    if "accuracy_mask" not in figures:
        return []
    right = figures["accuracy_mask"]
    majority, neighbour = figures["accuracy_majority"], figures["accuracy_neighbour"]
    if right <= majority:
        verdict = "It is not yet better than naming the most frequent class"
    elif right <= neighbour:
        verdict = "It is better than the most frequent class, not yet better than copying"
    else:
        verdict = "It is better than both"
    return [
        f"It names the class of {percent(right)} of the masked {name} patches. The most "
        f"frequent class alone would be right for {percent(majority)}, copying the nearest "
        f"visible patch for {percent(neighbour)}. {verdict}."
    ]


def _against_mean(name: str, figures: Record) -> str:
    """Compare an error of pixels with what needs no learning."""
    loss, mean, neighbour = (figures[key] for key in ("loss", "loss_mean", "loss_neighbour"))
    if loss >= min(mean, neighbour):
        simpler = "naming the mean" if mean <= neighbour else "copying the nearest visible patch"
        verdict = f"It is not yet better than {simpler}"
    else:
        verdict = "It is better than both"
    return (
        f"The mean squared error of the {name} patches is {loss:.4f}. Always naming their mean "
        f"would give {mean:.4f}, copying the nearest visible patch {neighbour:.4f}. {verdict}."
    )


def _with_distance(figures: Record) -> list[str]:
    """Compare with copying where it is hardest: far from what is visible."""
    bins = common_distances(figures)
    if not bins:
        return []
    far = bins[-1]
    copied = figures[f"neighbour_distance_{far}"]
    if f"accuracy_distance_{far}" in figures:
        own = figures[f"accuracy_distance_{far}"]
        is_better, what = own > copied, f"it is right for {percent(own)}, copying for"
        what = f"{what} {percent(copied)}"
    else:
        own = figures[f"loss_distance_{far}"]
        is_better, what = own < copied, f"its error is {own:.4f}, that of copying {copied:.4f}"
    name = f"{distance_name(far, figures)} patch{'es' * (far > 1)}"
    verdict = "it has learnt more than copying" if is_better else "that is no better than copying"
    return [f"At a distance of {name} from what is visible {what}: {verdict}."]


def distances(figures: Record) -> list[int]:
    """Return the distances to the nearest visible patch at which a record has a loss."""
    return _numbers("loss_distance_", figures)


def common_distances(figures: Record) -> list[int]:
    """Return those of them at which enough patches are that it is no noise."""
    return [num for num in distances(figures) if figures[f"ratio_distance_{num}"] >= _RARE]


def distance_name(num: int, figures: Record) -> str:
    """Write a distance; the last one holds all beyond it."""
    return f"{num} or more" if num == _numbers("ratio_distance_", figures)[-1] else str(num)


def _numbers(prefix: str, figures: Record) -> list[int]:
    return sorted(int(key.removeprefix(prefix)) for key in figures if key.startswith(prefix))


# ---------------------------------------------------------------- is it fast, what did it cost?


def speed(records: list[Record]) -> list[str]:
    """Return how fast the run was, and whether it waited for data, in sentences."""
    waiting = statistics.median(record["speed/data_wait_ratio"] for record in records)
    advice = "The loader keeps up with the model."
    if waiting > _TOO_LONG_A_WAIT:
        advice = "The loader holds the model up: raise data.workers."
    used = [record["speed/mfu"] for record in records if record.get("speed/mfu") is not None]
    share = f", {percent(statistics.median(used))} of the matrix peak (MFU)" if used else ""
    return [
        f"Training took in {rate(records):,.0f} images a second{share} (median).",
        f"{percent(waiting)} of the time went into waiting for data (median). {advice}",
    ]


def rate(records: list[Record]) -> float:
    """Return the median images a second."""
    return statistics.median(record["speed/images_per_second"] for record in records)


def training_seconds(records: list[Record], batch_size: int) -> float:
    """Add up the time of all steps, from the speed of each record; saves are not in it."""
    steps = [0.0, *(record["step"] for record in records)]
    return sum(
        (end - start) * batch_size / record["speed/images_per_second"]
        for start, end, record in zip(steps, steps[1:], records, strict=False)
    )


def cost(records: list[Record], batch_size: int, num_bad: int) -> list[str]:
    """Return the time, steps and unusable samples of a run, in sentences.

    Args:
        records: All records, in order.
        batch_size: Images a step.
        num_bad: Entries of bad_samples.jsonl.
    """
    last, seconds = records[-1], training_seconds(records, batch_size)
    bad = "Every sample that was read could be used."
    if num_bad:
        bad = f"{num_bad} times a sample could not be used; bad_samples.jsonl names them."
    return [
        f"{duration(seconds)} of training, without validation and saving.",
        f"{last['step']:,.0f} steps of {batch_size:,} images: {last['epoch']:.1f} epochs.",
        bad,
    ]
