"""An image-text run's pictures: answers, heat maps, and what the image half has learnt."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor

from data.settings import UserError, require
from pretrain.pictures.neighbours import begin_again
from pretrain.vilt.building import make_samples
from pretrain.vilt.saved import Vilt, load_vilt
from scripts._report.figures import Section
from scripts._report.history import Run
from scripts._report.images import Images, none
from scripts._report.learnt import Take, learnt
from scripts._report.pairs.answers import TITLE, answers
from scripts._report.pairs.maps import maps
from scripts._report.pairs.shown import take

_ONE_SIZE = "alone the encoder takes images of one size, and here they keep their own aspect"


def pictures(run: Run, num_images: int) -> Iterator[Section]:
    """Yield the pictures of an image-text run with a checkpoint; for each that there is not, why.

    Args:
        run: The run.
        num_images: Pairs that are shown.
    """
    assert run.checkpoint is not None
    try:
        vilt = load_vilt(run.folder)
        untrained = begin_again(run.checkpoint, vilt.config.run.seed)
    except (UserError, OSError) as error:
        yield none(TITLE, error)
        return
    take_whole = None
    try:
        make = partial(make_samples, vilt.config, vilt.model.encoder, vilt.vocabulary)
        images = Images(vilt.config, vilt.model.encoder, make)
        shown = take(vilt, images, num_images)
        yield answers(shown)
        yield maps(shown)
        take_whole = _of_the_image_half(vilt, images)
    except (UserError, OSError) as error:
        yield none(TITLE, error)
    section = learnt(vilt.model, untrained, take_whole)
    alone = "This is the image half alone, without a caption: what RUN/encoder holds."
    yield replace(section, notes=(alone, *section.notes))


def _of_the_image_half(vilt: Vilt, images: Images) -> Take:
    """Give the image half alone its images; with data.long_side they are not of its size."""

    def take_whole(num: int) -> tuple[Tensor, Tensor]:
        require(vilt.model.canvas is None, _ONE_SIZE)
        return images.take(num)

    return take_whole
