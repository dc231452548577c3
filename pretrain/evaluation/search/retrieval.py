"""Retrieval on labelled images: how far up the images of a query's class stand among all."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.evaluation.classifiers import Report, silent
from pretrain.evaluation.features import Features

AT = (1, 5, 10)
_NUM_SCORES = 1 << 23  # numbers that a chunk of scores holds at most; each is sorted with its place


class Retrieval(NamedTuple):
    """How well the nearest images answer.

    Attributes:
        recall: For each K of `AT`, what of the queries have an image of their class among the
            first K.
        mean_average_precision: The mean over queries of average precision: the mean, over the
            images of the query's class, of the precision at each one's rank.
    """

    recall: dict[int, float]
    mean_average_precision: float


def retrieve(gallery: Features, queries: Features, report: Report = silent) -> Retrieval:
    """Rank all images of a gallery by their cosine to each query, and tell how far up its class is.

    Equally alike images stand in listed order. A query whose class the gallery lacks counts 0.

    Args:
        gallery: What is searched.
        queries: Other images, on the same device.
        report: Is told, with 0, that a chunk is done.
    """
    images = F.normalize(gallery.values)
    size = max(1, _NUM_SCORES // len(images))
    precisions: list[Tensor] = []
    hits: list[Tensor] = []
    chunks = zip(queries.values.split(size), queries.labels.split(size), strict=True)
    for values, labels in chunks:
        similarity = F.normalize(values) @ images.T
        order = similarity.sort(dim=1, descending=True, stable=True).indices
        is_right = gallery.labels[order] == labels[:, None]  # (n, images)
        precisions.append(_average_precision(is_right))
        hits.append(torch.stack([is_right[:, :at].any(1) for at in AT]))
        report(0)
    recall = torch.cat(hits, dim=1).double().mean(1).tolist()
    return Retrieval(dict(zip(AT, recall, strict=True)), float(torch.cat(precisions).mean()))


def _average_precision(is_right: Tensor) -> Tensor:
    """Which of the ranked images are right, bool (n, images) -> float64 (n,)."""
    ranks = torch.arange(1, is_right.shape[1] + 1, device=is_right.device)
    precision = is_right.cumsum(1) / ranks.double()
    return (precision * is_right).sum(1) / is_right.sum(1).clamp(min=1)
