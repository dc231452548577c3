"""Measure a frozen encoder: k-NN, and a linear probe on all labelled images.

    python finetune/probe.py [CONFIG.yaml ...] encoder.init=RUN data.train=... ...

`encoder.like=RUN` measures it untrained. The probe is a logistic regression whose penalty
a tenth of `data.train` chooses; `data.val` chooses nothing. The images are read once, on all
processes, for all of `probe.layers` and `probe.poolings`; `probe.dir` (by default `RUN/probe`, and
`RUN/probe-untrained`) holds the table, `result.json` and the features. Classes are matched by name
where a `classes.txt` lies beside the shards.
"""

import sys
from functools import partial
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()  # before the imports below, which take seconds

import numpy as np

from data.settings import memory_errors, run_entry_point
from finetune.config import ClassifiersConfig, LinearConfig
from finetune.measure import Figures, measure
from pretrain.configuration.load import load, usage
from pretrain.evaluation.classifiers import (
    Report,
    check_penalties,
    knn,
    linear_probe,
    num_linear_fits,
)
from pretrain.evaluation.features import Features
from pretrain.evaluation.probe import check_neighbours


def main(arguments: list[str]) -> None:
    """Run `python finetune/probe.py ARGUMENTS`."""
    if {"-h", "--help"} & set(arguments):
        print(usage(LinearConfig, "python finetune/probe.py"))
        return
    config = load(LinearConfig, arguments)
    asked = config.probe
    about = {"neighbours": asked.neighbours, "penalties": list(asked.penalties)}
    num_fits = 1 + num_linear_fits(asked.penalties)
    prepare = partial(_check, asked, config.data.used)
    with memory_errors("a smaller probe.batch_size"):
        table = measure(config, prepare, partial(_judge, asked), num_fits, about)
    if table is not None:
        print(table, end="")


def _check(asked: ClassifiersConfig, images: str, labels: np.ndarray) -> None:
    check_neighbours(asked.neighbours, labels, ("probe.neighbours", images))
    check_penalties(asked.penalties, labels, ("probe.penalties", images))


def _judge(
    asked: ClassifiersConfig, _: None, train: Features, val: Features, report: Report
) -> Figures:
    nearest = knn(train, val, asked.neighbours)
    report(1)
    linear = linear_probe(train, val, asked.penalties, report)
    return {
        "accuracy/knn_top1": nearest.top1,
        "accuracy/knn_top5": nearest.top5,
        "accuracy/linear_top1": linear.accuracy.top1,
        "accuracy/linear_top5": linear.accuracy.top5,
        "penalty": linear.penalty,
    }


if __name__ == "__main__":
    run_entry_point(main)
