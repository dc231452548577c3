"""Heads that learn which patches of a frozen encoder to read, and the sweep that fits them.

Average pooling reads all patches alike, and what an image is of may lie in a few of them. Source:
Darcet et al. 2025 (CAPI, arXiv:2502.08769), appendix on attentive probes; Psomas et al. 2026,
"Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency" (arXiv:2506.10178).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import count, islice, product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.randomness import combine, derive
from pretrain.evaluation.classifiers import (
    MIN_IMAGES,
    Accuracy,
    Report,
    Scale,
    hold_out,
    top_accuracy,
)
from pretrain.evaluation.config import ATTENTIVE, EFFICIENT
from pretrain.evaluation.features import Features
from pretrain.training.config import OptimConfig

_BATCH = 256  # images of a step, and of a forward pass
_HEAD_WIDTH = 64  # CAPI's
_DEVIATION = 0.02  # of the weights as they begin, cut off at 2
_BETAS = (0.9, 0.95)  # CAPI's, as is the warm-up
_WARMUP_RATIO = 0.1
_WEIGHTS, _ORDER = 32, 33  # purposes of a key


class Sweep(NamedTuple):
    """How a head is fitted.

    Attributes:
        rates: Peak learning rates, and
        decays: weight decays: all pairs are tried.
        steps: Of AdamW, with 256 images each.
        queries: Of the efficient head.
        seed: Of the first weights and of the order of the images.
    """

    rates: Sequence[float]
    decays: Sequence[float]
    steps: int
    queries: int
    seed: int

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """What is tried: rates with decays."""
        return list(product(self.rates, self.decays))


# ---------------------------------------------------------------- the heads


class Head(nn.Module, ABC):
    """Each of Q queries weighs all patches by a softmax; its sum of them gives D/Q values.

    The values of all queries, side by side, go through a linear layer. The projection to values
    stands behind the sum over the patches, which gives the same numbers as one before it: weights
    add up to one. So a step costs 2 N Q D products an image, and not 2 N D^2.

    Args:
        width: D of the patches.
        num_queries: Q, a divisor of D.
        num_classes: K.
        draw: A shape -> the weights that it begins with.
    """

    def __init__(self, width: int, num_queries: int, num_classes: int, draw: "_Draw") -> None:
        super().__init__()
        self.num_queries = num_queries
        self.values = nn.Parameter(draw(num_queries, width // num_queries, width))
        self.last = nn.Parameter(draw(num_classes, width))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    @abstractmethod
    def queries(self) -> Tensor:
        """Return the queries (Q, D), whose products with the patches are the softmax's logits."""

    def value(self, pooled: Tensor) -> Tensor:
        """Weighted sums of the patches (B, Q, D) -> values (B, Q, D/Q)."""
        return torch.einsum("bqd,qed->bqe", pooled, self.values)

    def classify(self, pooled: Tensor) -> Tensor:
        """Weighted sums of the patches (B, Q, D) -> logits (B, K)."""
        return F.linear(self.value(pooled).flatten(1), self.last, self.bias)


