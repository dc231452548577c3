"""The graph that ONNX and torch.export hold: pixels in 0..1 go in, and it normalises itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.images.limits import MODES
from pretrain.encoder.tokens import Normalise
from scripts._export.format import HUB, Format, Outputs
from scripts._export.source import Source, tokens_name

INPUT = "images"
_CLASSES = "classes.txt"

Run = Callable[[Tensor], Outputs]


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

    def forward(self, images: Tensor) -> Outputs:
        """Run float32 images (B, C, H, W); the outputs are those of `Source.output_names`."""
        pixels = images * 255
        if self.classifier is not None:
            return {"logits": self.classifier.logits(pixels)}
        tokens = self.encoder.forward_features(self.normalise(pixels))
        return {tokens_name(self.encoder): tokens, "features": self.encoder.forward_head(tokens)}


def graph_format(
    name: str,
    library: str,
    file: str,
    packages: tuple[str, ...],
    save: Callable[[Graph, Source, Path], None],
    load: Callable[[Path], Run],
    usage: Callable[[Source, str], str],
) -> Format:
    """Return a format whose folder holds a graph, and the class names beside it.

    Args:
        name: As in `Format`.
        library: Likewise.
        file: The graph's.
        packages: As in `Format`.
        save: Writes a graph to a path.
        load: Reads it back: images in 0..1 -> outputs.
        usage: Python that runs `images`, of the source and an expression that names the file.
    """

    def write(source: Source, folder: Path) -> None:
        folder.mkdir()
        save(Graph(source).eval(), source, folder / file)
        if source.class_names:  # a graph has no place for them
            text = "".join(f"{name}\n" for name in source.class_names)
            (folder / _CLASSES).write_text(text, encoding="utf-8")

    def use(source: Source, place: str) -> str:
        imports, named = "", f'"{place}/{file}"'
        if place.startswith(HUB):
            imports = "from huggingface_hub import hf_hub_download\n"
            named = f'hf_hub_download("{place.removeprefix(HUB)}", "{file}")'
        head = f"import numpy as np\nimport {packages[-1] if packages else 'torch'}\n{imports}"
        return f"{head}{_read_photo(source)}\n{usage(source, named)}"

    @torch.no_grad()
    def run(folder: Path, images: Tensor) -> Outputs:
        return _in_two_batches(load(folder / file), images / 255)

    return Format(name, library, packages, write, run, use, _describe)


def export_arguments(source: Source) -> dict[str, Any]:
    """Return an example and the free batch size, as torch's exporters take them."""
    return {
        "args": (torch.rand(2, source.channels, *source.size),),
        "dynamic_shapes": {INPUT: {0: torch.export.Dim("batch")}},
    }


def _in_two_batches(run: Run, images: Tensor) -> Outputs:
    """Run one image alone and all of them with one more, so that two batch sizes are used."""
    alone, together = run(images[:1]), run(torch.cat([images, images[:1]]))
    return {name: torch.cat([alone[name], together[name][1:-1]]) for name in together}


def _describe(source: Source) -> list[str]:
    shape = ", ".join(map(str, (source.channels, *source.size)))
    colours = source.colours if source.channels in MODES else "values"
    lines = [f"input {INPUT}: float32 (batch, {shape}), {colours} in 0..1; any batch size"]
    outputs = source.outputs(torch.zeros(1, source.channels, *source.size, dtype=torch.uint8))
    for name in source.output_names:
        shape = ", ".join(map(str, outputs[name].shape[1:]))
        lines.append(f"output {name}: float32 (batch, {shape})")
    if source.class_names:
        lines.append(f"{_CLASSES} names the classes, in order")
    return lines


def _read_photo(source: Source) -> str:
    """Return Python that makes `images` of photo.jpg; of image.npy, where they are no pictures."""
    rows, columns = source.size
    if source.channels not in MODES:
        return f"""image = np.load("image.npy")  # uint8 ({rows}, {columns}, {source.channels})
images = image.astype(np.float32).transpose(2, 0, 1)[None] / 255"""
    axes = ".transpose(2, 0, 1)[None]" if source.channels == 3 else "[None, None]"
    return f"""from PIL import Image

image = Image.open("photo.jpg").convert("{MODES[source.channels]}").resize(({columns}, {rows}))
images = np.asarray(image, dtype=np.float32){axes} / 255"""
