"""Heat maps of words for the trackers, while a model is trained."""

import logging
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from data.captions.vocabulary import Vocabulary
from data.disks import one_line
from data.samples import Samples
from pretrain.pictures import attention, draw
from pretrain.pictures.illustrate import where_taken
from pretrain.pictures.reconstruct import pick_batches
from pretrain.ranks import on_main
from pretrain.training.parallel import open_to_parts
from pretrain.vilt.model import ViltModel
from pretrain.vilt.pictures.heatmaps import WordMaps, choose_words, paint, word_maps

logger = logging.getLogger(__name__)

_NUM_IMAGES, _NUM_WORDS = 2, 5


class PairIllustrator:
    """Draws heat maps of words, and leaves training, stream and all generators alone.

    Args:
        accelerator: What `start` gave.
        vocabulary: Of the captions.
        samples: Captioned validation images, in listed order; a few of them are read now.
    """

    def __init__(self, accelerator: Accelerator, vocabulary: Vocabulary, samples: Samples) -> None:
        self._is_main = accelerator.is_main_process
        self._vocabulary = vocabulary
        # every rank has the same: those of a cut model pass as many batches
        batches = on_main(accelerator, lambda: pick_batches(samples, _NUM_IMAGES))
        tensors = [batch.tensors for batch in batches]
        names = tensors[0] if tensors else ()
        self._batch = {name: torch.cat([part[name] for part in tensors]) for name in names}

    def __call__(self, model: ViltModel) -> dict[str, Tensor]:
        """Return pictures by name, uint8 (H, W, 3), on the main process; all ranks have to ask."""
        is_asked = self._is_main or isinstance(model, FSDPModule)
        if not (is_asked and self._batch and attention.is_supported(model.encoder)):
            return {}
        device = next(model.parameters()).device
        batch = {name: values.to(device) for name, values in self._batch.items()}
        with open_to_parts(model):
            found = word_maps(model, self._vocabulary, batch)
        return self._draw(found, model.patch) if self._is_main else {}

    def _draw(self, found: list[WordMaps], patch: tuple[int, int]) -> dict[str, Tensor]:
        """Draw what there is; the run is worth more than a picture that cannot be drawn."""
        pictures: dict[str, Tensor] = {}
        chosen = choose_words(found, _NUM_WORDS)
        try:
            for number, (maps, places) in enumerate(zip(found, chosen, strict=True)):
                if not places:
                    continue
                image, words = self._batch["image"][number], [maps.words[i] for i in places]
                parts = (maps.plan[places], maps.attention[places])
                painted = torch.stack([paint(image, part, patch) for part in parts], dim=1)
                sheet = partial(draw.sheet, painted, words, ("transport plan", "attention"))
                pictures[f"learnt/words_{number + 1}"] = draw.pixels(sheet)
        except Exception as error:  # no disk for matplotlib's cache, no memory
            text = one_line(error)
            logger.warning("run.trackers: a picture cannot be drawn: %s", text)
        return pictures


def make_illustrator(
    accelerator: Accelerator, vocabulary: Vocabulary, samples: Samples
) -> PairIllustrator | None:
    """Return what draws heat maps for tensorboard and wandb, where one of them is on; else None."""
    return where_taken(accelerator, lambda: PairIllustrator(accelerator, vocabulary, samples))
