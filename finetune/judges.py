"""How `fewshot.py` and `probe.py` judge a frozen encoder's features."""

import statistics

import numpy as np

from finetune.config import ClassifiersConfig, ShotsConfig
from finetune.measure import Figures
from pretrain.evaluation.classifiers import (
    Choices,
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


def judge_classifiers(
    classifiers: ClassifiersConfig, _: None, train: Features, val: Features, report: Report
) -> Figures:
    """Return the accuracies of k-NN and of the linear probe, and its penalty."""
    nearest = knn(train, val, classifiers.neighbours)
    report(1)
    linear = linear_probe(train, val, classifiers.penalties, report)
    return {
        "accuracy/knn_top1": nearest.top1,
        "accuracy/knn_top5": nearest.top5,
        "accuracy/linear_top1": linear.accuracy.top1,
        "accuracy/linear_top5": linear.accuracy.top5,
        "penalty": linear.penalty,
    }
