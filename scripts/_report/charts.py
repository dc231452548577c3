"""The charts over the steps of a run: which lines each has, and how it is read."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

from pretrain.records.kinds import Kind
from scripts._report.figures import Line, LineKind, Plot
from scripts._report.findings import Record, last_with
from scripts._report.history import Run
from scripts._report.pairs.charts import CHARTS, CUT, of_patches

_SMOOTHING = (10, 50)  # a mean over a tenth of the records, 50 at most
_KINDS = (("mask", "blue", "o"), ("random", "orange", "s"), ("kept", "green", "^"))


def plots_of(run: Run) -> list[Plot]:
    """Return the charts for which a run has records, each with the lines that it has."""
    plots = [_fill(plot, run.records) for plot in (*_wanted(run), *_SHARED)]
    return [plot for plot in (*plots, *_bad_samples(run)) if plot.lines]


def _wanted(run: Run) -> Iterator[Plot]:
    if run.is_tuned:
        yield from _FINETUNING
        return
    of_target = _OF_CLASSES if run.has_classes else (_OF_PIXELS,)
    if run.kind is Kind.IMAGE_TEXT:
        yield from (*CHARTS, *map(of_patches, of_target), *_FROZEN)
        if any(record.get("train/cut_ratio") for record in run.records):
            yield CUT
        return
    yield from of_target
    if any(last_with(run.records, f"train/loss_{kind}") for kind in ("random", "kept")):
        yield _loss_by_kind(run.unit)  # where all are masked it would be the loss again
    yield from _FROZEN


def _bad_samples(run: Run) -> Iterator[Plot]:
    """Count the samples that could not be used, up to each step; no chart where there are none."""
    if not run.bad_samples:
        return
    by_step = Counter(run.bad_samples)
    steps = [0, *sorted(by_step)]
    counts = list(accumulate(by_step[step] for step in steps))
    end = max(steps[-1], int(run.records[-1]["step"]))
    points = tuple(zip([*steps, end], [*counts, counts[-1]], strict=True))
    yield Plot(
        "Samples that could not be used",
        "samples since the start",
        (Line("samples", "orange", "steps", points),),
        "A flat line is healthy; a jump is a damaged shard, a steady climb is bad files here and "
        "there. bad_samples.jsonl names each with its reason.",
    )


# ---------------------------------------------------------------- from records to lines


def _fill(plot: Plot, records: list[Record]) -> Plot:
    """Fill in the values by step; a line that has none, or another's, is left out."""
    drawn = {line.key for line in plot.lines if line.kind == "raw"}
    if smoothing(len(records)) > 1:
        drawn = set[str]()
    lines = (
        replace(line, points=tuple(_points(line, records, plot.scale)))
        for line in plot.lines
        if not (line.kind == "smooth" and line.key in drawn)
    )
    return replace(plot, lines=tuple(line for line in lines if line.points))


def _points(line: Line, records: list[Record], scale: float) -> list[tuple[float, float]]:
    """Return a line's values; of baselines that were measured on single batches a running mean."""
    points = points_of(records, line.key, scale)
    is_noisy = line.key.startswith(("train/", "optim/", "speed/"))
    return smooth(points) if is_noisy and line.kind in ("smooth", "dashed", "dotted") else points


def points_of(records: list[Record], key: str, scale: float) -> list[tuple[float, float]]:
    """Return (step, value) of each record that has a key."""
    return [(record["step"], scale * record[key]) for record in records if key in record]


