"""The rules: the largest encoder that sees enough in the hours, and how long its run is."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from data.settings import UserError, require
from scripts._recommend.facts import Timing
from scripts._recommend.plan import Plan
from scripts._recommend.sizes import Size

MOST_PASSES = 1_600  # of MAE, the most that it reports
PATCHES_A_PARAMETER = 16  # seen at least: 4 passes of configs/pretrain/cifar10.yaml
_LEAST_STEPS = 50
_MARGIN = 0.97  # of the time that is planned for steps
_MEASURES = 10  # validations and probes in a run
_MEASURED_SHARE = 0.1  # of the time, at most, for them


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Attributes:
        steps: Of the run.
        passes: Over the images.
        measures: Validations and probes in it.
        seconds: How long it will take.
        is_by_hours: Whether the hours decided it, not the number of images.
    """

    steps: int
    passes: float
    measures: int
    seconds: float
    is_by_hours: bool

    @property
    def every(self) -> int:
        """The steps between two measures; 0: only at the end."""
        return 0 if self.measures == 1 else max(1, -(-self.steps // self.measures))


@dataclass(frozen=True)
class Recipe:
    """What is recommended.

    Attributes:
        plan: What it follows from.
        size: The encoder's.
        timing: Its.
        hours: That the run may take.
        length: Of the run.
    """

    plan: Plan
    size: Size
    timing: Timing
    hours: float
    length: Length


def length_of(plan: Plan, timing: Timing, hours: float) -> Length:
    """Return the length of a run that fills the hours, but sees no image too often."""
    available = _MARGIN * max(0.0, 3600 * hours - timing.start_seconds)
    once = _measure_seconds(plan, timing)
    allowed = _MEASURED_SHARE * available
    measures = _MEASURES if once == 0 else max(1, min(_MEASURES, int(allowed / once)))
    in_time = int(max(0.0, available - measures * once) / timing.step_seconds)
    most = MOST_PASSES * plan.pass_steps
    steps = min(in_time, most)
    seconds = timing.start_seconds + steps * timing.step_seconds + measures * once
    return Length(steps, steps / plan.pass_steps, measures, seconds, in_time <= most)


def fit(plan: Plan, size: Size, timing: Timing, hours: float) -> Recipe:
    """Fit the run of an encoder that was timed into the hours.

    Raises:
        UserError: The hours are too short; it says how many suffice.
    """
    length = length_of(plan, timing, hours)
    least = _LEAST_STEPS * timing.step_seconds + _measure_seconds(plan, timing)
    enough = math.ceil((least / _MARGIN + timing.start_seconds) / 36) / 100
    require(
        length.steps >= _LEAST_STEPS,
        f"--hours={hours:g} is too short: a run takes {timing.start_seconds:.0f} s to start and "
        f"{timing.step_seconds:.2g} s a step here, and {_LEAST_STEPS} steps are the least; "
        f"try --hours {enough:.2f}",
    )
    return Recipe(plan, size, timing, hours, length)


def _measure_seconds(plan: Plan, timing: Timing) -> float:
    """Return the seconds of a validation and a probe.

    A pass without gradients over a validation image takes about a third of a training image's time;
    the probe's, with all patches, about as long as that.
    """
    num_probed = 0 if plan.labels is None else plan.labels.num_train + plan.labels.num_val
    return (plan.num_val / 3 + num_probed) * timing.step_seconds / plan.batch


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

    Raises:
        UserError: Not even the smallest fits.
    """
    measured: dict[str, Timing | None] = {}
    best: int | None = None
    place, top = _first(plan), _num_allowed(plan)
    while 0 <= place < top and plan.sizes[place].name not in measured:
        size = plan.sizes[place]
        timing = measured[size.name] = measure(size)
        if timing is not None and (place == 0 or _is_enough(plan, size, timing, hours)):
            best = place
            place = min(max(place + 1, _guess(plan, size, timing, hours)), top - 1)
        else:
            top, place = place, place - 1
    if best is None:
        raise UserError(
            f"not even {plan.sizes[0].told} fits into the free memory; end other programs, or take "
            "a machine with more"
        )
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
        if _is_enough(plan, other, slower, hours):
            place = number
    return place


def _is_enough(plan: Plan, size: Size, timing: Timing, hours: float) -> bool:
    """Tell whether an encoder sees enough patches for its parameters in the hours."""
    views = length_of(plan, timing, hours).steps * plan.batch
    return views * plan.grid.num_patches >= PATCHES_A_PARAMETER * size.parameters
