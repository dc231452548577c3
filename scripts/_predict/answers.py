"""From images to the classes that a classifier names, a batch at a time."""

import argparse
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.devices import num_cores
from data.disks import explain
from data.images.decoding import UnreadableImage
from data.images.transforms import evaluation_crop
from data.settings import RunStopped, memory_errors
from finetune.head import Classifier
from pretrain.encoder.facts import image_size, num_channels


class Answer(NamedTuple):
    """The classes of an image with their probabilities, best first; or why it has none."""

    path: Path
    classes: list[tuple[str, float]]
    error: str | None = None

    def record(self) -> dict[str, Any]:
        r"""Return it for JSON; a path's bytes that are not UTF-8 as Python has them, as \udcXX."""
        path = str(self.path)
        if self.error is not None:
            return {"path": path, "error": self.error}
        classes = [{"name": name, "probability": value} for name, value in self.classes]
        return {"path": path, "classes": classes}


def predict(
    model: Classifier, paths: Sequence[Path], options: argparse.Namespace
) -> Iterator[Answer]:
    """Answer image by image, in order, with no more than a batch of them in memory."""
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    with ThreadPoolExecutor(num_cores()) as executor:
        for first in range(0, len(paths), options.batch_size):
            own = paths[first : first + options.batch_size]
            crops = _read(own, model.encoder, executor)
            good = [crop for crop in crops if isinstance(crop, Tensor)]
            shown = iter(_classify(model, torch.stack(good), options) if good else [])
            for path, crop in zip(own, crops, strict=True):
                is_good = isinstance(crop, Tensor)
                yield Answer(path, next(shown)) if is_good else Answer(path, [], crop)


def _read(paths: Sequence[Path], encoder: Any, executor: Executor) -> list[Tensor | str]:
    """Read images as uint8 (C, H, W); of those that cannot be read, what is wrong."""
    size, channels = image_size(encoder), num_channels(encoder)

    def read(path: Path) -> Tensor | str:
        try:
            return evaluation_crop(_content(path), size, channels)
        except UnreadableImage as error:
            return str(error)
        except OSError as error:
            return explain(error)

    return list(executor.map(read, paths))


def _content(path: Path) -> bytes:
    """Read a file, but no pipe or device, which may never end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a folder says what is wrong with it
        raise UnreadableImage("is a pipe, a socket or a device, and no file")
    return path.read_bytes()


@memory_errors("a smaller --batch-size")
@torch.inference_mode()
def _classify(
    model: Classifier, images: Tensor, options: argparse.Namespace
) -> list[list[tuple[str, float]]]:
    """Choose the classes to show of each image."""
    device = next(model.parameters()).device
    logits = model.logits(images.to(device)).cpu().double()  # (B, K)
    if not logits.isfinite().all():
        raise RunStopped(
            f"MODEL={options.model} answers with what is no finite number: its training diverged; "
            "give another model"
        )
    probability = logits.sigmoid() if model.is_multi_label else logits.softmax(1)
    ranked = probability.sort(dim=1, descending=True, stable=True)
    counts = [options.top] * len(images)
    if options.threshold is not None:
        counts = (probability >= options.threshold).sum(1).tolist()
    rows = zip(ranked.indices.tolist(), ranked.values.tolist(), counts, strict=True)
    return [
        [(model.class_names[k], value) for k, value in zip(classes[:n], values[:n], strict=True)]
        for classes, values, n in rows
    ]
