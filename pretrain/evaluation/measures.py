"""What can be said of a frozen encoder without labels, by layer."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from timm.models.vision_transformer import VisionTransformer

from data.samples import Samples
from data.settings import require
from pretrain.evaluation.embedding import NAME, check_reading, open_images
from pretrain.evaluation.features import PATCHES, View
from pretrain.evaluation.spectrum import (
    MEASURES,
    Figures,
    Moments,
    Scatter,
    describe_spectrum,
    lidar,
)
from pretrain.evaluation.unlabelled import (
    CropSamples,
    Pass,
    check_number,
    choose_views,
    least_images,
    read_scatters,
    read_spectra,
)
from pretrain.ranks import on_main
from pretrain.records.bad_samples import say_unusable

_SEED = 0  # of the crops


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured of an encoder, and how its features are read.

    Attributes:
        untrained: Measure the encoder that is named with random weights, as it began.
        layers: Blocks from 1 on; empty for all.
        pooling: average, class or both, beside the patches as they are.
        crops: Random crops of each image, for LiDAR; 0 leaves it out.
        crop_area: Range of a crop's area, as a fraction of the image's.
        batch_size: Images or crops a forward pass on each process.
        workers: Loader processes a rank; 0 decodes in the process itself.
        precision: fp32 or bf16.
    """

    untrained: bool = False
    layers: tuple[int, ...] = ()
    pooling: str = "average"
    crops: int = 10
    crop_area: tuple[float, float] = (0.08, 1.0)
    batch_size: int = 64
    workers: int = 2
    precision: str = "fp32"

    def __post_init__(self) -> None:
        check_reading(self.batch_size, self.workers, self.precision)
        require(
            self.crops == 0 or self.crops > 1,
            f"crops={self.crops}: LiDAR compares several crops of an image; 10 do, 0 leaves it out",
        )
        require(
            self.crops > 0 or self.crop_area == MeasureConfig.crop_area,
            f"crop_area={list(self.crop_area)} is of the crops, and crops=0; leave one of them out",
        )
        low, high = self.crop_area
        require(
            0 < low <= high <= 1,
            f"crop_area={list(self.crop_area)} is no range within (0, 1]; try 0.08 1",
        )


class Measures(NamedTuple):
    """What was measured.

    Attributes:
        cells: A layer and a pooling each, with the figures, None where one is not defined. Empty on
            other ranks than the first.
        num_images: Those that could be used.
        num_bad: The others.
        num_dimensions: Of pooled features; those of patches have as many, or half for both.
    """

    cells: list[dict[str, Any]]
    num_images: int
    num_bad: int
    num_dimensions: int


def measure_images(encoder: Any, images: Any, config: MeasureConfig) -> Measures:
    """Measure what can be said of an encoder without labels, by layer.

    Args:
        encoder: What `load_encoder` takes or gives.
        images: A folder of images, a list of paths, or shards.
        config: What, and how.

    Raises:
        UserError: There are no such images, or fewer than dimensions, or no such layer or pooling.
        RunStopped: No image can be read, or what the encoder gives is no number.
    """
    require(
        not (config.untrained and isinstance(encoder, VisionTransformer)),
        "untrained=True makes an encoder anew, and one was given that is made; give its folder",
    )
    accelerator, model, samples = open_images(
        encoder, images, config.precision, is_untrained=config.untrained
    )
    layers = config.layers or range(1, len(model.blocks) + 1)
    views = choose_views(model, layers, config.pooling, ("layers", "pooling"))
    least = least_images(model, config.pooling)
    check_number(samples.manifest.num_samples, least, NAME)
    how = Pass(accelerator, config.batch_size, config.workers, NAME)
    found = read_spectra(how, model, samples, views)
    say_unusable(found.unusable)
    found.unusable.judge(max_ratio=1)
    check_number(found.num_images, least, f"{NAME} that can be read")
    scatters: dict[View, Scatter] = {}
    if config.crops:
        pooled = [view for view in views if view.pooling != PATCHES]
        scatters = read_scatters(how, model, _crops_of(samples, config), pooled)
    cells = on_main(accelerator, lambda: _judge(found.moments, scatters, config.crops))
    accelerator.end_training()
    is_main = accelerator.is_main_process
    num_bad = len(found.unusable.entries)
    return Measures(cells if is_main else [], found.num_images, num_bad, least)


def _crops_of(samples: Samples, config: MeasureConfig) -> CropSamples:
    return CropSamples(
        samples.manifest,
        samples.size,
        config.crops,
        seed=_SEED,
        crop_area=config.crop_area,
        channels=samples.channels,
    )


def _judge(
    spectra: dict[View, Moments], scatters: dict[View, Scatter], num_crops: int
) -> list[dict[str, Any]]:
    """Return a cell for each view, all with the same figures."""
    cells: list[dict[str, Any]] = []
    for view, moments in spectra.items():
        figures: Figures = dict.fromkeys(MEASURES, math.nan)
        figures |= describe_spectrum(moments)
        if scatters:
            figures["lidar"] = lidar(scatters[view], num_crops) if view in scatters else math.nan
        known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        cells.append(view._asdict() | known)
    return cells
