"""Pictures of a pretrained model: its reconstructions, and what its encoder has learnt."""

from collections.abc import Iterator

from torch import Tensor

from data.index.open import open_manifest
from data.samples import Samples
from data.settings import UserError, require
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.encoder.facts import image_size, num_channels
from pretrain.objective.model import MaskedPatchModel
from pretrain.pictures.reconstruct import (
    Reconstruction,
    draw_grid,
    load_model,
    panels,
    pick,
    reconstruct,
)
from scripts._report.drawing import as_image, wrapped
from scripts._report.figures import Figure, Section, Suffix
from scripts._report.history import Run
from scripts._report.learnt import learnt

RECONSTRUCTIONS = "reconstructions"
_REMEDY = "Start the script from the folder in which the run was started."


class Images:
    """Images that a model is shown: of the validation split, or of training where a run has none.

    Args:
        config: The run's.
        model: It decides the size and the channels.

    Attributes:
        split: validation or training.

    Raises:
        UserError: The shards cannot be opened.
    """

    def __init__(self, config: PretrainConfig, model: MaskedPatchModel) -> None:
        data, encoder = config.data, model.encoder
        self.split = "validation" if data.val_shards else "training"
        self._key = "val_shards" if data.val_shards else "shards"
        manifest = open_manifest(getattr(data, self._key), f"data.{self._key}", data.storage)
        size, channels = image_size(encoder), num_channels(encoder)
        self._samples = Samples(manifest, size, config.run.seed, channels=channels)

    def take(self, num: int) -> tuple[Tensor, Tensor]:
        """Return uint8 (B, C, H, W) and their keys int64 (B,), `num` at most."""
        images, keys = pick(self._samples, num)
        require(len(images) > 0, f"data.{self._key}: none of the chosen images can be read")
        return images, keys


def pictures(run: Run, num_images: int, prefix: str = "") -> Iterator[Section]:
    """Yield the pictures; for each that there is not, the reason.

    Args:
        run: A pretraining run.
        num_images: How many images are reconstructed.
        prefix: Of the figures' file names.
    """
    title = "Reconstructions"
    if run.checkpoint is None:
        yield Section(title, notes=("None yet: the run has no whole checkpoint.",))
        return
    try:
        config = load(PretrainConfig, [str(run.folder / "config.yaml")])
        model = load_model(run.checkpoint, config)
    except (UserError, OSError) as error:
        yield Section(title, notes=(f"None: {error}. {_REMEDY}",))
        return
    images = None
    try:
        images = Images(config, model)
        figure = _reconstructions(model, images, config, num_images, run, prefix)
        yield Section(title, figures=(figure,))
    except (UserError, OSError) as error:
        yield Section(title, notes=(f"None: {error}. {_REMEDY}",))
    yield learnt(model, None if images is None else images.take, prefix)


def _reconstructions(
    model: MaskedPatchModel,
    images: Images,
    config: PretrainConfig,
    num_images: int,
    run: Run,
    prefix: str,
) -> Figure:
    result = reconstruct(model, *images.take(num_images), config.corruption)
    picture = draw_grid(panels(result))
    alt = f"Rows of four pictures: input, corrupted, predicted, true. {result.verdict}."

    def export(suffix: Suffix) -> bytes:
        return picture if suffix == "png" else wrapped(picture)

    assert run.checkpoint is not None
    return Figure(
        f"Target {run.target}",
        f"{prefix}{RECONSTRUCTIONS}",
        as_image(picture, alt),
        _reading(result, images.split, run.checkpoint.name),
        export,
        is_wide=True,
    )


def _reading(result: Reconstruction, split: str, checkpoint: str) -> str:
    alone = " (the run has no validation shards)" if split == "training" else ""
    return (
        f"{len(result.images)} {split} images{alone}, predicted by {checkpoint}. The model sees "
        "nothing of a hidden patch: all of them are masked. They are hatched under 'corrupted'; "
        f"under 'predicted' and 'true' they show {result.reading}. Visible patches show the "
        f"input's own pixels in each column. {result.verdict}."
    )
