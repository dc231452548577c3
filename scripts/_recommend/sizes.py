"""The encoders that are recommended, and the sizes of their images."""

import math
from dataclasses import dataclass

from scripts._recommend.facts import Images, Machine


@dataclass(frozen=True)
class Size:
    """An encoder's size.

    Attributes:
        name: As it is called here.
        timm: timm's name, whose sizes are replaced; of weights, what `encoder.init` names.
        width: D.
        depth: Blocks.
        heads: Attention heads.
        min_images: Fewest images for which it is recommended.
        patch: Pixels a side of a patch, where weights decide it.
    """

    name: str
    timm: str
    width: int
    depth: int
    heads: int
    min_images: int
    patch: int | None = None

    @property
    def told(self) -> str:
        """How it is called, with its parameters."""
        return f"{self.name} ({self.parameters / 1e6:.1f} M parameters)"

    @property
    def has_weights(self) -> bool:
        """Whether it starts from weights that exist."""
        return self.patch is not None

    @property
    def parameters(self) -> int:
        """Of its blocks, which are nearly all."""
        return 12 * self.depth * self.width**2


# The first is that of configs/pretrain/cifar10.yaml, and the last four those of configs/encoder/.
# min_images: denoising autoencoders of ViT-S and ViT-B learnt from 8,000 to 118,000 images
# (arXiv:2112.10740), very large ones overfit with 128,000 (arXiv:2206.04664).
SIZES = (
    Size("tiny, 4 blocks", "vit_tiny_patch16_224", 128, 4, 4, 0),
    Size("tiny, 6 blocks", "vit_tiny_patch16_224", 192, 6, 3, 1_000),
    Size("ViT-Ti", "vit_tiny_patch16_224", 192, 12, 3, 5_000),
    Size("ViT-S", "vit_small_patch16_224", 384, 12, 6, 10_000),
    Size("ViT-B", "vit_base_patch16_224", 768, 12, 12, 100_000),
    Size("ViT-L", "vit_large_patch16_224", 1024, 24, 16, 1_000_000),
)
_PATCHES = {"cpu": 64, "mps": 100, "cuda": 196}  # of an image, about
_TOO_MANY = 1.6  # times as many patches: the image is made smaller
_PATCH_SIDES = (2, 16)
_STRIP = 1.5  # width / height from which an image is no square


@dataclass(frozen=True)
class Grid:
    """How an image is cut into patches.

    Attributes:
        rows: Of patches.
        columns: Of patches.
        patch: Pixels a side of a patch.
        is_smaller: The image is made smaller than the files hold it.
    """

    rows: int
    columns: int
    patch: int
    is_smaller: bool

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.rows * self.patch, self.columns * self.patch

    @property
    def num_patches(self) -> int:
        """N."""
        return self.rows * self.columns


def choose_grid(images: Images, machine: Machine, patch: int | None = None) -> Grid:
    """Choose the size of images and patches: about as many patches as the machine is fit for.

    Args:
        images: What is known of them.
        machine: What there is.
        patch: Pixels a side, where it is decided.
    """
    height, width = _shape(images)
    target = _PATCHES[machine.device]
    low, high = _PATCH_SIDES
    patch = patch or min(high, max(low, round(math.sqrt(height * width / target))))
    rows, columns = max(1, round(height / patch)), max(1, round(width / patch))
    is_smaller = rows * columns > _TOO_MANY * target
    if is_smaller:
        factor = math.sqrt(target / (rows * columns))
        rows, columns = max(1, round(rows * factor)), max(1, round(columns * factor))
    return Grid(rows, columns, patch, is_smaller)


def _shape(images: Images) -> tuple[int, int]:
    """Return the sides of a crop: a square, but of strips that are alike."""
    height, width = images.height, images.width
    is_strip = max(height, width) > _STRIP * min(height, width)
    if is_strip and images.widths_apart < _STRIP:
        return height, width
    return min(height, width), min(height, width)
