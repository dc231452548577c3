"""Pictures of a pretrained model: what it makes of images, and what its encoder has learnt."""

from collections.abc import Iterator

from data.settings import UserError
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.pictures.neighbours import begin_again
from pretrain.pictures.page import as_image
from pretrain.pictures.reconstruct import (
    Reconstruction,
    draw_grid,
    load_model,
    panels,
    reconstruct,
)
from pretrain.records.kinds import Kind
from scripts._report.drawing import wrapped
from scripts._report.figures import Figure, Section
from scripts._report.history import Run
from scripts._report.images import Images, none
from scripts._report.learnt import learnt
from scripts._report.pairs import pictures as pairs
from scripts._report.patches.section import patches

RECONSTRUCTIONS = "reconstructions"
_TITLE = "Reconstructions"


def pictures(run: Run, num_images: int) -> Iterator[Section]:
    """Yield the pictures of a pretraining run; for each that there is not, the reason."""
    if run.kind is Kind.IMAGE_TEXT and run.checkpoint is not None:
        yield from pairs.pictures(run, num_images)
        return
    if run.checkpoint is None:
        yield Section(_TITLE, notes=("None yet: the run has no whole checkpoint.",))
        return
    try:
        config = load(PretrainConfig, [str(run.folder / "config.yaml")])
        model = load_model(run.checkpoint, config)
        untrained = begin_again(run.checkpoint, config.run.seed)
    except (UserError, OSError) as error:
        yield none(_TITLE, error)
        return
    take = None
    try:
        images = Images(config, model.encoder)
        take = images.take
        result = reconstruct(model, *take(num_images), config.corruption)
        yield Section(_TITLE, figures=(_reconstructions(result, images.split, run),))
    except (UserError, OSError) as error:
        yield none(_TITLE, error)
    yield learnt(model, untrained, take)
    yield patches(model.encoder, take)


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
