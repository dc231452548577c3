"""Targets of classes: the mean colour of a patch or of its cells, and the nearest visual word."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MAX_COMPONENTS = 64  # of a patch, in which words are told apart


class Classes(nn.Module):
    """The base of targets of classes: `K` of them for each of a patch's `G` cells."""

    num_classes: int

    def losses(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Return nats a cell: (B, M, G * K), int64 (B, M, G) -> float32 (B, M)."""
        logits = outputs.reshape(-1, self.num_classes).float()  # (B * M * G, K)
        losses = F.cross_entropy(logits, answers.flatten(), reduction="none")
        return losses.view(answers.shape).mean(-1)

    def guesses(self, outputs: Tensor) -> Tensor:
        """Return the likeliest class of each cell: (B, M, G * K) -> int64 (B, M, G)."""
        # on a CPU in bf16 argmax takes 3.7 times as long; both give the first of equal ones
        return outputs.unflatten(-1, (-1, self.num_classes)).max(-1).indices

    def scores(self, guesses: Tensor, answers: Tensor) -> Tensor:
        """Return the fraction of cells that are right: int64 (B, M, G) twice -> float32 (B, M)."""
        return (guesses == answers).float().mean(-1)


class ColourClasses(Classes):
    """The mean colour of each cell of a patch, as a class.

    The loss is the cross-entropy's mean over the cells, in nats a cell. With one cell it is the
    paper's mean colour. A module without parameters: what is compiled takes its sizes as constants.

    Args:
        patch: Pixels of a patch, (height, width).
        channels: `C` of the images.
        bits: Bits a channel.
        grid: Cells a side of a patch, so that `G` = grid^2.
    """

    def __init__(self, patch: tuple[int, int], channels: int, bits: int, grid: int = 1) -> None:
        super().__init__()
        self.patch = patch
        self.channels = channels
        self.bits = bits
        self.grid = grid
        self.num_classes = 1 << (bits * channels)
        self.num_outputs = grid**2 * self.num_classes  # the classes of the first cell first

    def answers(self, images: Tensor) -> Tensor:
        """Return the class of each cell: uint8 (B, C, H, W) -> int64 (B, N, G), row by row."""
        rows = images.shape[2] // self.patch[0]
        classes = colour_classes(images, self.patch, self.bits, self.grid)  # (B, N * G)
        by_place = classes.view(len(images), rows, self.grid, -1, self.grid)
        return by_place.transpose(2, 3).reshape(len(images), -1, self.grid**2)

    def colours(self, guesses: Tensor, images: Tensor, is_visible: Tensor) -> Tensor:  # noqa: ARG002
        """Paint each cell in its class's colour; a pixel that two cells share in their mean."""
        table = class_colours(self.bits, self.channels).to(guesses.device).float()
        cells = table[guesses].transpose(2, 3)  # (B, N, C, G)
        cells = cells.unflatten(3, (self.grid, self.grid)).flatten(0, 1)
        painted = F.adaptive_avg_pool2d(cells, self.patch)  # (B * N, C, Ph, Pw)
        return painted.round().to(torch.uint8).unflatten(0, guesses.shape[:2])


def colour_classes(images: Tensor, patch_size: tuple[int, int], bits: int, grid: int = 1) -> Tensor:
    """Return the mean colour of each patch as a class: uint8 (B, C, H, W) -> int64 (B, N).

    A channel's bin is `floor(mean / 2^(8 - bits))`, computed in integers, so a mean that lies on a
    bin's lower edge belongs to that bin. The bins are the class's digits, the first channel's the
    most significant: of RGB, `(red * 2^bits + green) * 2^bits + blue`.

    With a `grid` of cells a side, each cell's: (B, N * G), in the order of `patch_sums`.
    """
    height, width = [side // math.gcd(side, grid) for side in patch_size]
    sums = patch_sums(images, patch_size, grid)  # (B, N * G, C)
    bins = (sums << bits) // (256 * height * width)
    classes = bins[..., 0]
    for channel in range(1, bins.shape[-1]):
        classes = (classes << bits) | bins[..., channel]
    return classes


def patch_sums(images: Tensor, patch_size: tuple[int, int], grid: int = 1) -> Tensor:
    """Sum each channel over each patch: uint8 (B, C, H, W) -> int64 (B, N, C), row by row.

    With a `grid` of cells a side, over each cell: (B, N * G, C), in rows of the whole image. Where
    cells cut pixels, pixels are first repeated until cells hold whole ones, so that sums are by
    area, and exact: of 14 pixels and 4 cells a side, a cell holds 3.5, or 7 halves. Sums run along
    one dimension after the other: of 224 pixels, on a CPU, 2 to 15 times as fast as along both.
    """
    sums = images  # int32 holds 255 * P^2 up to P = 2,900
    for dim, side in ((2, patch_size[0]), (3, patch_size[1])):
        common = math.gcd(side, grid)
        if grid > common:
            sums = sums.repeat_interleave(grid // common, dim)
        sums = sums.unflatten(dim, (-1, side // common)).sum(dim + 1, dtype=torch.int32)
    return sums.flatten(2).transpose(1, 2).long()


def class_colours(bits: int, channels: int = 3) -> Tensor:
    """Return the colour in the middle of each class's bins: uint8 (K, C)."""
    classes = torch.arange(1 << (bits * channels))
    shifts = bits * torch.arange(channels - 1, -1, -1)
    bins = (classes[:, None] >> shifts) % (1 << bits)  # (K, C)
    width = 256 >> bits
    return (bins * width + width // 2).to(torch.uint8)


# ---------------------------------------------------------------- words
