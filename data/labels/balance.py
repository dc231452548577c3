"""Weights of the classes in the loss, so that rare ones count as much as frequent ones."""

import numpy as np


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return a weight a class, by the inverse of its frequency: float32 (K,).

    The mean over the training images is 1, so that the learning rate keeps its meaning. A class
    without an image has 1.

    Args:
        labels: Of the training images, int64 (N,).
        num_classes: K.
    """
    counts = np.bincount(labels, minlength=num_classes)
    occurs = counts > 0
    weights = len(labels) / (occurs.sum() * np.maximum(counts, 1))
    return np.where(occurs, weights, 1).astype(np.float32)


def positive_weights(labels: np.ndarray, num_classes: int, num_images: int) -> np.ndarray:
    """Return a weight of each class's positives: its negatives over its positives, float32 (K,).

    A class without positives, or without negatives, has 1.

    Args:
        labels: The classes of all training images, one image's after the other's: int64 (n,).
        num_classes: K.
        num_images: N.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = (num_images - counts) / np.maximum(counts, 1)
    return np.where((counts > 0) & (weights > 0), weights, 1).astype(np.float32)
