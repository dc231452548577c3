"""The rules: facts and measurements -> a recipe, each of its values with the reason and the source.

Nothing is read or timed here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from data.settings import require
from data.text import count
from scripts._recommend.facts import Images, Labelled, Machine, Timing
from scripts._recommend.sizes import SIZES, Grid, Size, choose_grid

RUN = "runs/recommended"
MOST_EPOCHS = 1_600  # of MAE, the most that it reports
PATCHES_A_PARAMETER = 16  # seen at least: 4 epochs of configs/pretrain/cifar10.yaml
_RATE, _RATE_WIDTH, _RATE_BATCH = 2e-3, 128, 128  # configs/pretrain/cifar10.yaml
_CONTINUED = 0.25  # of the rate from scratch
_CPU_BATCH, _LEAST_BATCH = 128, 8
_GPU_BATCHES = ((1_000_000, 4096), (100_000, 1024), (10_000, 512), (1_000, 256), (0, 64))
_WORDS = 512
_LEAST_PATCHES, _LEAST_STEPS = 8, 50
_START_SECONDS = 15.0  # importing, opening, the last checkpoint
_MARGIN = 0.97  # of the time that is planned for steps
_MEASURES = 10  # validations and checkpoints in a run
_MEASURED_SHARE = 0.1  # of the time, at most, for validations and probes
_BLOCKS = _CROPS = 64  # pixels: smaller images are cut less

MEASURED, CITED, GUESS = "measured here", "cited", "extrapolated"
DATA, MACHINE = "your images", "your machine"


@dataclass(frozen=True)
class Choice:
    """A value of the recipe.

    Attributes:
        key: Dotted.
        value: As YAML has it.
        why: The reason, in a sentence; empty where the key needs none.
        source: Where the reason comes from, one of the words above; with what it refers to.
    """

    key: str
    value: Any
    why: str = ""
    source: str = ""


@dataclass(frozen=True)
class Plan:
    """What is decided before anything is timed.

    Attributes:
        images: What is known of them.
        machine: What there is.
        grid: How an image is cut.
        batch: Images a step, over all processes.
        workers: Loader processes a rank.
        num_words: The objective's.
        sizes: The encoders to choose from, the smallest first.
    """

    images: Images
    machine: Machine
    grid: Grid
    batch: int
    workers: int
    num_words: int
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Recipe:
    """What is recommended.

    Attributes:
        plan: What it follows from.
        size: The encoder's.
        choices: All that the file says, in order.
        steps: Of the run.
        epochs: Of the run.
        seconds: How long it will take.
        peak_bytes: The most memory of the training process, or of a GPU.
        images_a_second: Over all processes.
        limit: hours or epochs: what decided the length.
        wait_ratio: The share of a step that training waits for images.
    """

    plan: Plan
    size: Size
    choices: list[Choice]
    steps: int
    epochs: float
    seconds: float
    peak_bytes: int
    images_a_second: float
    limit: str
    wait_ratio: float


def plan(images: Images, machine: Machine, start: Size | None = None) -> Plan:
    """Decide what needs no measurement.

    Args:
        images: What is known of them.
        machine: What there is.
        start: The encoder whose weights are continued from; None begins at random.

    Raises:
        UserError: The images are too small.
    """
    grid = choose_grid(images, machine, start and start.patch)
    require(
        grid.num_patches >= _LEAST_PATCHES,
        f"the images of {images.spec} are {images.width} x {images.height} pixels, too small to be "
        "cut into patches and masked; give images of 8 x 8 pixels or more",
    )
    usable = max(1.0, images.num_images * (1 - images.bad_ratio))
    num_words = max(2, min(_WORDS, int(usable * grid.num_patches) // 4))
    sizes = SIZES if start is None else (start,)
    batch, workers = _batch(images, machine), _workers(machine)
    return Plan(images, machine, grid, batch, workers, num_words, sizes)


def _batch(images: Images, machine: Machine) -> int:
    """Choose the images of a step: a quarter of a small set at most, a power of two a rank."""
    usual = _CPU_BATCH
    if machine.device == "cuda":
        usual = next(size for least, size in _GPU_BATCHES if images.num_images >= least)
    largest = max(_LEAST_BATCH, images.num_images // 4)
    batch = min(usual, 1 << (largest.bit_length() - 1))
    ranks = machine.num_ranks
    return -(-batch // ranks) * ranks


def _workers(machine: Machine) -> int:
    """Choose the loader processes of a rank: on a CPU they take the cores that train."""
    if machine.device == "cpu":
        return max(1, machine.cores // 8)
    return max(1, min(16, machine.cores // machine.num_ranks - 1))


# ---------------------------------------------------------------- the size


def choose_size(
    plan: Plan, hours: float, measure: Callable[[Size], Timing | None]
) -> tuple[Size, dict[str, Timing | None]]:
    """Choose the largest encoder that sees enough in the hours, timing two to four of them.

    Args:
        plan: What was decided before.
        hours: For the run.
        measure: Times an encoder; None where it does not fit into memory.

    Returns:
        The size; and what was measured, by the sizes' names.
    """
    measured: dict[str, Timing | None] = {}
    best: int | None = None
    place, top = _first(plan), _num_allowed(plan)
    while 0 <= place < top and plan.sizes[place].name not in measured:
        size = plan.sizes[place]
        timing = measured[size.name] = measure(size)
        if timing is not None and (place == 0 or is_enough(plan, size, timing, hours)):
            best = place
            place = min(max(place + 1, _guess(plan, size, timing, hours)), top - 1)
        else:
            top, place = place, place - 1
    require(
        best is not None,
        f"not even {plan.sizes[0].told} fits into the "
        "free memory; end other programs, or take a machine with more",
    )
    assert best is not None
    return plan.sizes[best], measured


def _first(plan: Plan) -> int:
    """Return the place of the first size to time: the smallest on a CPU, ViT-S on a GPU."""
    wanted = 0 if plan.machine.device != "cuda" else 3
    return min(wanted, _num_allowed(plan) - 1)


def _num_allowed(plan: Plan) -> int:
    """Return how many sizes there are images enough for."""
    return sum(plan.images.num_images >= size.min_images for size in plan.sizes)


def _guess(plan: Plan, size: Size, timing: Timing, hours: float) -> int:
    """Return the place of the largest size that should see enough, by its number of operations."""
    place = 0
    for number, other in enumerate(plan.sizes):
        factor = other.parameters / size.parameters
        slower = replace(timing, step_seconds=timing.step_seconds * factor)
        if is_enough(plan, other, slower, hours):
            place = number
    return place


def is_enough(plan: Plan, size: Size, timing: Timing, hours: float) -> bool:
    """Tell whether an encoder sees enough patches for its parameters in the hours."""
    views = num_steps(plan, timing, hours)[0] * plan.batch
    return views * plan.grid.num_patches >= PATCHES_A_PARAMETER * size.parameters


def num_steps(plan: Plan, timing: Timing, hours: float) -> tuple[int, str]:
    """Return how many steps are taken, and whether the hours or the epochs decided it."""
    in_time = int(_MARGIN * _step_time(timing, hours) / timing.step_seconds)
    steps_an_epoch = -(-plan.images.num_images // plan.batch)
    in_epochs = MOST_EPOCHS * steps_an_epoch
    return (in_time, "hours") if in_time <= in_epochs else (in_epochs, "epochs")


def _step_time(timing: Timing, hours: float) -> float:
    return max(0.0, 3600 * hours - _START_SECONDS - timing.start_seconds)


# ---------------------------------------------------------------- the recipe


def choose(
    plan: Plan,
    size: Size,
    timing: Timing,
    hours: float,
    labels: Labelled | None = None,
) -> Recipe:
    """Write down a recipe for an encoder that was timed.

    Args:
        plan: What was decided before.
        size: The encoder's.
        timing: Its.
        hours: For the run.
        labels: What the run is probed by.

    Raises:
        UserError: The hours are too short.
    """
    steps, limit = num_steps(plan, timing, hours)
    least = (_LEAST_STEPS * timing.step_seconds / _MARGIN + _START_SECONDS) / 3600
    least += timing.start_seconds / 3600
    require(
        steps >= _LEAST_STEPS,
        f"--hours={hours:g} is too short: the smallest encoder takes {timing.step_seconds:.2g} s a "
        f"step here, and {_LEAST_STEPS} steps are the least; try --hours {_rounded_up(least)}",
    )
    images_a_second = plan.batch / timing.step_seconds
    measures, extra = _measures(plan, labels, steps, timing)
    seconds = _START_SECONDS + timing.start_seconds + steps * timing.step_seconds + extra
    epochs = steps / -(-plan.images.num_images // plan.batch)
    choices = [
        *_run_choices(plan, steps, timing.micro_batch, measures),
        *_data_choices(plan, timing),
        *_encoder_choices(plan, size),
        *_objective_choices(plan),
        *_optim_choices(plan, size, steps, epochs, limit, hours),
        *_probe_choices(labels, steps, measures),
    ]
    return Recipe(
        plan,
        size,
        choices,
        steps,
        epochs,
        seconds,
        timing.peak_bytes,
        images_a_second,
        limit,
        timing.wait_ratio,
    )


def trial(plan: Plan, size: Size) -> list[Choice]:
    """Write down what is timed for an encoder: all but the length."""
    unknown = Timing(1.0, 0.0, 0.0, 0, 0)
    return [
        *_run_choices(plan, 100_000, 0, 1),
        *_data_choices(plan, unknown),
        *_encoder_choices(plan, size),
        *_objective_choices(plan),
        *_optim_choices(plan, size, 100_000, 1.0, "hours", 1.0),
    ]


def _rounded_up(hours: float) -> str:
    return f"{math.ceil(100 * hours) / 100:.2f}"


def _measures(plan: Plan, labels: Labelled | None, steps: int, timing: Timing) -> tuple[int, float]:
    """Return how often it is measured in between, and the seconds that takes in all.

    A pass without gradients over a validation image takes about a third of a training image's time;
    the probe's, with all patches, about as long as that.
    """
    a_second = plan.batch / timing.step_seconds
    once = plan.images.num_val / (3 * a_second)
    if labels is not None and labels.train is not None:
        once += (labels.num_train + labels.num_val) / a_second
    allowed = _MEASURED_SHARE * steps * timing.step_seconds
    times = _MEASURES if once == 0 else max(1, min(_MEASURES, int(allowed / once)))
    return times, times * once


def _run_choices(plan: Plan, steps: int, micro_batch: int, measures: int) -> list[Choice]:
    own = plan.batch // plan.machine.num_ranks
    every = _every(steps, measures)
    why = "all of a step's images at once: they fit"
    if micro_batch < own:
        why = f"the {own} images of a step do not fit at once; the result is the same"
    return [
        Choice("run.dir", RUN, "the same command again resumes there"),
        Choice("run.precision", *_precision(plan.machine), MACHINE),
        Choice("run.micro_batch_size", micro_batch, why, MACHINE),
        Choice("run.log_every", max(1, min(50, steps // 20))),
        Choice("run.checkpoint_every", max(50, min(1000, steps // 5))),
        *([Choice("run.eval_every", every, _often(measures))] if plan.images.num_val else []),
    ]


def _precision(machine: Machine) -> tuple[str, str]:
    """Return the precision, and why."""
    if machine.has_bf16:
        return "bf16", f"{machine.name} has instructions for it"
    if machine.device == "cuda":
        return "fp16", f"{machine.name} has no bf16"
    return "fp32", f"{machine.name} has no instructions for bf16"


def _every(steps: int, measures: int) -> int:
    """Return the steps between two measurements; 0: only at the end."""
    return 0 if measures == 1 else max(1, -(-steps // measures))


def _often(measures: int) -> str:
    return "measured at the end" if measures == 1 else f"{measures} times in the run"


def _data_choices(plan: Plan, timing: Timing) -> list[Choice]:
    images, grid = plan.images, plan.grid
    height, width = grid.size
    is_small = max(height, width) < _CROPS
    sides = f"the files have {images.width} x {images.height} pixels (median)"
    made = f"{sides}; made smaller, for speed" if grid.is_smaller else sides
    num = f"{grid.rows} x {grid.columns} = {grid.num_patches} patches an image"
    wait = f"training waited for images in {timing.wait_ratio:.0%} of the time"
    choices = [Choice("data.shards", images.spec)]
    if images.num_val:
        choices.append(Choice("data.val_shards", images.spec, "the validation split there", DATA))
    area = [0.4, 1.0] if is_small else [0.2, 1.0]
    crop = Choice("data.crop_area", area, "small images are cut less", f"{MEASURED}: cifar10.yaml")
    if not is_small:
        crop = Choice("data.crop_area", area, "as MAE", f"{CITED}: arXiv:2111.06377")
    return [
        *choices,
        Choice(
            "data.image_size",
            height if height == width else [height, width],
            f"{made}; {num}",
            DATA,
        ),
        *_channel_choices(images, has_own=plan.sizes[0].has_weights),
        crop,
        Choice("data.workers", plan.workers, wait, MACHINE),
    ]


def _channel_choices(images: Images, *, has_own: bool) -> list[Choice]:
    why = ""
    if images.is_grey:
        why = "all images looked at are grey; 3 if they are to be mixed with colour"
    elif images.channels != 3:
        why = f"the files hold {images.channels} channels"
    channels = Choice("data.channels", images.channels, why, DATA if why else "")
    if has_own:  # mean and deviation are those that the weights were trained with
        return [channels]
    return [
        channels,
        Choice("data.mean", list(images.mean), "of the images looked at, in 0..1", DATA),
        Choice("data.std", list(images.std)),
    ]


def _encoder_choices(plan: Plan, size: Size) -> list[Choice]:
    masked = Choice(
        "encoder.sees_masked",
        False,
        "masked patches do not enter the encoder: more learnt, in half of the time",
        f"{MEASURED}: docs/log/2026-11-22-mask-free-encoding.md; {CITED}: arXiv:2111.06377",
    )
    if size.has_weights:
        return [Choice("encoder.init", size.timm, "continued from these weights"), masked]
    patches = f"the largest timed that sees {PATCHES_A_PARAMETER} patches a parameter or more"
    small = "" if size is SIZES[0] else f"; {size.min_images:,} images or more"
    why = f"{size.told}: {patches}{small}"
    if size is SIZES[0]:
        why = f"{size.told}: the next size would see "
        why += f"fewer than {PATCHES_A_PARAMETER} patches a parameter, or needs more images"
    return [
        Choice("encoder.name", size.timm, why, f"{MACHINE}; the rule is {GUESS}"),
        Choice("encoder.patch_size", plan.grid.patch),
        Choice("encoder.embed_dim", size.width),
        Choice("encoder.depth", size.depth),
        Choice("encoder.num_heads", size.heads),
        Choice(
            "encoder.position",
            "sincos_2d",
            "fixed sines with Xavier initialisation were worth most: 3.8 points",
            f"{MEASURED}: docs/log/2026-11-22-what-makes-it-learn-more.md",
        ),
        Choice("encoder.args", {"weight_init": "jax"}),
        masked,
    ]


def _objective_choices(plan: Plan) -> list[Choice]:
    why = "which of so many typical patches it is: learnt most in equal time, ahead of MAE"
    if plan.num_words < _WORDS:
        why += f"; fewer than the usual {_WORDS}, as there are few patches"
    return [
        Choice("corruption.ratio", 0.75, "three quarters are hidden", f"{CITED}: arXiv:2111.06377"),
        Choice("corruption.mask_ratio", 1.0),
        Choice("corruption.random_ratio", 0.0),
        Choice(
            "corruption.predicted_ratio",
            0.5,
            "half of the hidden patches are predicted, for speed",
            f"{CITED}: arXiv:2401.14391",
        ),
        Choice("target.kind", "words", why, f"{MEASURED}: docs/results/speed.md"),
        Choice("target.num_words", plan.num_words),
        Choice("decoder.attention", "cross"),
    ]


def _optim_choices(
    plan: Plan, size: Size, steps: int, epochs: float, limit: str, hours: float
) -> list[Choice]:
    length = f"{count(float(epochs), 'epoch', 'epochs')}: what {hours:g} hours allow"
    source = MACHINE
    if limit == "epochs":
        length = f"{MOST_EPOCHS:,} epochs, the longest that MAE reports; the hours allow more"
        source = f"{CITED}: arXiv:2111.06377"
    rule = (
        f"{_RATE:g} at width {_RATE_WIDTH} and batch {_RATE_BATCH}, which was measured; with "
        "1 / width (arXiv:2203.03466) and the root of the batch. At ViT-B and 4,096 it gives "
        "1.9e-3, and MAE has 2.4e-3"
    )
    if size.has_weights:
        rule = f"{rule}; a quarter of that, as the weights know something already"
    is_tried = not size.has_weights and size.width == _RATE_WIDTH and plan.batch == _RATE_BATCH
    return [
        Choice("optim.steps", steps, length, source),
        Choice("optim.batch_size", plan.batch, *_batch_reason(plan)),
        Choice(
            "optim.lr",
            rate(size, plan.batch),
            rule,
            f"{MEASURED}: configs/pretrain/cifar10.yaml" if is_tried else GUESS,
        ),
        Choice("optim.betas", [0.9, 0.95], "as MAE", f"{CITED}: arXiv:2111.06377"),
        Choice("optim.weight_decay", 0.05),
        Choice("optim.warmup_steps", max(1, steps // 20), "a twentieth of the steps"),
    ]


def _batch_reason(plan: Plan) -> tuple[str, str]:
    if plan.machine.device == "cuda":
        return "4,096 of millions of images, as MAE; fewer of fewer images", GUESS
    if plan.batch < _CPU_BATCH:
        return "a quarter of the images, so that an epoch is some steps", GUESS
    return "small batches take more steps in the same time", f"{MEASURED}: cifar10.yaml"


def rate(size: Size, batch: int) -> float:
    """Return the peak learning rate of an encoder and a batch, in two digits."""
    value = _RATE * _RATE_WIDTH / size.width * math.sqrt(batch / _RATE_BATCH)
    value *= _CONTINUED if size.has_weights else 1
    return float(f"{value:.1e}")


def _probe_choices(labels: Labelled | None, steps: int, measures: int) -> list[Choice]:
    if labels is None or labels.train is None:
        return []
    neighbours = min(20, labels.num_train)
    shots = [shot for shot in (1, 5, 10) if shot <= labels.smallest]
    why = f"{count(labels.num_classes, 'class')}: is it learning? few-shot and k-NN, frozen"
    every = _every(steps, measures)
    return [
        Choice("probe.train", labels.train, why, "your labels"),
        Choice("probe.val", labels.val),
        Choice("probe.every", every, _often(measures)),
        Choice("probe.shots", shots),
        Choice("probe.neighbours", neighbours),
    ]
