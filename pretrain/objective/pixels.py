"""The target of pixels, and images cut into patches."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_EPS = 1e-6  # added to a patch's variance, as in MAE's code


class Pixels(nn.Module):
    """All values of a patch, V = C * Ph * Pw, by their mean squared error.

    Pixels are normalised as the encoder's input is, channel by channel. If `is_normalised`, each
    patch is then brought to mean 0 and variance 1 over all its values, so that contrast and not
    brightness is asked for: `(x - mean) / sqrt(variance + 1e-6)`, with the unbiased variance.

    A module without parameters, so that mean and deviation follow the model to its device.

    Source: Dosovitskiy et al. 2021, section B.1.2, third target; normalised: He et al. 2021,
    arXiv:2111.06377, section 3 and `norm_pix_loss` of its code.

    Args:
        patch: Pixels of a patch, (height, width).
        mean: Channel means of pixels in 0..1; as many as the images have channels.
        std: Channel deviations, likewise.
        is_normalised: Whether each patch is normalised by its own values.
    """

    num_classes = None
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        patch: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        is_normalised: bool = False,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.is_normalised = is_normalised
        self.num_outputs = len(mean) * math.prod(patch)
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(list(values), dtype=torch.float32).view(-1, 1, 1) * 255
            self.register_buffer(name, value, persistent=False)  # (C, 1, 1), in grey levels

    def answers(self, images: Tensor) -> Tensor:
        """Return the values to predict: uint8 (B, C, H, W) -> float32 (B, N, V)."""
        values = self._values(images)
        if not self.is_normalised:
            return values
        centred, variance = _centre(values)
        return centred / (variance + _EPS).sqrt()

    def losses(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Return the mean squared error: (B, M, V), float32 (B, M, V) -> float32 (B, M)."""
        return (outputs.float() - answers).square().mean(-1)

    def guesses(self, outputs: Tensor) -> Tensor:
        """Return the outputs in float32: (B, M, V)."""
        return outputs.float()

    def scores(self, guesses: Tensor, answers: Tensor) -> Tensor:
        """Return the mean squared error, as `losses` does: float32 (B, M)."""
        return self.losses(guesses, answers)

    def colours(self, guesses: Tensor, images: Tensor, is_visible: Tensor) -> Tensor:
        """Turn values back into pixels.

        Normalised values say nothing of a patch's brightness and contrast. Those of the true patch
        would tell what the model was not told, so that a picture would look better than the
        prediction is. The picture takes an image's own instead: the mean over its visible patches,
        and the root of their mean variance. An image with none takes the data's.
        """
        if self.is_normalised:
            mean, deviation = self._visible_statistics(images, is_visible)
            guesses = guesses * deviation + mean
        shape = (len(self.mean), *self.patch)
        pixels = guesses.unflatten(2, shape) * self.std + self.mean  # (B, N, C, Ph, Pw)
        return pixels.round().clamp(0, 255).to(torch.uint8)

    def _values(self, images: Tensor) -> Tensor:
        """Normalise by channel and cut into patches: (B, C, H, W) -> float32 (B, N, V)."""
        values = (images.float() - self.mean) / self.std
        return to_patches(values, self.patch).flatten(2)

    def _visible_statistics(self, images: Tensor, is_visible: Tensor) -> tuple[Tensor, Tensor]:
        """Return each image's mean and deviation over its visible patches: (B, 1, 1) each."""
        values = self._values(images)
        by_patch = torch.stack([values.mean(-1), _centre(values)[1][..., 0]])  # (2, B, N)
        mean, variance = (by_patch * is_visible).sum(-1) / is_visible.sum(-1).clamp(min=1)
        deviation = torch.where(is_visible.any(-1), (variance + _EPS).sqrt(), 1.0)
        return mean[:, None, None], deviation[:, None, None]


def _centre(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return values less their mean, (B, N, V), and their unbiased variance, (B, N, 1).

    In two passes: on a CPU a tenth of the time of `torch.var_mean`, or less.
    """
    centred = values - values.mean(-1, keepdim=True)
    return centred, centred.square().sum(-1, keepdim=True) / (values.shape[-1] - 1)


def to_patches(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut images into patches, row by row: (B, C, H, W) -> (B, N, C, Ph, Pw)."""
    by_place = images.unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))
    return by_place.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # of (B, rows, columns, C, Ph, Pw)


def to_images(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay patches out on (rows, columns): (B, N, C, Ph, Pw) -> (B, C, H, W)."""
    by_place = patches.unflatten(1, grid).permute(0, 3, 1, 4, 2, 5)
    return by_place.flatten(4).flatten(2, 3)
