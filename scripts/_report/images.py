"""The images that a run's model is shown: of validation, or of training where a run has none."""

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from data.batch import Batch
from data.index.open import open_manifest, set_aside
from data.samples import Samples
from data.settings import require
from pretrain.encoder.facts import image_size, num_channels
from pretrain.inputs import MakeSamples, Opened
from pretrain.pictures.reconstruct import pick, pick_batches
from scripts._report.figures import Section


class Images:
    """Images that a model is shown, evenly spread over the split.

    Args:
        config: The run's.
        encoder: It decides the size and the channels.
        make: Makes the samples.

    Attributes:
        split: validation or training.

    Raises:
        UserError: The shards cannot be opened.
    """

    def __init__(
        self, config: Opened, encoder: VisionTransformer, make: MakeSamples = Samples
    ) -> None:
        data = config.data
        self.split = "validation" if data.val_key else "training"
        self._key = data.val_key or "data.shards"
        spec = data.val_shards or data.shards
        manifest = open_manifest(spec, self._key, data.storage, val_ratio=data.val_ratio)
        if data.val_ratio:
            manifest = set_aside(manifest)
        size, channels = image_size(encoder), num_channels(encoder)
        self._samples = make(manifest, size, seed=config.run.seed, channels=channels)

    def take(self, num: int) -> tuple[Tensor, Tensor]:
        """Return uint8 (B, C, H, W) and their keys int64 (B,), `num` at most."""
        images, keys = pick(self._samples, num)
        self._require(len(images))
        return images, keys

    def take_batches(self, num: int) -> list[Batch]:
        """Return the same images, each as a batch of its own with all that it has."""
        batches = pick_batches(self._samples, num)
        self._require(len(batches))
        return batches

    def _require(self, number: int) -> None:
        require(number > 0, f"{self._key}: none of the chosen images can be read")


def none(title: str, error: Exception) -> Section:
    """Say why there are no pictures, and what may help."""
    remedy = "Start the script from the folder in which the run was started."
    return Section(title, notes=(f"None: {error}. {remedy}",))
