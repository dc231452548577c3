"""Pictures of what a model has learnt so far, for the trackers."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from accelerate import Accelerator
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from data.disks import one_line
from data.samples import Samples
from pretrain.encoder.tokens import Normalise
from pretrain.objective.config import CorruptionConfig
from pretrain.objective.model import MaskedPatchModel
from pretrain.pictures import attention, draw, weights
from pretrain.pictures.attention import evaluating
from pretrain.pictures.patches import component_pictures, patch_features
from pretrain.pictures.reconstruct import Reconstruction, draw_grid, panels, pick, reconstruct
from pretrain.ranks import on_main
from pretrain.records.trackers import take_images
from pretrain.training.parallel import open_to_parts

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

_NUM_IMAGES = 16  # for the attention distance; the paper's 128 are the report's
_NUM_SHOWN = 4


class _Seen(NamedTuple):
    """The values that are drawn, on the CPU; None where the encoder has no such thing."""

    filters: Tensor | None
    similarity: Tensor | None
    distances: Tensor | None
    rollout: Tensor | None
    patches: Tensor | None
    reconstruction: Reconstruction | None


class Illustrator:
    """Draws a model's pictures, and leaves its training, its stream and all generators alone.

    Args:
        accelerator: What `start` gave.
        samples: Validation images, in listed order; a few of them are read now.
        corruption: The run's: how many patches a reconstruction hides.
    """

    def __init__(
        self, accelerator: Accelerator, samples: Samples, corruption: CorruptionConfig
    ) -> None:
        self._is_main = accelerator.is_main_process
        self._device = accelerator.device
        self._corruption = corruption
        # every rank has the same: those of a cut model pass as many batches
        self._images, self._keys = on_main(accelerator, lambda: pick(samples, _NUM_IMAGES))

    def __call__(self, model: MaskedPatchModel) -> dict[str, Tensor]:
        """Return pictures by name, uint8 (H, W, 3), on the main process; all ranks have to ask."""
        if not (self._is_main or isinstance(model, FSDPModule)):
            return {}
        with open_to_parts(model), evaluating(model):
            seen = self._look(model)
        return self._draw(seen) if self._is_main else {}

    def _look(self, model: MaskedPatchModel) -> _Seen:
        encoder = model.encoder
        return _Seen(
            weights.principal_filters(encoder),
            weights.position_similarity(encoder),
            *self._attention(encoder),
            self._patches(encoder),
            self._reconstruct(model),
        )

    def _attention(self, encoder: VisionTransformer) -> tuple[Tensor | None, Tensor | None]:
        if not (len(self._images) and attention.is_supported(encoder)):
            return None, None
        images = Normalise(encoder)(self._images)
        is_small = attention.num_tokens(encoder) <= attention.MOST_TOKENS
        rollout = attention.rollout(encoder, images[:_NUM_SHOWN]) if is_small else None
        return attention.distances(encoder, images), rollout

    def _patches(self, encoder: VisionTransformer) -> Tensor | None:
        if not len(self._images):
            return None
        shown = self._images[:_NUM_SHOWN]
        return component_pictures(shown, patch_features(encoder, shown, [len(encoder.blocks)]))

    def _reconstruct(self, model: MaskedPatchModel) -> Reconstruction | None:
        if not len(self._images):
            return None
        images, keys = (part[:_NUM_SHOWN].to(self._device) for part in (self._images, self._keys))
        reconstruction = reconstruct(model, images, keys, self._corruption)
        tensors = {
            k: value.cpu()
            for k, value in reconstruction._asdict().items()
            if isinstance(value, Tensor)
        }
        return reconstruction._replace(**tensors)

    def _draw(self, seen: _Seen) -> dict[str, Tensor]:
        """Draw what there is; the run is worth more than a picture that cannot be drawn."""
        over_images = partial(draw.rollout, self._images[:_NUM_SHOWN])
        makes: dict[str, tuple[Callable[[Tensor], Any], Tensor | None]] = {
            "filters": (draw.filters, seen.filters),
            "positions": (draw.similarity, seen.similarity),
            "attention_distance": (draw.distances, seen.distances),
            "rollout": (over_images, seen.rollout),
            "patches": (_sheet, seen.patches),
        }
        pictures: dict[str, Tensor] = {}
        try:
            for name, (make, values) in makes.items():
                if values is not None:
                    pictures[f"learnt/{name}"] = draw.pixels(partial(make, values))
            if seen.reconstruction is not None:
                sheet = draw_grid(panels(seen.reconstruction))
                pictures["learnt/reconstructions"] = draw.on_white(sheet)
        except Exception as error:  # no disk for matplotlib's cache, no memory
            text = one_line(error)
            logger.warning("run.trackers: a picture cannot be drawn: %s", text)
        return pictures


def _sheet(pictures: Tensor) -> Any:
    return draw.sheet(pictures, [""] * len(pictures), ["image", "last block"])


def make_illustrator(
    accelerator: Accelerator, samples: Samples, corruption: CorruptionConfig
) -> Illustrator | None:
    """Return what draws pictures for tensorboard and wandb, as `where_taken` has it."""
    return where_taken(accelerator, lambda: Illustrator(accelerator, samples, corruption))


def where_taken(accelerator: Accelerator, make: Callable[[], Made]) -> Made | None:
    """Make what draws pictures, where a tracker takes them; else return None.

    Without matplotlib there are none, which the log says once: training does not depend on it.
    """
    if not take_images(accelerator):
        return None
    if on_main(accelerator, draw.is_possible):
        return make()
    if accelerator.is_main_process:
        logger.warning(
            "run.trackers: no pictures of what is learnt, since matplotlib is not installed; "
            "pip install -e '.[report]' here"
        )
    return None
