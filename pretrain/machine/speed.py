"""How fast a piece of work is, and the speed of matrix products, which no training step exceeds."""

import math
import time
from collections.abc import Callable

import torch

from data.devices import has_mps

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SMALLEST, _LARGEST = 256, 8192  # sides of the matrices; an H100 needs the largest
_TURNS = 3  # at least; the fastest counts: other programs slow some of them down


def clock() -> float:
    """Return seconds, once a GPU that is in use has done what it was given."""
    if _is_gpu_in_use():
        torch.accelerator.synchronize()
    return time.perf_counter()


def _is_gpu_in_use() -> bool:
    return torch.cuda.is_initialized() or has_mps()


def images_per_second(work: Callable[[], object], num_images: int, seconds: float) -> float:
    """Repeat `work`, which handles `num_images`, for about some seconds; at least once.

    A GPU is waited for only before the first call and after the last, as in a run; how many calls
    there are follows from the time of one before them.
    """
    num_calls = 1
    if _is_gpu_in_use():
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


def matrix_peak(device: torch.device, precision: str, seconds: float) -> float:
    """Measure the operations a second of the product of two large square matrices.

    In the number of threads and with the settings of torch (TF32) that hold. No random generator,
    no setting and no peak of a GPU's memory is changed.

    Args:
        device: Where.
        precision: fp32, bf16 or fp16.
        seconds: That it takes, about. Sides double from 256 to 8,192 as long as that is time
            enough, so that a device that is slow in this precision stays at small ones.
    """
    is_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if is_gpu else 0
    fastest, side = _speed_at(_SMALLEST, device, precision, 0.0), _SMALLEST
    while side < _LARGEST and _seconds_at(2 * side, fastest) < seconds:
        side *= 2
        fastest = max(fastest, _speed_at(side, device, precision, 0.0))
    fastest = max(fastest, _speed_at(side, device, precision, seconds))
    if is_gpu:
        torch.cuda.empty_cache()
        if torch.cuda.max_memory_allocated(device) > peak:  # that was ours
            torch.cuda.reset_peak_memory_stats(device)
    return fastest


def _seconds_at(side: int, speed: float) -> float:
    """Return how long a side takes at least: the first product of both times, and each turn's."""
    return (2 + 1 + _TURNS) * 2 * side**3 / speed


def _speed_at(side: int, device: torch.device, precision: str, seconds: float) -> float:
    """Return the operations a second at one side: of one call, or in the fastest of some turns.

    On a CPU a turn is one call: another program that holds a core for a moment slows each of the
    longer turns. A GPU is its user's alone, and waiting for it after each call would cost.
    """
    generator = torch.Generator(device).manual_seed(0)
    empty = torch.empty(side, side, device=device, dtype=_DTYPES[precision])
    left, right = (torch.empty_like(empty).normal_(generator=generator) for _ in range(2))

    def multiply() -> None:
        torch.mm(left, right, out=empty)

    multiply()  # its code is loaded
    turn = seconds / _TURNS if device.type != "cpu" else 0.0
    end, num = time.perf_counter() + seconds, 2 * side**3
    speeds = [images_per_second(multiply, num, turn) for _ in range(_TURNS if seconds else 1)]
    while time.perf_counter() < end:
        speeds.append(images_per_second(multiply, num, turn))
    return max(speeds)
