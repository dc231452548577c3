"""Floating-point operations: how many a step takes, and how many a second the machine can do."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretrain.training import operations
from pretrain.training.launch import start
from scripts._benchmark.rounds import images_per_second
from scripts._benchmark.subject import Step, Subject

_SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices
_MAX_SECONDS = 2.0  # of each turn of the matrix product


def count_flops(work: Step) -> int:
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
