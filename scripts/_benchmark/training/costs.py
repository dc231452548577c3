"""The costs of a piece of work: time, floating-point operations, memory."""

import math
import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretrain.machine import operations
from pretrain.machine.held_memory import held_memory
from pretrain.training.launch import start
from scripts._benchmark.training.subject import Subject

Work = Callable[[], object]

_SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices
_MAX_SECONDS = 2.0  # of each turn of the matrix product
_NUM_CALLS = 3  # the optimizer's moments are made at the end of the first
_MIB = 2**20


# ---------------------------------------------------------------- time


def clock() -> float:
    """Return seconds, once the GPU has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def images_per_second(work: Work, num_images: int, seconds: float) -> float:
    """Repeat `work`, which handles `num_images`, for about some seconds; at least once.

    A GPU is waited for only before the first call and after the last, as in a run; how many calls
    there are follows from the time of one before them.
    """
    num_calls = 1
    if torch.accelerator.is_available():
        begin = clock()
        work()
        num_calls = max(1, math.ceil(seconds / (clock() - begin)))
        seconds = 0.0
    begin = now = clock()
    done = 0
    while not done or now - begin < seconds:
        for _ in range(num_calls):
            work()
        done += num_calls
        now = clock()
    return done * num_images / (now - begin)


def warm_up(work: Work) -> None:
    """Work until all is as it stays: memory is allocated, code compiled, of some in the third call.

    transformers' MAE, compiled, is one of those.
    """
    for _ in range(3):
        work()


def take_turn(work: Work, num_images: int, seconds: float) -> float:
    """Return images a second, and give a GPU's unused memory to the processes that come next."""
    speed = images_per_second(work, num_images, seconds)
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return speed


# ---------------------------------------------------------------- operations


def count_flops(work: Work) -> int:
    """Count the floating-point operations of one call, a multiply-add as two.

    Matrix products, convolutions and attention, forward and backward, each once: a fused attention
    computes its scores again on the way back, which is no use to the model and is not counted.
    Compiled models run as they are written.
    """
    plain = sdpa_kernel(SDPBackend.MATH)
    eager = torch.compiler.set_stance("force_eager")
    with eager, plain:
        return operations.count_flops(work)


class MatrixPeak:
    """The speed of a product of two large square matrices, in the subject's precision and threads.

    Args:
        subject: What it is the limit of.
        seconds: Of a turn of each variant; the product's is no longer than 2.
    """

    def __init__(self, subject: Subject, seconds: float) -> None:
        device = start(subject.run_config()).device
        side = _SIDES.get(device.type, _SIDES["cpu"])
        dtype = torch.bfloat16 if subject.precision == "bf16" else torch.float32
        self._left, self._right, self._result = (
            torch.randn(side, side, device=device, dtype=dtype) for _ in range(3)
        )
        self._seconds = min(seconds, _MAX_SECONDS)
        self._multiply()

    def _multiply(self) -> None:
        torch.mm(self._left, self._right, out=self._result)

    def measure(self) -> float:
        """Return operations a second, in one turn."""
        return images_per_second(self._multiply, 2 * len(self._left) ** 3, self._seconds)


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
