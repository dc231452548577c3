"""The module that ONNX and torch.export hold: pixels in 0..1 go in, and it normalises itself."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.images.transforms import MODES
from pretrain.encoder.tokens import Normalise
from scripts._export.format import HUB
from scripts._export.source import Source, tokens_name

INPUT = "images"
_CLASSES = "classes.txt"


class Graph(nn.Module):
    """Images in 0..1 -> logits, or what an encoder alone gives.

    Args:
        source: What is exported.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.encoder = source.encoder
        self.classifier = source.classifier
        self.normalise = Normalise(source.encoder)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Run float32 images (B, C, H, W); the outputs are those of `Source.output_names`."""
        pixels = images * 255
        if self.classifier is not None:
            return {"logits": self.classifier.logits(pixels)}
        tokens = self.encoder.forward_features(self.normalise(pixels))
        return {tokens_name(self.encoder): tokens, "features": self.encoder.forward_head(tokens)}


def export_arguments(source: Source) -> dict[str, Any]:
    """Return an example and the free batch size, as torch's exporters take them."""
    return {
        "args": (torch.rand(2, source.channels, *source.size),),
        "dynamic_shapes": {INPUT: {0: torch.export.Dim("batch")}},
    }


def make_folder(source: Source, folder: Path) -> None:
    """Make a folder for a graph, which has no place for class names, and put them beside it."""
    folder.mkdir()
    if source.class_names:
        text = "".join(f"{name}\n" for name in source.class_names)
        (folder / _CLASSES).write_text(text, encoding="utf-8")


def describe(source: Source) -> list[str]:
    """Say what goes in and out."""
    shape = ", ".join(map(str, (source.channels, *source.size)))
    colours = source.colours if source.channels in MODES else "values"
    lines = [f"input {INPUT}: float32 (batch, {shape}), {colours} in 0..1; any batch size"]
    with torch.no_grad():
        outputs = source.outputs(torch.zeros(1, source.channels, *source.size, dtype=torch.uint8))
    for name in source.output_names:
        shape = ", ".join(map(str, outputs[name].shape[1:]))
        lines.append(f"output {name}: float32 (batch, {shape})")
    if source.class_names:
        lines.append(f"{_CLASSES} names the classes, in order")
    return lines


def read_photo(source: Source) -> str:
    """Return Python that makes `images` of photo.jpg; of image.npy, where they are no pictures."""
    rows, columns = source.size
    if source.channels not in MODES:
        return f"""image = np.load("image.npy")  # uint8 ({rows}, {columns}, {source.channels})
images = image.astype(np.float32).transpose(2, 0, 1)[None] / 255"""
    axes = ".transpose(2, 0, 1)[None]" if source.channels == 3 else "[None, None]"
    mode = MODES[source.channels]
    return f"""from PIL import Image

image = Image.open("photo.jpg").convert("{mode}").resize(({columns}, {rows}))
images = np.asarray(image, dtype=np.float32){axes} / 255"""


def name_file(place: str, file: str) -> tuple[str, str]:
    """Return Python that names a file of a folder or of a hub's repository: imports, expression."""
    if place.startswith(HUB):
        expression = f'hf_hub_download("{place.removeprefix(HUB)}", "{file}")'
        return "from huggingface_hub import hf_hub_download\n", expression
    return "", f'"{place}/{file}"'