def smoothing(num_records: int) -> int:
    """Return over how many records the smoothed lines are a mean."""
    part, most = _SMOOTHING
    return min(most, max(1, num_records // part))


def smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Replace each value by the mean of it and those before it, as many as `smoothing` says."""
    width, values = smoothing(len(points)), [value for _, value in points]
    windows = (values[max(0, end - width) : end] for end in range(1, len(values) + 1))
    means = (math.fsum(window) / len(window) for window in windows)
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


# ---------------------------------------------------------------- the charts


def _line(key: str, label: str, colour: str, kind: LineKind, marker: str = "o") -> Line:
    return Line(label, colour, kind, marker=marker, key=key)


def _each_and_smoothed(key: str, name: str = "") -> tuple[Line, Line]:
    each, smoothed = f"{name}each record", f"{name}smoothed"
    return _line(key, each, "blue", "raw"), _line(key, smoothed, "blue", "smooth")


def _pooled_and_patches(key: str) -> tuple[Line, Line]:
    pooled, patches = "a vector an image", "a vector a patch"
    return (
        _line(key, pooled, "blue", "joined"),
        _line(f"{key}_patches", patches, "orange", "joined", "s"),
    )


def _by_kind(figure: str) -> Iterator[Line]:
    for kind, colour, marker in _KINDS:
        yield _line(f"train/{figure}_{kind}", f"{kind}, training", colour, "smooth")
        yield _line(f"val/{figure}_{kind}", f"{kind}, validation", colour, "points", marker)


def _loss_by_kind(unit: str) -> Plot:
    return Plot(
        "Loss by kind of corruption",
        f"loss ({unit})",
        tuple(_by_kind("loss")),
        "Lower is better. 'mask' is the task itself; a 'kept' patch can be seen, and so its loss "
        "falls first and furthest; 'random' shows another patch and must be seen through.",
        start_at_zero=False,
    )


_LOSS = (
    *_each_and_smoothed("train/loss", "training, "),
    _line("val/loss", "validation", "orange", "points"),
)
_SHARED = (
    Plot(
        "Learning rate",
        "learning rate",
        (_line("optim/lr", "learning rate", "blue", "line"),),
        "It should rise during the warm-up and then fall to nearly 0 at the last step.",
    ),
    Plot(
        "Gradient norm",
        "norm before clipping",
        _each_and_smoothed("optim/grad_norm"),
        "A steady level is healthy; a climb or tall spikes ask for a lower learning rate.",
    ),
    Plot(
        "Throughput",
        "images per second",
        _each_and_smoothed("speed/images_per_second"),
        "Higher is faster; all processes together, without validation and saving. A drop that "
        "stays means that the machine got other work or the storage became slow.",
    ),
    Plot(
        "Share of the matrix peak (MFU)",
        "% of the peak",
        _each_and_smoothed("speed/mfu"),
        "Operations of the model, forward and backward, over those of large matrix products in the "
        "same time, as measured at the start. Where it is low, something else sets the pace: a "
        "small model or batch, the host, or the loader.",
    ),
    Plot(
        "Waiting for data",
        "% of the time",
        (_line("speed/data_wait_ratio", "waiting for data", "orange", "raw"),),
        "Near 0 the model sets the pace; much above 10 % the loader does.",
        least_top=10,
    ),
)
_FROZEN = (
    Plot(
        "Frozen features on labelled images",
        "accuracy (%)",
        (
            _line("probe/knn", "k nearest neighbours", "blue", "joined"),
            _line("probe/1shot", "1 image a class", "grey", "joined", "^"),
            _line("probe/5shot", "5 images a class", "orange", "joined", "s"),
            _line("probe/10shot", "10 images a class", "green", "joined", "^"),
        ),
        "Higher is better; what the encoder is worth for other work, measured while it is trained.",
    ),
    Plot(
        "Effective rank (RankMe)",
        "dimensions",
        (
            *_pooled_and_patches("probe/rankme"),
            _line("probe/rankme_centred", "of images, less their mean", "green", "joined", "^"),
        ),
        "How many dimensions the features fill, without labels. A fall to near 1 is a collapse; "
        "else it compares runs of one objective, and more is not better for sure.",
    ),
    Plot(
        "Decay of the features' variance (alpha-ReQ)",
        "alpha",
        _pooled_and_patches("probe/alpha"),
        "How fast the variance falls from one principal direction to the next, without labels: "
        "near 1 the features use many of them, the higher the fewer.",
    ),
    Plot(
        "Dead dimensions",
        "% of the dimensions",
        _pooled_and_patches("probe/dead"),
        "Near 0 is healthy; a dead dimension hardly differs between images.",
        least_top=10,
    ),
)
_OF_CLASSES = (
    Plot(
        "Loss",
        "loss (nats)",
        (
            *_LOSS,
            _line("train/class_entropy", "class frequencies only, training", "grey", "dotted"),
            _line("val/class_entropy", "class frequencies only, validation", "grey", "dashed"),
        ),
        "Lower is better; only below the grey baselines, the entropy of the class distribution, "
        "has the model learnt more than how frequent each class is.",
        start_at_zero=False,
    ),
    Plot(
        "Accuracy on corrupted patches",
        "accuracy (%)",
        (
            *_by_kind("accuracy"),
            _line("train/accuracy_neighbour", "copying the nearest visible", "grey", "dashed"),
            _line("train/accuracy_majority", "most frequent class", "grey", "dotted"),
        ),
        "Higher is better; the blue line is the task itself (kept patches can be seen), and above "
        "the dashed line the model beats copying the nearest visible patch.",
    ),
)
_OF_PIXELS = Plot(
    "Loss",
    "loss (mean squared error)",
    (
        *_LOSS,
        _line("train/loss_neighbour", "copying the nearest, training", "grey", "dashed"),
        _line("val/loss_neighbour", "copying the nearest, validation", "grey", "points", "s"),
        _line("train/loss_mean", "always the mean, training", "grey", "dotted"),
        _line("val/loss_mean", "always the mean, validation", "grey", "points", "^"),
    ),
    "Lower is better; below the dotted baseline the model knows more than the mean of all "
    "patches, below the dashed one more than copying the nearest visible patch.",
)
_FINETUNING = (
    Plot(
        "Loss",
        "loss (nats)",
        _LOSS,
        "Lower is better; validation that rises while training falls is overfitting.",
        start_at_zero=False,
    ),
    Plot(
        "Accuracy",
        "accuracy (%)",
        (
            *_each_and_smoothed("train/accuracy", "training, "),
            _line("val/accuracy", "validation", "orange", "points"),
            _line("val/accuracy_balanced", "validation, mean over classes", "green", "points", "^"),
        ),
        "Higher is better; the orange points are the top-1 accuracy on images not trained on.",
    ),
)
