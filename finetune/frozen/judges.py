"""How `fewshot.py` and `probe.py` judge a frozen encoder's features."""

import statistics
from math import isfinite

import numpy as np

from finetune.config import ClassifiersConfig, ShotsConfig
from finetune.frozen.measure import Figures
from pretrain.evaluation.classifiers import (
    Choices,
    Probe,
    Report,
    check_penalties,
    choose_shots,
    few_shot,
    knn,
    linear_probe,
)
from pretrain.evaluation.features import Features
from pretrain.evaluation.probe import check_neighbours


def choose_images(shots: ShotsConfig, images: str, labels: np.ndarray) -> Choices:
    """Choose the labelled images of each number of shots and each seed."""
    return choose_shots(labels, shots.shots, shots.num_seeds, ("fewshot.shots", images))


def judge_few_shot(
    shots: ShotsConfig, choices: Choices, train: Features, val: Features, report: Report
) -> Figures:
    """Return the mean and the deviation over choices of the labelled images."""
    figures: Figures = {}
    for number, accuracies in few_shot(train, val, choices, shots.penalty, report).items():
        figures[f"accuracy/{number}shot"] = statistics.fmean(accuracies)
        figures[f"deviation/{number}shot"] = statistics.pstdev(accuracies)
    return figures


def check_classifiers(classifiers: ClassifiersConfig, images: str, labels: np.ndarray) -> None:
    """Raise `UserError` where the images are too few for k-NN, or for choosing a penalty."""
    check_neighbours(classifiers.neighbours, labels, ("probe.neighbours", images))
    check_penalties(classifiers.penalties, labels, ("probe.penalties", images))


class ClassifierJudge:
    """Judges views by k-NN and a linear probe.

    Args:
        classifiers: How both are fitted.

    Attributes:
        probes: Those of the views so far, in their order.
    """

    def __init__(self, classifiers: ClassifiersConfig) -> None:
        self._classifiers = classifiers
        self.probes: list[Probe] = []

    def __call__(self, _: None, train: Features, val: Features, report: Report) -> Figures:
        """Return the accuracies of both, the penalty of the probe, and its held-out loss."""
        nearest = knn(train, val, self._classifiers.neighbours)
        report(1)
        probe = linear_probe(train, self._classifiers.penalties, report)
        self.probes.append(probe)
        linear = probe.classifier.accuracy(val)
        figures = {
            "accuracy/knn_top1": nearest.top1,
            "accuracy/knn_top5": nearest.top5,
            "accuracy/linear_top1": linear.top1,
            "accuracy/linear_top5": linear.top5,
            "penalty": probe.penalty,
        }
        return figures | ({"held_out_loss": probe.held_out} if isfinite(probe.held_out) else {})
