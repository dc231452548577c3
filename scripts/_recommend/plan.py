"""What is decided before anything is timed: patches, images a step, loader processes."""

import math
from dataclasses import dataclass

from data.settings import require
from scripts._recommend.facts import Images, Labelled, Machine
from scripts._recommend.sizes import SIZES, Grid, Size, choose_grid

NUM_WORDS = 512
CPU_BATCH, _LEAST_BATCH = 128, 8
_GPU_BATCHES = ((1_000_000, 4096), (100_000, 1024), (10_000, 512), (1_000, 256), (0, 64))
_LEAST_PATCHES = 8
_LEAST_TO_SPLIT = 1_000  # images of which some are set aside for validation
_MOST_VAL, _MOST_VAL_RATIO = 1_000, 0.05


@dataclass(frozen=True)
class Plan:
    """What is decided before anything is timed.

    Attributes:
        images: What is known of them.
        machine: What there is.
        labels: What the run is probed by.
        grid: How an image is cut.
        batch: Images a step, over all processes.
        workers: Loader processes a rank.
        num_words: The objective's.
        sizes: The encoders to choose from, the smallest first.
    """

    images: Images
    machine: Machine
    labels: Labelled | None
    grid: Grid
    batch: int
    workers: int
    num_words: int
    sizes: tuple[Size, ...]

    @property
    def share(self) -> int:
        """Images a step, of one process."""
        return self.batch // self.machine.num_ranks

    @property
    def val_ratio(self) -> float:
        """The share of the images that is set aside for validation, where none are named."""
        number = self.images.num_images
        if self.images.num_val or number < _LEAST_TO_SPLIT:
            return 0.0
        return float(f"{min(_MOST_VAL_RATIO, _MOST_VAL / number):.1g}")

    @property
    def num_val(self) -> int:
        """Validation images."""
        return self.images.num_val or round(self.val_ratio * self.images.num_images)

    @property
    def pass_steps(self) -> int:
        """Steps of a pass over the images."""
        return math.ceil((1 - self.val_ratio) * self.images.num_images / self.batch)


def make_plan(
    images: Images, machine: Machine, labels: Labelled | None = None, start: Size | None = None
) -> Plan:
    """Decide what needs no measurement.

    Args:
        images: What is known of them.
        machine: What there is.
        labels: What the run is probed by.
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
    num_words = max(2, min(NUM_WORDS, int(usable * grid.num_patches) // 4))
    sizes = SIZES if start is None else (start,)
    batch, workers = _batch(images, machine), _workers(machine)
    return Plan(images, machine, labels, grid, batch, workers, num_words, sizes)


def _batch(images: Images, machine: Machine) -> int:
    """Choose the images of a step: a quarter of a small set at most, a power of two a rank."""
    usual = CPU_BATCH
    if machine.device == "cuda":
        usual = next(size for least, size in _GPU_BATCHES if images.num_images >= least)
    largest = max(min(_LEAST_BATCH, images.num_images), images.num_images // 4)
    batch = min(usual, 1 << (largest.bit_length() - 1))
    return -(-batch // machine.num_ranks) * machine.num_ranks


def _workers(machine: Machine) -> int:
    """Choose the loader processes of a rank: on a CPU they take the cores that train."""
    if machine.device == "cpu":
        return max(1, machine.cores // 8)
    return max(1, min(16, machine.cores // machine.num_ranks - 1))
