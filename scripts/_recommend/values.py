"""The values of a recipe, each with the reason and with where that comes from."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from data.text import count
from scripts._recommend.choosing import MOST_PASSES, PATCHES_A_PARAMETER, Length, Recipe
from scripts._recommend.facts import Machine, Timing
from scripts._recommend.plan import CPU_BATCH, NUM_WORDS, Plan
from scripts._recommend.sizes import SIZES, Size

RUN = "runs/mine"
_RATE, _RATE_WIDTH, _RATE_BATCH = 2e-3, 128, 128  # configs/pretrain/cifar10.yaml
_CONTINUED = 0.25  # of the rate from scratch
_SMALL = 64  # pixels: smaller images are cut less

_DATA, _MACHINE, _GUESS = "[your images]", "[your machine]", "[extrapolated]"
_CIFAR = "[measured here: configs/pretrain/cifar10.yaml]"
_MAE = "[cited: arXiv:2111.06377]"
_NAMED = "[cited: arXiv:2401.14391]"


class Choice(NamedTuple):
    """A value of the recipe.

    Attributes:
        key: Dotted.
        value: As YAML has it.
        why: The reason, and in brackets where it comes from; empty where the key needs none.
    """

    key: str
    value: Any
    why: str = ""


def trial(plan: Plan, size: Size) -> list[Choice]:
    """Write down what is timed for an encoder: all but the length."""
    length = Length(100_000, 1.0, 1, 0.0, is_by_hours=True)
    return choices(Recipe(plan, size, Timing(1.0, 0.0, 0.0, 0, 0), 1.0, length))


def choices(recipe: Recipe) -> list[Choice]:
    """Write down all that a recipe says, in order: values of one group beside each other."""
    parts = (_run, _data, _encoder, _objective, _optim, _probe)
    return [choice for part in parts for choice in part(recipe)]


# ---------------------------------------------------------------- run, data


def _run(recipe: Recipe) -> Iterator[Choice]:
    plan, length, micro = recipe.plan, recipe.length, recipe.timing.micro_batch
    fits = "all images of a step at once: they fit into memory"
    if micro < plan.share:
        fits = f"the {plan.share} images of a step do not fit at once; the result is the same"
    yield Choice("run.dir", RUN, "the same command again goes on there")
    yield Choice("run.precision", *_precision(plan.machine))
    yield Choice("run.micro_batch_size", micro, f"{fits} {_MACHINE}")
    yield Choice("run.log_every", max(1, min(50, length.steps // 20)))
    yield Choice("run.checkpoint_every", max(50, min(1000, length.steps // 5)))
    if plan.num_val:
        yield Choice("run.eval_every", length.every, _often(length))


def _precision(machine: Machine) -> tuple[str, str]:
    """Return the precision, and why."""
    if machine.has_bf16:
        return "bf16", f"{machine.name} has instructions for it {_MACHINE}"
    if machine.device == "cuda":
        return "fp16", f"{machine.name} has no bf16 {_MACHINE}"
    return "fp32", f"{machine.name} has no instructions for bf16 {_MACHINE}"


def _often(length: Length) -> str:
    times = length.measures
    return "measured at the end" if times == 1 else f"measured {times} times in the run"


def _data(recipe: Recipe) -> Iterator[Choice]:
    plan = recipe.plan
    images, grid = plan.images, plan.grid
    height, width = grid.size
    yield Choice("data.shards", images.spec)
    if images.num_val:
        yield Choice("data.val_shards", images.spec, f"the validation images there {_DATA}")
    elif plan.val_ratio:
        why = f"about {count(plan.num_val, 'image')} for val/loss, which is not learnt from"
        yield Choice("data.val_ratio", plan.val_ratio, f"{why} {_GUESS}")
    why = f"the files have {images.width} x {images.height} pixels (median)"
    why += "; made smaller, for speed" if grid.is_smaller else ""
    why += f"; {grid.rows} x {grid.columns} = {grid.num_patches} patches an image {_DATA}"
    yield Choice("data.image_size", height if height == width else [height, width], why)
    yield from _channels(plan)
    if max(height, width) < _SMALL:
        yield Choice("data.crop_area", [0.4, 1.0], f"small images are cut less {_CIFAR}")
    else:
        yield Choice("data.crop_area", [0.2, 1.0], f"as MAE {_MAE}")
    wait = f"training waited for images in {recipe.timing.wait_ratio:.0%} of the time {_MACHINE}"
    yield Choice("data.workers", plan.workers, wait)


def _channels(plan: Plan) -> Iterator[Choice]:
    images = plan.images
    why = ""
    if images.is_grey:
        why = f"all images looked at are grey; 3 if they are to be mixed with colour {_DATA}"
    elif images.channels != 3:
        why = f"the files hold {images.channels} channels {_DATA}"
    yield Choice("data.channels", images.channels, why)
    if not plan.sizes[0].has_weights:  # else they are those that the weights were trained with
        yield Choice("data.mean", [*images.mean], f"of the images looked at, in 0..1 {_DATA}")
        yield Choice("data.std", [*images.std])


# ---------------------------------------------------------------- encoder, objective


def _encoder(recipe: Recipe) -> Iterator[Choice]:
    size = recipe.size
    if size.has_weights:
        yield Choice("encoder.init", size.timm, "continued from these weights")
    else:
        yield from _fresh_encoder(recipe.plan, size)
    yield Choice(
        "encoder.sees_masked",
        False,
        "masked patches do not enter the encoder: more learnt, in half of the time "
        "[measured here: docs/log/2026-11-22-mask-free-encoding.md; cited: arXiv:2111.06377]",
    )


def _fresh_encoder(plan: Plan, size: Size) -> Iterator[Choice]:
    why = "the smallest: the next size needs a longer run, or more images"
    if size is not SIZES[0]:
        why = f"the largest that sees {PATCHES_A_PARAMETER} patches a parameter in the run, and "
        why += f"for which there are {size.min_images:,} images"
    source = "[your machine; the rule is extrapolated]"
    yield Choice("encoder.name", size.timm, f"{size.told}: {why} {source}")
    yield Choice("encoder.patch_size", plan.grid.patch)
    yield Choice("encoder.embed_dim", size.width)
    yield Choice("encoder.depth", size.depth)
    yield Choice("encoder.num_heads", size.heads)
    yield Choice(
        "encoder.position",
        "sincos_2d",
        "fixed sines with Xavier initialisation were worth most: 3.8 points "
        "[measured here: docs/log/2026-11-22-what-makes-it-learn-more.md]",
    )
    yield Choice("encoder.args", {"weight_init": "jax"})


def _objective(recipe: Recipe) -> Iterator[Choice]:
    num_words = recipe.plan.num_words
    why = "which of so many typical patches it is: learnt most in equal time, ahead of MAE"
    if num_words < NUM_WORDS:
        why += f"; fewer than the usual {NUM_WORDS}, as there are few patches"
    half = "half of the hidden patches are predicted, for speed"
    yield Choice("corruption.ratio", 0.75, f"three quarters are hidden {_MAE}")
    yield Choice("corruption.mask_ratio", 1.0)
    yield Choice("corruption.random_ratio", 0.0)
    yield Choice("corruption.predicted_ratio", 0.5, f"{half} {_NAMED}")
    yield Choice("target.kind", "words", f"{why} [measured here: docs/results/speed.md]")
    yield Choice("target.num_words", num_words)
    yield Choice("decoder.attention", "cross")


# ---------------------------------------------------------------- optim, probe


def _optim(recipe: Recipe) -> Iterator[Choice]:
    plan, size, length = recipe.plan, recipe.size, recipe.length
    passes = f"{count(float(length.passes), 'pass')} over the images"
    why = f"{passes}, as many as fit into {count(recipe.hours, 'hour')} {_MACHINE}"
    if not length.is_by_hours:
        why = f"{MOST_PASSES:,} passes over the images, the most that MAE reports {_MAE}"
    yield Choice("optim.steps", length.steps, why)
    yield Choice("optim.batch_size", plan.batch, _batch_reason(plan))
    yield Choice("optim.lr", rate(size, plan.batch), _rate_reason(plan, size))
    yield Choice("optim.betas", [0.9, 0.95], f"as MAE {_MAE}")
    yield Choice("optim.weight_decay", 0.05)
    yield Choice("optim.warmup_steps", max(1, length.steps // 20), "a twentieth of the steps")


def _batch_reason(plan: Plan) -> str:
    if plan.machine.device == "cuda":
        return f"4,096 of millions of images, as MAE; fewer of fewer images {_GUESS}"
    if plan.batch < CPU_BATCH:
        return f"a quarter of the images at most, so that a pass is some steps {_GUESS}"
    return f"small batches take more steps in the same time {_CIFAR}"


def rate(size: Size, batch: int) -> float:
    """Return the peak learning rate of an encoder and a batch, in two digits."""
    value = _RATE * _RATE_WIDTH / size.width * math.sqrt(batch / _RATE_BATCH)
    value *= _CONTINUED if size.has_weights else 1
    return float(f"{value:.1e}")


def _rate_reason(plan: Plan, size: Size) -> str:
    if not size.has_weights and size.width == _RATE_WIDTH and plan.batch == _RATE_BATCH:
        return f"as there, at this width and batch {_CIFAR}"
    rule = f"{_RATE:g} at width {_RATE_WIDTH} and batch {_RATE_BATCH}, which was measured; from "
    rule += "there with 1 / width (arXiv:2203.03466) and the root of the batch"
    if size.has_weights:
        rule += "; a quarter of that, as the weights know something already"
    return f"{rule} {_GUESS}"


def _probe(recipe: Recipe) -> Iterator[Choice]:
    labels, length = recipe.plan.labels, recipe.length
    if labels is None:
        return
    why = f"{count(labels.num_classes, 'class')}: is it learning? few-shot and k-NN, frozen"
    yield Choice("probe.train", labels.train, f"{why} [your labels]")
    yield Choice("probe.val", labels.val)
    yield Choice("probe.every", length.every, _often(length))
    yield Choice("probe.shots", [shot for shot in (1, 5, 10) if shot <= labels.smallest])
    yield Choice("probe.neighbours", min(20, labels.num_train))
