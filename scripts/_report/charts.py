"""Which charts over the steps a run has, what each shows, and how it is read."""

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, pairwise

from scripts._report.curves import Chart, Series
from scripts._report.figures import Line, Plot
from scripts._report.findings import last_with
from scripts._report.history import Run


def plots_of(run: Run) -> list[Plot]:
    """Return the charts for which a run has records, each with the lines that it has."""
    wanted = [*_charts_of(run), *_SHARED]
    plots = [chart.plot(run.records) for chart in wanted]
    return [plot for plot in [*plots, *_bad_samples(run)] if plot.lines]


def _charts_of(run: Run) -> tuple[Chart, ...]:
    if not run.is_pretraining:
        return _FINETUNING
    has_kinds = any(last_with(run.records, f"train/loss_{kind}") for kind in ("random", "kept"))
    by_kind = (_loss_by_kind(run.unit),) if has_kinds else ()  # all masked: it would repeat itself
    return (*(_OF_CLASSES if run.has_classes else _OF_PIXELS), *by_kind, _FROZEN)


def _bad_samples(run: Run) -> Iterator[Plot]:
    """Count the samples that could not be used, up to each step; no chart where there are none."""
    if not run.bad_samples:
        return
    by_step = Counter(run.bad_samples)
    steps = [0, *sorted(by_step)]
    counts = accumulate(by_step[step] for step in steps)
    points = [(float(step), float(num)) for step, num in zip(steps, counts, strict=True)]
    end = max(points[-1][0], run.records[-1]["step"])
    line = Line("samples", "orange", "line", (*_stairs(points), (end, points[-1][1])))
    yield Plot(
        "Samples that could not be used",
        "samples since the start",
        (line,),
        "A flat line is healthy; a jump is a damaged shard, a steady climb is bad files here and "
        "there. bad_samples.jsonl names each with its reason.",
        start_at_zero=True,
    )


def _stairs(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Hold each value until the next step."""
    held = [(after[0], before[1]) for before, after in pairwise(points)]
    return [points[0], *(point for pair in zip(held, points[1:], strict=True) for point in pair)]


# ---------------------------------------------------------------- the charts


def _accuracy(kind: str, colour: str, marker: str) -> tuple[Series, ...]:
    return (
        Series(f"train/accuracy_{kind}", f"{kind}, training", colour, "smooth"),
        Series(f"val/accuracy_{kind}", f"{kind}, validation", colour, "points", marker),
    )


def _loss(kind: str, colour: str, marker: str) -> tuple[Series, ...]:
    return (
        Series(f"train/loss_{kind}", f"{kind}, training", colour, "smooth"),
        Series(f"val/loss_{kind}", f"{kind}, validation", colour, "points", marker),
    )


def _loss_by_kind(unit: str) -> Chart:
    return Chart(
        "Loss by kind of corruption",
        f"loss ({unit})",
        (
            *_loss("mask", "blue", "o"),
            *_loss("random", "orange", "s"),
            *_loss("kept", "green", "^"),
        ),
        "Lower is better. 'mask' is the task itself; a 'kept' patch can be seen, and so its loss "
        "falls first and furthest; 'random' shows another patch and must be seen through.",
    )


_LOSS = (
    Series("train/loss", "training, each record", "blue", "raw"),
    Series("train/loss", "training, smoothed", "blue", "smooth"),
    Series("val/loss", "validation", "orange", "points"),
)
_SHARED = (
    Chart(
        "Learning rate",
        "learning rate",
        (Series("optim/lr", "learning rate", "blue", "line"),),
        "It should rise during the warm-up and then fall to nearly 0 at the last step.",
        start_at_zero=True,
    ),
    Chart(
        "Gradient norm",
        "norm before clipping",
        (
            Series("optim/grad_norm", "each record", "blue", "raw"),
            Series("optim/grad_norm", "smoothed", "blue", "smooth"),
        ),
        "A steady level is healthy; a climb or tall spikes ask for a lower learning rate.",
        start_at_zero=True,
    ),
    Chart(
        "Throughput",
        "images per second",
        (
            Series("speed/images_per_second", "each record", "blue", "raw"),
            Series("speed/images_per_second", "smoothed", "blue", "smooth"),
        ),
        "Higher is faster; all processes together, without validation and saving. A drop that "
        "stays means that the machine got other work or the storage became slow.",
        start_at_zero=True,
    ),
    Chart(
        "Waiting for data",
        "% of the time",
        (Series("speed/data_wait_ratio", "waiting for data", "orange", "raw"),),
        "Near 0 the model sets the pace; much above 10 % the loader does.",
        scale=100,
        start_at_zero=True,
        least_top=10,
    ),
)
_FROZEN = Chart(
    "Frozen features on labelled images",
    "accuracy (%)",
    (
        Series("probe/knn", "k nearest neighbours", "blue", "joined"),
        Series("probe/1shot", "1 image a class", "grey", "joined", "^"),
        Series("probe/5shot", "5 images a class", "orange", "joined", "s"),
        Series("probe/10shot", "10 images a class", "green", "joined", "^"),
    ),
    "Higher is better; what the encoder is worth for other work, measured while it is trained.",
    scale=100,
    start_at_zero=True,
)
_OF_CLASSES = (
    Chart(
        "Loss",
        "loss (nats)",
        (
            *_LOSS,
            Series("train/class_entropy", "class frequencies only, training", "grey", "dotted"),
            Series("val/class_entropy", "class frequencies only, validation", "grey", "dashed"),
        ),
        "Lower is better; only below the grey baselines, the entropy of the class distribution, "
        "has the model learnt more than how frequent each class is.",
    ),
    Chart(
        "Accuracy on corrupted patches",
        "accuracy (%)",
        (
            *_accuracy("mask", "blue", "o"),
            *_accuracy("random", "orange", "s"),
            *_accuracy("kept", "green", "^"),
            Series("train/accuracy_neighbour", "copying the nearest visible", "grey", "dashed"),
            Series("train/accuracy_majority", "most frequent class", "grey", "dotted"),
        ),
        "Higher is better; the blue line is the task itself (kept patches can be seen), and above "
        "the dashed line the model beats copying the nearest visible patch.",
        scale=100,
        start_at_zero=True,
    ),
)
_OF_PIXELS = (
    Chart(
        "Loss",
        "loss (mean squared error)",
        (
            *_LOSS,
            Series("train/loss_neighbour", "copying the nearest, training", "grey", "dashed"),
            Series("val/loss_neighbour", "copying the nearest, validation", "grey", "points", "s"),
            Series("train/loss_mean", "always the mean, training", "grey", "dotted"),
            Series("val/loss_mean", "always the mean, validation", "grey", "points", "^"),
        ),
        "Lower is better; below the dotted baseline the model knows more than the mean of all "
        "patches, below the dashed one more than copying the nearest visible patch.",
        start_at_zero=True,
    ),
)
_FINETUNING = (
    Chart(
        "Loss",
        "loss (nats)",
        _LOSS,
        "Lower is better; validation that rises while training falls is overfitting.",
    ),
    Chart(
        "Accuracy",
        "accuracy (%)",
        (
            Series("train/accuracy", "training, each record", "blue", "raw"),
            Series("train/accuracy", "training, smoothed", "blue", "smooth"),
            Series("val/accuracy", "validation", "orange", "points"),
            Series(
                "val/accuracy_balanced", "validation, mean over classes", "green", "points", "^"
            ),
        ),
        "Higher is better; the orange points are the top-1 accuracy on images not trained on.",
        scale=100,
        start_at_zero=True,
    ),
)
