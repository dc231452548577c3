"""Sums over the answers for a batch's corrupted patches, and the metrics made of them.

Every figure is a quotient of sums over images, so that batches and ranks can be added up.
"""

import torch
from torch import Tensor

from data.devices import sum_dtype
from pretrain.encoder.blocks import select
from pretrain.objective.corruption import Corruption
from pretrain.objective.nearest import NUM_DISTANCES, Nearest
from pretrain.objective.targets import Target
from pretrain.training.contract import Sums

_KINDS = ("mask", "random", "kept")


# ---------------------------------------------------------------- sums


def add_up(
    target: Target,
    outputs: Tensor,
    losses: Tensor,
    answers: Tensor,
    corruption: Corruption,
    weight: Tensor,
    nearest: Nearest,
    *,
    has_distances: bool,
) -> Sums:
    """Add up what `summarise` needs.

    Args:
        target: What was asked for.
        outputs: (B, P, num_outputs) for the predicted patches.
        losses: float32 (B, P).
        answers: (B, N, G) or (B, N, V), of all patches.
        corruption: What was corrupted.
        weight: (B,) of the images.
        nearest: Whose answers the baseline of copying gives.
        has_distances: Add up masked patches by distance to the nearest visible patch too.
    """
    wanted = select(answers, corruption.predicted)
    copied = target.scores(select(answers, nearest.patches), wanted)
    values = {"loss": losses.detach(), "neighbour": copied}
    if target.num_classes is not None:
        values["right"] = target.scores(target.guesses(outputs), wanted)
    image_weight = weight.to(sum_dtype(weight.device))
    patch_weight = image_weight[:, None].expand_as(losses)  # (B, P)
    by_patch = {name: value * patch_weight for name, value in values.items()}
    sums = {name: value.sum() for name, value in by_patch.items()}
    sums["weight"] = image_weight.sum()
    sums["num_patches"] = sums["weight"] * answers.shape[1]
    sums["num_corrupted"] = sums["weight"] * sum(corruption.counts)
    for kind, size in zip(_KINDS, corruption.num_predicted, strict=True):
        sums[f"num_{kind}"] = sums["weight"] * size
    for name in (name for name in by_patch if name != "neighbour"):
        parts = by_patch[name].split(list(corruption.num_predicted), dim=1)
        sums |= {f"{name}_{kind}": part.sum() for kind, part in zip(_KINDS, parts, strict=True)}
    if has_distances:
        # the others can be seen, or show something else
        masked = slice(corruption.num_predicted.mask)
        numbers = {name: value[:, masked] for name, value in by_patch.items()}
        numbers["num"] = patch_weight[:, masked]
        sums |= _by_distance(numbers, nearest.distances[:, masked])
    return sums | _spread(target, wanted, patch_weight)


def _by_distance(by_patch: dict[str, Tensor], distances: Tensor) -> Sums:
    """Add up masked patches by rounded distance: (NUM_DISTANCES,) each."""
    place = distances.round().long().clamp(1, NUM_DISTANCES).flatten() - 1
    dtype = sum_dtype(distances.device)
    empty = torch.zeros(NUM_DISTANCES, dtype=dtype, device=distances.device)
    return {
        f"{name}_by_distance": empty.index_add(0, place, value.flatten())
        for name, value in by_patch.items()
    }


def _spread(target: Target, wanted: Tensor, patch_weight: Tensor) -> Sums:
    """Add up what answering always the same is judged by."""
    weight = patch_weight[..., None].expand(wanted.shape)
    if target.num_classes is not None:
        histogram = weight.new_zeros(target.num_classes)
        return {"histogram": histogram.index_add_(0, wanted.flatten(), weight.flatten())}
    values = wanted.to(weight.dtype)
    return {
        "values": (values * weight).sum((0, 1)),  # (V,)
        "squares": (values.square() * weight).sum((0, 1)),
    }


# ---------------------------------------------------------------- figures


def summarise(sums: Sums) -> dict[str, float]:
    """Turn sums into figures.

    Returns:
        `loss`, in nats, or mean squared error of pixels; by kind of corruption `loss_KIND`; the
        measured fractions. Of colour classes `accuracy`, `accuracy_KIND`; `class_entropy` (nats),
        the loss of a model that knows only how frequent each class is; `accuracy_majority` and
        `accuracy_neighbour`, those of answering with the batch's most frequent class, and with the
        colour of the nearest patch that is not corrupted. Of pixels `loss_mean` and
        `loss_neighbour`, those of answering with the batch's mean patch, and with that nearest
        patch. In validation, of masked patches by distance to that patch, with D = 1, 2, 3 and 4
        for all beyond: `loss_distance_D`, `accuracy_distance_D`, `neighbour_distance_D` (copying:
        accuracy, or error) and `ratio_distance_D`, the fraction that is so far off.
    """
    num = {kind: sums[f"num_{kind}"] for kind in _KINDS}
    num_predicted = sum(num.values(), torch.zeros(()))
    present = [kind for kind in _KINDS if num[kind] > 0]
    has_classes = "histogram" in sums
    figures = {"loss": sums["loss"] / num_predicted}
    if has_classes:
        figures["accuracy"] = sums["right"] / num_predicted
        figures |= {f"accuracy_{kind}": sums[f"right_{kind}"] / num[kind] for kind in present}
    figures |= {f"loss_{kind}": sums[f"loss_{kind}"] / num[kind] for kind in present}
    figures |= _baselines(sums, num_predicted)
    figures["corrupted_ratio"] = sums["num_corrupted"] / sums["num_patches"]
    figures |= {f"{kind}_ratio": num[kind] / num_predicted for kind in num}
    if "num_by_distance" in sums and num["mask"] > 0:
        figures |= _distances(sums, num["mask"])
    return {name: float(value) for name, value in figures.items()}


def _baselines(sums: Sums, num_predicted: Tensor) -> Sums:
    """Say what can be had without learning from images."""
    neighbour = sums["neighbour"] / num_predicted
    if "histogram" not in sums:
        mean = sums["values"] / num_predicted
        variance = sums["squares"] / num_predicted - mean.square()
        return {"loss_neighbour": neighbour, "loss_mean": variance.clamp(min=0).mean()}
    frequency = sums["histogram"] / sums["histogram"].sum()
    return {
        "accuracy_majority": frequency.max(),
        "accuracy_neighbour": neighbour,
        "class_entropy": -torch.special.xlogy(frequency, frequency).sum(),
    }


def _distances(sums: Sums, num_masked: Tensor) -> Sums:
    figures: Sums = {}
    num = sums["num_by_distance"]
    names = {"loss": "loss", "neighbour": "neighbour", "right": "accuracy"}
    for place in range(NUM_DISTANCES):
        figures[f"ratio_distance_{place + 1}"] = num[place] / num_masked
        for key, name in names.items():
            if num[place] > 0 and f"{key}_by_distance" in sums:
                value = sums[f"{key}_by_distance"][place] / num[place]
                figures[f"{name}_distance_{place + 1}"] = value
    return figures
