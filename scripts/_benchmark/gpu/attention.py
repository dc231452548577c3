"""One layer's attention by each of torch's kernels, forward and backward."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretrain.machine.speed import images_per_second
from pretrain.training.launch import start
from scripts._benchmark.training.subject import Subject

KERNELS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


class Attention:
    """Attention of an encoder's shape, on random queries, keys and values.

    Args:
        subject: Whose batch and heads it has.
    """

    def __init__(self, subject: Subject) -> None:
        self._device = start(subject.run_config()).device
        self._subject = subject

    def take_turn(self, kernel: str, num_tokens: int, seconds: float) -> float:
        """Return images a second, of one layer.

        Raises:
            RuntimeError: Torch has no such kernel for this device and shape.
        """
        batch, heads = self._subject.batch_size, self._subject.sizes["num_attention_heads"]
        width = self._subject.sizes["hidden_size"] // heads
        generator = torch.Generator(self._device).manual_seed(0)
        shape, dtype = (batch, heads, num_tokens, width), torch.bfloat16

        def draw() -> Tensor:
            return torch.randn(shape, generator=generator, device=self._device, dtype=dtype)

        query, key, value = (draw().requires_grad_() for _ in range(3))
        gradient = draw()

        def work() -> None:
            with sdpa_kernel(KERNELS[kernel]):
                F.scaled_dot_product_attention(query, key, value).backward(gradient)

        work()  # its code is loaded
        return images_per_second(work, batch, seconds)
