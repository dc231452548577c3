"""The pairs of images and captions that a page shows."""

from io import BytesIO
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pretrain.pictures.draw import rgb
from pretrain.pictures.page import as_image
from pretrain.vilt.saved import Vilt
from scripts._report.drawing import on_palette
from scripts._report.images import Images

_LONGEST = 448  # pixels of a picture's longer side on the page


class Shown(NamedTuple):
    """Pairs, with the model that is asked about them.

    Attributes:
        vilt: The model and its vocabulary.
        batch: The pairs, as `CaptionedSamples` gives them.
        names: SHARD/KEY of each.
        captions: Each as the vocabulary writes it.
        split: validation or training.
    """

    vilt: Vilt
    batch: dict[str, Tensor]
    names: list[str]
    captions: list[str]
    split: str

    def image(self, number: int) -> Tensor:
        """Return an image without what its canvas has beside it: uint8 (C, H, W)."""
        image = self.batch["image"][number]
        if "grid" not in self.batch:
            return image
        rows, columns = self.batch["grid"][number].tolist()
        height, width = self.vilt.model.patch
        return image[:, : rows * height, : columns * width]


def take(vilt: Vilt, images: Images, num: int) -> Shown:
    """Take pairs evenly spread over the images, `num` at most.

    Raises:
        UserError: None of them can be read.
    """
    batches = images.take_batches(num)
    tensors = [batch.tensors for batch in batches]
    batch = {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
    captions = [
        vilt.vocabulary.text(tokens[words >= 0].tolist())
        for tokens, words in zip(batch["tokens"], batch["words"], strict=True)
    ]
    names = [part.places[0].name for part in batches]
    return Shown(vilt, batch, names, captions, images.split)


def as_picture(image: Tensor, alt: str) -> str:
    """Return an image, uint8 (C, H, W), as an `<img>` of moderate size."""
    picture = Image.fromarray(rgb(image[None])[0].permute(1, 2, 0).numpy())
    picture.thumbnail((_LONGEST, _LONGEST))
    content = BytesIO()
    picture.save(content, "PNG")
    return as_image(on_palette(content.getvalue()), alt)
