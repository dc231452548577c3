"""Sums over a batch of captioned images, and the figures made of them.

Every figure is a quotient of sums over images, so that batches and ranks can be added up.
"""

from torch import Tensor

from data.devices import sum_dtype
from pretrain.training.contract import Sums


def add_up_matching(logits: Tensor, losses: Tensor, is_match: Tensor, weight: Tensor) -> Sums:
    """Add up image-text matching.

    Args:
        logits: (B, 2), of another's caption and of the own one.
        losses: float32 (B,).
        is_match: int64 (B,).
        weight: (B,).
    """
    weight = weight.to(sum_dtype(weight.device))
    right = logits.argmax(1) == is_match
    return {
        "loss_matching": (losses.detach() * weight).sum(),
        "right_matching": (right * weight).sum(),
        "num_matches": (is_match * weight).sum(),
    }


def add_up_words(
    logits: Tensor, losses: Tensor, wanted: Tensor, is_predicted: Tensor, weight: Tensor
) -> Sums:
    """Add up masked words.

    Args:
        logits: (B, K, V).
        losses: float32 (B,), the mean over an image's predicted pieces.
        wanted: int64 (B, K), the pieces that are right.
        is_predicted: bool (B, K).
        weight: (B,).
    """
    weight = weight.to(sum_dtype(weight.device))
    by_piece = weight[:, None] * is_predicted
    histogram = by_piece.new_zeros(logits.shape[2])
    return {
        "loss_words": (losses.detach() * weight).sum(),
        "right_words": ((logits.argmax(2) == wanted) * by_piece).sum(),
        "num_predicted": by_piece.sum(),
        "histogram": histogram.index_add_(0, wanted.flatten(), by_piece.flatten()),
    }


def add_up_batch(batch: dict[str, Tensor], loss: Tensor) -> Sums:
    """Add up the loss, the weight, and how many pieces of captions are used and cut off."""
    weight = batch["weight"].to(sum_dtype(loss.device))
    num_pieces_used = (batch["words"] >= 0).sum(1)
    return {
        "loss": loss.detach().to(weight.dtype),
        "weight": weight.sum(),
        "num_pieces_used": (num_pieces_used * weight).sum(),
        "num_cut": (batch["num_cut"] * weight).sum(),
    }


def summarise(sums: Sums) -> dict[str, float]:
    """Turn sums into figures.

    Returns:
        `loss`, in nats; `cut_ratio`, the fraction of the captions' pieces that data.max_tokens cuts
        off. Of matching `loss_matching`, `accuracy_matching` and `accuracy_matching_majority`, that
        of answering always the same, about .5. Of masked words `loss_words`, `accuracy_words`,
        `accuracy_words_majority`, that of answering with the batch's most frequent piece, and in
        validation `accuracy_words_blank`, that of the same model with blank images. Of alignment
        `loss_alignment`: the transport's cost of pairs that match, less that of the others.
    """
    weight = sums["weight"]
    figures: Sums = {
        "loss": sums["loss"] / weight,
        "cut_ratio": sums["num_cut"] / (sums["num_cut"] + sums["num_pieces_used"]).clamp(min=1),
    }
    if "loss_matching" in sums:
        figures["loss_matching"] = sums["loss_matching"] / weight
        figures["accuracy_matching"] = sums["right_matching"] / weight
        ratio = sums["num_matches"] / weight
        figures["accuracy_matching_majority"] = ratio.maximum(1 - ratio)
    if "loss_alignment" in sums:
        figures["loss_alignment"] = sums["loss_alignment"] / weight
    if "loss_words" in sums:
        figures["loss_words"] = sums["loss_words"] / weight
        num_predicted = sums["num_predicted"].clamp(min=1)
        figures["accuracy_words"] = sums["right_words"] / num_predicted
        figures["accuracy_words_majority"] = sums["histogram"].max() / num_predicted
        if "right_words_blank" in sums:
            figures["accuracy_words_blank"] = sums["right_words_blank"] / num_predicted
    return {name: float(value) for name, value in figures.items()}
