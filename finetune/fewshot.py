"""Measure a frozen encoder: ridge regression in closed form on a few labelled images a class.

    python finetune/fewshot.py [CONFIG.yaml ...] encoder.init=RUN data.train=... data.val=...

`encoder.like=RUN` measures it untrained. Nothing is trained or tuned. The images are read
once, on all processes of `accelerate launch`, for all of `fewshot.layers` and `fewshot.poolings`;
`fewshot.dir` (by default `RUN/fewshot`, and `RUN/fewshot-untrained`) holds the table, `result.json`
and the features. Classes are matched by name where a `classes.txt` lies beside the shards.
"""

import statistics
import sys
from functools import partial
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()  # before the imports below, which take seconds

import numpy as np

from data.settings import memory_errors, run_entry_point
from finetune.config import FewshotConfig, ShotsConfig
from finetune.measure import Figures, measure
from pretrain.configuration.load import load, usage
from pretrain.evaluation.classifiers import Choices, Report, choose_shots, few_shot
from pretrain.evaluation.features import Features


def main(arguments: list[str]) -> None:
    """Run `python finetune/fewshot.py ARGUMENTS`."""
    if {"-h", "--help"} & set(arguments):
        print(usage(FewshotConfig, "python finetune/fewshot.py"))
        return
    config = load(FewshotConfig, arguments)
    asked = config.fewshot
    about = {"penalty": asked.penalty, "num_seeds": asked.num_seeds, "shots": list(asked.shots)}
    num_fits = len(asked.shots) * asked.num_seeds
    prepare = partial(_choose, asked, config.data.used)
    with memory_errors("a smaller fewshot.batch_size"):
        table = measure(config, prepare, partial(_judge, asked), num_fits, about)
    if table is not None:
        print(table, end="")


def _choose(asked: ShotsConfig, images: str, labels: np.ndarray) -> Choices:
    return choose_shots(labels, asked.shots, asked.num_seeds, ("fewshot.shots", images))


def _judge(
    asked: ShotsConfig, choices: Choices, train: Features, val: Features, report: Report
) -> Figures:
    """Return the mean and the deviation over choices of the labelled images."""
    figures: Figures = {}
    for shots, accuracies in few_shot(train, val, choices, asked.penalty, report).items():
        figures[f"accuracy/{shots}shot"] = statistics.fmean(accuracies)
        figures[f"deviation/{shots}shot"] = statistics.pstdev(accuracies)
    return figures


if __name__ == "__main__":
    run_entry_point(main)