class Attentive(Head):
    """One query, in heads of 64, over keys and values: CAPI's `AttnPoolClassifier`.

    A head's product with a projected patch is that of a projected head with the patch, so each head
    is a query of the width D. The bias of the keys, which changes no softmax, is left out.
    """

    def __init__(self, width: int, num_classes: int, draw: "_Draw") -> None:
        num_heads = num_attentive_heads(width)
        super().__init__(width, num_heads, num_classes, draw)
        self.query = nn.Parameter(draw(num_heads, width // num_heads))
        self.keys = nn.Parameter(draw(num_heads, width // num_heads, width))
        self.value_bias = nn.Parameter(torch.zeros(num_heads, width // num_heads))

    def queries(self) -> Tensor:
        """Return each head's part of the query, projected as the keys are."""
        scale = self.query.shape[1] ** -0.5
        return torch.einsum("qe,qed->qd", self.query, self.keys) * scale

    def value(self, pooled: Tensor) -> Tensor:
        """Weighted sums of the patches (B, Q, D) -> values (B, Q, D/Q)."""
        return super().value(pooled) + self.value_bias


class Efficient(Head):
    """Several queries over the patches as they are: efficient probing, `poolings/ep.py`.

    There are no keys. The values have no bias.
    """

    def __init__(self, width: int, num_queries: int, num_classes: int, draw: "_Draw") -> None:
        super().__init__(width, num_queries, num_classes, draw)
        self.tokens = nn.Parameter(draw(num_queries, width))

    def queries(self) -> Tensor:
        """Return the learned tokens, scaled."""
        return self.tokens * self.tokens.shape[1] ** -0.5


def num_attentive_heads(width: int) -> int:
    """Return into how many heads a width is split: of 64, or of the next width that divides it."""
    most = max(1, width // _HEAD_WIDTH)
    return next(number for number in range(most, 0, -1) if width % number == 0)


def logits(heads: Sequence[Head], patches: Tensor) -> list[Tensor]:
    """Patches (B, N, D) -> (B, K) of each head; all of them read the patches in one product."""
    queries = torch.cat([head.queries() for head in heads])  # (sum of Q, D)
    attention = (patches @ queries.T).softmax(1)  # (B, N, sum of Q)
    pooled = attention.transpose(1, 2) @ patches  # (B, sum of Q, D)
    parts = pooled.split([head.num_queries for head in heads], dim=1)
    return [head.classify(part) for head, part in zip(heads, parts, strict=True)]


class _Draw:
    """Draws weights: shape -> normal numbers, the same from the same seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(derive(seed, _WEIGHTS))

    def __call__(self, *shape: int) -> Tensor:
        cut = 2 * _DEVIATION
        return nn.init.trunc_normal_(
            torch.empty(shape), 0, _DEVIATION, -cut, cut, generator=self._generator
        )


def make_head(kind: str, width: int, num_classes: int, sweep: Sweep) -> Head:
    """Return a new head: of `kind` attentive or efficient, for patches of a width."""
    draw = _Draw(sweep.seed)
    if kind == ATTENTIVE:
        return Attentive(width, num_classes, draw)
    assert kind == EFFICIENT
    return Efficient(width, sweep.queries, num_classes, draw)


# ---------------------------------------------------------------- fitted


class AttentiveProbe(NamedTuple):
    """A fitted head.

    Attributes:
        scale: Each feature's mean and deviation over patches of some training images.
        head: For patches as `scale` gives them, on the labels' device.
        rate: Of the pair that was chosen,
        decay: and so is this.
        held_out: The cross-entropy, in nats, of a head that was fitted without a tenth of the
            training images, on those; infinite where they are too few.
    """

    scale: Scale
    head: Head
    rate: float
    decay: float
    held_out: float

    def accuracy(self, val: Features) -> Accuracy:
        """Judge it on patches."""
        places = torch.arange(len(val.labels))
        scores = (found[0] for found in _scores([self.head], val, places, self.scale))
        return top_accuracy(scores, val.labels.split(_BATCH))


def attentive_probe(kind: str, train: Features, sweep: Sweep, report: Report) -> AttentiveProbe:
    """Fit a head on all training images, by the rate and decay of the least held-out loss.

    The tenth that chooses is the linear probe's. Fewer than `MIN_IMAGES` hold none out; then it is
    the first pair.

    Args:
        kind: attentive or efficient.
        train: Patches, (n, N, D), on the CPU, where they may be a file's; the labels are where it
            is fitted.
        sweep: How.
        report: Is told of the heads that are fitted, and of each step.
    """
    pairs, held_out = sweep.pairs, math.inf
    rate, decay = pairs[0]
    if len(train.labels) >= MIN_IMAGES:
        fitted, judged = (mask.nonzero()[:, 0].cpu() for mask in hold_out(train.labels))
        scale, heads = _fit(kind, train, fitted, pairs, sweep, report)
        losses = _losses(heads, train, judged, scale)
        rate, decay = pairs[int(losses.argmin())]
        held_out = float(losses.min())
    everything = torch.arange(len(train.labels))
    scale, [head] = _fit(kind, train, everything, [(rate, decay)], sweep, report)
    return AttentiveProbe(scale, head, rate, decay, held_out)


def num_attentive_fits(sweep: Sweep) -> int:
    """Return of how many fits `attentive_probe` reports."""
    return 1 + len(sweep.pairs)


def _fit(
    kind: str,
    train: Features,
    places: Tensor,
    pairs: Sequence[tuple[float, float]],
    sweep: Sweep,
    report: Report,
) -> tuple[Scale, list[Head]]:
    """Fit a head for each pair on the images at these places, all of them on the same batches."""
    some = places[:: max(1, len(places) // _BATCH)]  # patches have enough to say of scale
    scale = Scale.of(_read(train, some).flatten(0, 1))
    device, num_classes = train.labels.device, int(train.labels.max()) + 1
    width = train.values.shape[2]
    heads = [make_head(kind, width, num_classes, sweep).to(device) for _ in pairs]
    groups = [
        {"params": [parameter], "rate": rate, "weight_decay": 0.0 if "bias" in name else decay}
        for head, (rate, decay) in zip(heads, pairs, strict=True)
        for name, parameter in head.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, betas=_BETAS)
    schedule = OptimConfig(steps=sweep.steps, lr=1.0, warmup_ratio=_WARMUP_RATIO)
    batches = islice(_batches(train, places, sweep.seed), sweep.steps)
    for step, chosen in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * schedule.lr_at(step)
        labels = train.labels[chosen.to(device)]
        found = logits(heads, scale(_read(train, chosen)))
        loss = torch.stack([F.cross_entropy(scores, labels) for scores in found]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(0)
    report(len(pairs))
    return scale, heads


def _batches(train: Features, places: Tensor, seed: int) -> Iterator[Tensor]:
    """Yield batches of places without end: each image once an epoch, but for the last few.

    The order is a function of the seed and of the images' listed positions.
    """
    positions = train.positions.cpu()[places].numpy()
    size = min(_BATCH, len(positions))
    for epoch in count():
        keys = combine(np.full_like(positions, derive(seed, epoch, _ORDER)), positions)
        order = torch.from_numpy(keys.argsort(kind="stable"))
        for batch in order[: len(order) // size * size].split(size):
            yield places[batch].sort().values  # a disk reads forwards


def _read(features: Features, places: Tensor) -> Tensor:
    """Return the patches of these images, float32 (B, N, D), where the labels are."""
    return features.values[places].to(features.labels.device).float()


@torch.no_grad()
def _scores(
    heads: Sequence[Head], features: Features, places: Tensor, scale: Scale
) -> Iterator[list[Tensor]]:
    """Yield each head's logits of a chunk of images."""
    for chunk in places.split(_BATCH):
        yield logits(heads, scale(_read(features, chunk)))


def _losses(heads: Sequence[Head], features: Features, places: Tensor, scale: Scale) -> Tensor:
    """Return each head's cross-entropy on some images; one that diverged has the largest."""
    labels = features.labels[places.to(features.labels.device)]
    sums = torch.zeros(len(heads), dtype=torch.float64)
    chunks = zip(_scores(heads, features, places, scale), labels.split(_BATCH), strict=True)
    for found, truth in chunks:
        parts = [F.cross_entropy(scores.double(), truth, reduction="sum") for scores in found]
        sums += torch.stack(parts).cpu()
    return (sums / len(places)).nan_to_num(nan=math.inf)
