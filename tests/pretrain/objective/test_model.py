"""The objective: its loss against a reference, and figures that add up over any cut."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.objective import corruption as corrupting
from pretrain.objective.classes import colour_classes
from pretrain.objective.config import CorruptionConfig, TargetConfig
from pretrain.objective.corruption import Corruption
from pretrain.objective.model import MaskedPatchModel
from pretrain.objective.nearest import NearestVisible, distance_ranks
from pretrain.training.contract import Output, Sums
from pretrain.training.device import add_sums

SIZE = (16, 24)
GRID = (4, 6)
NUM_PATCHES = 24


@pytest.fixture(scope="module")
def model() -> MaskedPatchModel:
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=4, embed_dim=32, depth=2, num_heads=2
    )
    model = MaskedPatchModel(make_encoder(config, SIZE), CorruptionConfig(), TargetConfig(bits=2))
    torch.nn.init.normal_(model.head.weight, std=1.0)  # answers of every class
    assert model.mask_token is not None
    torch.nn.init.normal_(model.mask_token)
    return model.eval()


def batch(num_images: int = 6, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (num_images, 3, 4, 6), generator=generator)
    images = colours.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return {
        "image": (images // 2 + images.float().mean().long() // 2).to(torch.uint8),
        "weight": torch.ones(num_images),
        "random_key": torch.arange(num_images) * 31 + seed,
    }


def part(whole: dict[str, Tensor], places: slice) -> dict[str, Tensor]:
    return {name: value[places] for name, value in whole.items()}


@torch.no_grad()
def run(model: MaskedPatchModel, tensors: dict[str, Tensor]) -> Output:
    return model(tensors)


# ---------------------------------------------------------------- the loss


@torch.no_grad()
def test_the_loss_is_that_of_a_plain_loop(model: MaskedPatchModel) -> None:
    tensors = batch()
    expected = 0.0
    for image, key in zip(tensors["image"], tensors["random_key"], strict=True):
        c = corrupting.draw(key[None], GRID, CorruptionConfig())
        assert c.counts == (10, 1, 1)  # of 12: 9.6, 1.2, 1.2
        encoder = model.encoder
        embeddings = encoder.patch_embed((image[None].float() / 255 - 0.5) / 0.5)[0]  # (N, D)
        corrupted = embeddings.clone()
        masked, random = c.patches[0, :10], c.patches[0, 10:11]
        corrupted[masked] = model.mask_token
        corrupted[random] = embeddings[c.source[0]]
        tokens = encoder._pos_embed(corrupted[None])
        tokens = encoder.norm(encoder.blocks(encoder.norm_pre(tokens)))[0, 1:]
        log_odds = model.head(tokens).log_softmax(-1)
        classes = colour_classes(image[None], (4, 4), 2)[0]
        expected -= float(np.mean([float(log_odds[p, classes[p]]) for p in c.patches[0]]))
    output = run(model, tensors)
    assert float(output.loss) == pytest.approx(expected, rel=1e-5)
    assert model.summarise(output.sums)["loss"] == pytest.approx(expected / 6, rel=1e-5)


def test_an_untrained_model_knows_nothing() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=4, embed_dim=32, depth=2, num_heads=2
    )
    model = MaskedPatchModel(make_encoder(config, SIZE), CorruptionConfig(), TargetConfig())
    output = run(model, batch(16))
    assert model.summarise(output.sums)["loss"] == pytest.approx(math.log(512), abs=0.05)


def test_weights_of_zero_change_nothing(model: MaskedPatchModel) -> None:
    tensors = batch()
    tensors["weight"][[1, 4]] = 0
    noisy = {name: value.clone() for name, value in tensors.items()}
    noisy["image"][[1, 4]] = 77
    noisy["random_key"][[1, 4]] = 99
    good = [0, 2, 3, 5]
    alone = {name: value[good] for name, value in tensors.items()}
    outputs = [run(model, t) for t in (tensors, noisy, alone)]
    for output in outputs[1:]:
        assert float(output.loss) == pytest.approx(float(outputs[0].loss), rel=1e-6)
        found, expected = (model.summarise(o.sums) for o in (output, outputs[0]))
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_batch_of_padding_costs_nothing_and_still_has_a_gradient(
    model: MaskedPatchModel,
) -> None:
    tensors = batch(2)
    tensors["weight"][:] = 0
    loss = model(tensors).loss
    loss.backward()
    assert loss.item() == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name  # DDP would wait for it
        assert not parameter.grad.any(), name
    model.zero_grad()


def test_sums_add_up_over_any_cut(model: MaskedPatchModel) -> None:
    tensors = batch()
    tensors["weight"][3] = 0
    whole = run(model, tensors)
    sums: Sums = {}
    loss = 0.0
    for places in (slice(0, 1), slice(1, 4), slice(4, 6)):
        output = run(model, part(tensors, places))
        loss += float(output.loss)
        sums = add_sums(sums, output.sums)
    assert loss == pytest.approx(float(whole.loss), rel=1e-6)
    assert model.summarise(sums) == pytest.approx(model.summarise(whole.sums), rel=1e-6)


# ---------------------------------------------------------------- the figures


def test_the_figures_against_a_count(model: MaskedPatchModel) -> None:
    tensors = batch(8)
    tensors["weight"][2] = 0
    with torch.no_grad():
        corruption = corrupting.draw(tensors["random_key"], GRID, model.corruption)
        predicted = model.predict(tensors["image"], corruption).argmax(-1).numpy()
    good = [0, 1, 3, 4, 5, 6, 7]
    classes = colour_classes(tensors["image"], (4, 4), 2)
    target = classes.gather(1, corruption.patches).numpy()[good]
    is_right = predicted[good] == target
    figures = model.summarise(run(model, tensors).sums)

    assert figures["accuracy"] == pytest.approx(is_right.mean())
    assert figures["accuracy_mask"] == pytest.approx(is_right[:, :10].mean())
    assert figures["accuracy_random"] == pytest.approx(is_right[:, 10].mean())
    assert figures["accuracy_kept"] == pytest.approx(is_right[:, 11].mean())
    frequency = np.bincount(target.flatten(), minlength=64) / target.size
    entropy = -sum(f * math.log(f) for f in frequency if f > 0)
    assert figures["class_entropy"] == pytest.approx(entropy)
    assert figures["accuracy_majority"] == pytest.approx(frequency.max())
    neighbour = [
        float(classes[i, _nearest(corruption, i, int(p))] == classes[i, p])
        for i in good
        for p in corruption.patches[i]
    ]
    assert figures["accuracy_neighbour"] == pytest.approx(np.mean(neighbour))
    assert 0 < figures["accuracy_neighbour"] < 1
    _check_distances(figures, corruption, good, is_right, np.reshape(neighbour, is_right.shape))


def _check_distances(
    figures: dict[str, float],
    corruption: Corruption,
    good: list[int],
    is_right: np.ndarray,
    is_copied_right: np.ndarray,
) -> None:
    """Recount masked patches by distance to the nearest visible patch."""
    near = [[_nearest(corruption, i, int(p)) for p in corruption.patches[i]] for i in good]
    num_masked = corruption.counts.mask
    patches, near = corruption.patches[good, :num_masked].numpy(), np.array(near)[:, :num_masked]
    is_right, is_copied_right = is_right[:, :num_masked], is_copied_right[:, :num_masked]
    steps = np.hypot(patches // 6 - near // 6, patches % 6 - near % 6)
    place = np.clip(np.round(steps), 1, 4)
    assert {1, 2} <= set(place.flatten())
    for distance in range(1, 5):
        here = place == distance
        assert figures[f"ratio_distance_{distance}"] == pytest.approx(here.mean())
        if here.any():
            assert figures[f"accuracy_distance_{distance}"] == pytest.approx(is_right[here].mean())
            copied = figures[f"neighbour_distance_{distance}"]
            assert copied == pytest.approx(is_copied_right[here].mean())


def test_distances_are_of_validation_alone(model: MaskedPatchModel) -> None:
    model.train()
    figures = model.summarise(run(model, batch()).sums)
    model.eval()
    assert not any("distance" in name for name in figures)


def test_the_measured_ratios_are_exact(model: MaskedPatchModel) -> None:
    figures = model.summarise(run(model, batch()).sums)
    assert figures["corrupted_ratio"] == 12 / 24
    assert (figures["mask_ratio"], figures["random_ratio"], figures["kept_ratio"]) == (
        pytest.approx(10 / 12),
        pytest.approx(1 / 12),
        pytest.approx(1 / 12),
    )


def test_a_kind_that_does_not_occur_has_no_accuracy() -> None:
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=4, embed_dim=32, depth=1, num_heads=2
    )
    only_masks = CorruptionConfig(mask_ratio=1, random_ratio=0)
    model = MaskedPatchModel(make_encoder(config, SIZE), only_masks, TargetConfig())
    figures = model.summarise(run(model, batch()).sums)
    assert {"accuracy_random", "accuracy_kept"}.isdisjoint(figures)
    assert all(math.isfinite(value) for value in figures.values())


def _nearest(corruption: Corruption, image: int, patch: int) -> int:
    """Find the nearest visible patch by trying all; the first of equally near ones."""
    row, column = divmod(patch, 6)
    visible = [p for p in range(NUM_PATCHES) if not corruption.is_corrupted[image, p]]
    return min(visible, key=lambda p: ((p // 6 - row) ** 2 + (p % 6 - column) ** 2, p))


def test_the_nearest_visible_patch_against_brute_force() -> None:
    corruption = corrupting.draw(torch.arange(40), GRID, CorruptionConfig(ratio=0.8))
    found = NearestVisible(GRID)(corruption)
    for image in range(40):
        patches = corruption.patches[image].tolist()
        expected = [_nearest(corruption, image, patch) for patch in patches]
        assert found.patches[image].tolist() == expected
        steps = [(p // 6 - q // 6, p % 6 - q % 6) for p, q in zip(patches, expected, strict=True)]
        assert found.distances[image].tolist() == pytest.approx([math.hypot(*s) for s in steps])


def test_distance_ranks_begin_with_the_patch_itself() -> None:
    ranks = distance_ranks(3, 5)
    assert torch.equal(ranks.diagonal(), torch.zeros(15, dtype=torch.int32))
    assert torch.equal(ranks.sort(dim=1).values, torch.arange(15).expand(15, 15).int())
    assert sorted(ranks[7].topk(5, largest=False).indices.tolist()) == [2, 6, 7, 8, 12]


def test_gradients_reach_every_part(model: MaskedPatchModel) -> None:
    model(batch()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    model.zero_grad()
