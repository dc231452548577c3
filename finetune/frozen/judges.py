"""How `fewshot.py` and `probe.py` judge a frozen encoder's features."""

import statistics
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from timm.models.vision_transformer import VisionTransformer

from data.settings import require
from finetune.config import ShotsConfig
from finetune.frozen.config import ClassifiersConfig
from finetune.frozen.measure import Figures
from finetune.frozen.opening import say_edges
from pretrain.evaluation.attentive import Sweep, attentive_probe, num_attentive_fits
from pretrain.evaluation.classifiers import (
    MIN_IMAGES,
    Accuracy,
    Choices,
    Probe,
    Report,
    check_penalties,
    choose_shots,
    few_shot,
    knn,
    linear_probe,
    num_linear_fits,
)
from pretrain.evaluation.config import EFFICIENT, PATCH_HEADS
from pretrain.evaluation.features import Features, View
from pretrain.evaluation.probe import check_neighbours
from pretrain.evaluation.search.retrieval import Retrieval, retrieve


class FewShotJudge:
    """Judges by ridge regression on a few labelled images.

    Args:
        shots: How many.
        images: The key of the training images, for messages.
    """

    def __init__(self, shots: ShotsConfig, images: str) -> None:
        self._shots = shots
        self._images = images
        self._choices: Choices = {}

    def prepare(self, encoder: VisionTransformer, labels: np.ndarray) -> None:
        """Choose the labelled images of each number of shots and each seed."""
        del encoder
        shots = self._shots
        keys = ("fewshot.shots", self._images)
        self._choices = choose_shots(labels, shots.shots, shots.num_seeds, keys)

    def num_fits(self, view: View) -> int:
        """Return of how many fits it tells."""
        del view
        return len(self._shots.shots) * self._shots.num_seeds

    def __call__(self, view: View, train: Features, val: Features, report: Report) -> Figures:
        """Return the mean and the deviation over choices of the labelled images."""
        del view
        figures: Figures = {}
        found = few_shot(train, val, self._choices, self._shots.penalty, report)
        for number, accuracies in found.items():
            figures[f"accuracy/{number}shot"] = statistics.fmean(accuracies)
            figures[f"deviation/{number}shot"] = statistics.pstdev(accuracies)
        return figures


class ClassifierJudge:
    """Judges poolings by k-NN and a linear probe, and patches by heads that learn to pool them.

    Args:
        classifiers: How they are fitted.
        images: The key of the training images, for messages.

    Attributes:
        probes: The linear probes so far.
    """

    def __init__(self, classifiers: ClassifiersConfig, images: str) -> None:
        self._classifiers = classifiers
        self._images = images
        self._sweep = Sweep(
            classifiers.rates,
            classifiers.decays,
            classifiers.steps,
            classifiers.queries,
            classifiers.seed,
        )
        self.probes: dict[View, Probe] = {}

    def prepare(self, encoder: VisionTransformer, labels: np.ndarray) -> None:
        """Raise `UserError` where the images are too few, or the queries do not fit."""
        told, images, width = self._classifiers, self._images, encoder.num_features
        if "knn" in told.heads:
            check_neighbours(told.neighbours, labels, ("probe.neighbours", images))
        if "linear" in told.heads:
            check_penalties(told.penalties, labels, ("probe.penalties", images))
        if told.patch_heads:
            require(
                len(self._sweep.pairs) == 1 or len(labels) >= MIN_IMAGES,
                f"probe.rates and probe.decays make {len(self._sweep.pairs)} pairs, but {images} "
                f"has only {len(labels)} images to choose among them; name one of each",
            )
        require(
            EFFICIENT not in told.heads or width % told.queries == 0,
            f"probe.queries={told.queries} does not divide the encoder's width, {width}, on which "
            "each query has its share; try a power of 2",
        )

    def num_fits(self, view: View) -> int:
        """Return of how many fits it tells."""
        told = self._classifiers
        if view.pooling in PATCH_HEADS:
            return num_attentive_fits(self._sweep)
        num_linear = num_linear_fits(told.penalties) if "linear" in told.heads else 0
        return num_linear + len({"knn", "retrieval"} & set(told.heads))

    def __call__(self, view: View, train: Features, val: Features, report: Report) -> Figures:
        """Return the accuracies, what the held-out tenth chose, and its loss."""
        if view.pooling in PATCH_HEADS:
            return self._by_patches(view.pooling, train, val, report)
        figures: Figures = {}
        if "knn" in self._classifiers.heads:
            figures |= _accuracies("knn", knn(train, val, self._classifiers.neighbours))
            report(1)
        if "retrieval" in self._classifiers.heads:
            figures |= _retrieval(retrieve(train, val, report))
            report(1)
        if "linear" in self._classifiers.heads:
            probe = linear_probe(train, self._classifiers.penalties, report)
            self.probes[view] = probe
            figures |= _accuracies("linear", probe.classifier.accuracy(val))
            figures |= {"penalty": probe.penalty} | _held_out(probe.held_out)
        return figures

    def say_edges(self, cells: Sequence[Mapping[str, Any]]) -> None:
        """Say which of the values that were tried were not enough."""
        told = self._classifiers
        tried = {"penalty": "penalties", "rate": "rates", "decay": "decays"}
        for name, key in tried.items():
            chosen = [cell[name] for cell in cells if name in cell]
            say_edges(f"probe.{key}", getattr(told, key), chosen)

    def _by_patches(self, kind: str, train: Features, val: Features, report: Report) -> Figures:
        probe = attentive_probe(kind, train, self._sweep, report)
        return {
            **_accuracies("linear", probe.accuracy(val)),
            **_held_out(probe.held_out),
            "rate": probe.rate,
            "decay": probe.decay,
        }


def _retrieval(found: Retrieval) -> Figures:
    recall = {f"accuracy/recall@{at}": share for at, share in found.recall.items()}
    return recall | {"accuracy/map": found.mean_average_precision}


def _accuracies(head: str, found: Accuracy) -> Figures:
    return {f"accuracy/{head}_top1": found.top1, f"accuracy/{head}_top5": found.top5}


def _held_out(loss: float) -> Figures:
    """Return the loss on the held-out tenth, where there is one."""
    return {"held_out_loss": loss} if isfinite(loss) else {}
