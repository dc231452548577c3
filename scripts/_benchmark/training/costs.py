"""The costs of a piece of work: time, floating-point operations, memory."""

from collections.abc import Callable

import torch

from pretrain.machine.held_memory import held_memory
from pretrain.machine.operations import count_flops_once
from pretrain.machine.speed import images_per_second, matrix_peak
from pretrain.training.launch import start
from scripts._benchmark.training.subject import Subject

Work = Callable[[], object]

_MAX_SECONDS = 2.0  # of each turn of the matrix product
_NUM_CALLS = 3  # the optimizer's moments are made at the end of the first
_MIB = 2**20


# ---------------------------------------------------------------- time


def warm_up(work: Work) -> None:
    """Work until all is as it stays: memory is allocated, code compiled, of some in the third call.

    transformers' MAE, compiled, is one of those.
    """
    for _ in range(3):
        work()
    _make_room()


def take_turn(work: Work, num_images: int, seconds: float) -> float:
    """Return images a second, and give a GPU's unused memory to the processes that come next."""
    speed = images_per_second(work, num_images, seconds)
    _make_room()
    return speed


def _make_room() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


# ---------------------------------------------------------------- operations


def count_flops(work: Work) -> int:
    """Count the floating-point operations of one call, a multiply-add as two.

    Matrix products, convolutions and attention, forward and backward, each once: a fused attention
    computes its scores again on the way back, which is no use to the model and is not counted.
    Compiled models run as they are written.
    """
    with torch.compiler.set_stance("force_eager"):
        return count_flops_once(work)


class MatrixPeak:
    """The matrix peak of a subject's device, in its precision and threads.

    Args:
        subject: What it is the limit of.
        seconds: Of a turn of each variant; the product's is no longer than 2.
    """

    def __init__(self, subject: Subject, seconds: float) -> None:
        self._device = start(subject.run_config()).device
        self._precision = subject.precision
        self._seconds = min(seconds, _MAX_SECONDS)

    def measure(self) -> float:
        """Return operations a second, in one turn."""
        return matrix_peak(self._device, self._precision, self._seconds)


# ---------------------------------------------------------------- memory


def peak_mib(make: Callable[[], Work]) -> float:
    """Return by how much the peak exceeds what was held before, in MiB.

    Of the resident memory of this process, its libraries' code left out, or of what is allocated on
    the CUDA device. To be called in a fresh process: a peak is never lowered.

    Args:
        make: Makes the model and returns its step, which is called a few times.
    """
    torch.nn.Linear(8, 8)(
        torch.ones(8, 8)
    ).sum().backward()  # loads what any model's first pass does
    before = held_memory().now
    work = make()
    for _ in range(_NUM_CALLS):
        work()
    return (held_memory().peak - before) / _MIB
