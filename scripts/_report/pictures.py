"""Pictures of a pretrained model: its reconstructions, and what its encoder has learnt."""

from collections.abc import Iterator

from torch import Tensor

from data.index.open import open_manifest, set_aside
from data.samples import Samples
from data.settings import UserError, require
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.encoder.facts import image_size, num_channels
from pretrain.objective.model import MaskedPatchModel
from pretrain.pictures.neighbours import begin_again
from pretrain.pictures.reconstruct import (
    Reconstruction,
    draw_grid,
    load_model,
    panels,
    pick,
    reconstruct,
)
from scripts._report.drawing import as_image, wrapped
from scripts._report.figures import Figure, Section
from scripts._report.history import Run
from scripts._report.learnt import learnt

RECONSTRUCTIONS = "reconstructions"
_TITLE = "Reconstructions"


class _Images:
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
        self.split = "validation" if data.val_key else "training"
        self._key = data.val_key or "data.shards"
        spec = data.val_shards or data.shards
        manifest = open_manifest(spec, self._key, data.storage, val_ratio=data.val_ratio)
        if data.val_ratio:
            manifest = set_aside(manifest)
        size, channels = image_size(encoder), num_channels(encoder)
        self._samples = Samples(manifest, size, seed=config.run.seed, channels=channels)

    def take(self, num: int) -> tuple[Tensor, Tensor]:
        """Return uint8 (B, C, H, W) and their keys int64 (B,), `num` at most."""
        images, keys = pick(self._samples, num)
        require(len(images) > 0, f"{self._key}: none of the chosen images can be read")
        return images, keys


def pictures(run: Run, num_images: int) -> Iterator[Section]:
    """Yield the pictures of a pretraining run; for each that there is not, the reason."""
    if run.checkpoint is None:
        yield Section(_TITLE, notes=("None yet: the run has no whole checkpoint.",))
        return
    try:
        config = load(PretrainConfig, [str(run.folder / "config.yaml")])
        model = load_model(run.checkpoint, config)
        untrained = begin_again(run.checkpoint, config.run.seed)
    except (UserError, OSError) as error:
        yield _none(error)
        return
    take = None
    try:
        images = _Images(config, model)
        take = images.take
        result = reconstruct(model, *take(num_images), config.corruption)
        yield Section(_TITLE, figures=(_reconstructions(result, images.split, run),))
    except (UserError, OSError) as error:
        yield _none(error)
    yield learnt(model, untrained, take)


def _none(error: Exception) -> Section:
    remedy = "Start the script from the folder in which the run was started."
    return Section(_TITLE, notes=(f"None: {error}. {remedy}",))


def _reconstructions(result: Reconstruction, split: str, run: Run) -> Figure:
    picture = draw_grid(panels(result))
    alt = f"Rows of four pictures: input, corrupted, predicted, true. {result.verdict}."
    assert run.checkpoint is not None
    return Figure(
        f"Target {run.config['target.kind']}",
        RECONSTRUCTIONS,
        as_image(picture, alt),
        _reading(result, split, run.checkpoint.name),
        lambda suffix: picture if suffix == "png" else wrapped(picture),
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
