"""Features that are kept on disk, under the fingerprint of all that they depend on."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from data.disks import explain
from data.samples import Samples
from data.settings import RunStopped
from data.shards import atomic_write
from data.text import count
from finetune.frozen.patch_file import num_patch_bytes, write_patches
from pretrain.evaluation.features import PATCHES, Features, View, extract
from pretrain.evaluation.fingerprint import fingerprint
from pretrain.ranks import first_problem, on_main
from pretrain.records.bad_samples import say_unusable

logger = logging.getLogger(__name__)


class _File(NamedTuple):
    """Features of some views: all of them pooled, or all of them patches."""

    path: Path
    digest: str
    views: list[View]
    has_patches: bool


class CachedSplit:
    """The features of a split: on disk, or yet to be read from its images, and kept.

    Args:
        accelerator: What `start` gave.
        encoder: On this rank's device.
        samples: Labelled, in listed order.
        views: What is read.
        folder: Where features are kept.
        key: The split's: train or val.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        encoder: VisionTransformer,
        samples: Samples,
        views: Sequence[View],
        folder: Path,
        key: str,
    ) -> None:
        encoder.eval()
        self._accelerator = accelerator
        self._encoder = encoder
        self._samples = samples
        self._key = key
        files = list(self._files(views, folder))
        self._found: dict[View, Features] = {}
        if accelerator.is_main_process:
            for file in files:
                self._found |= self._read(file)
        self._missing = on_main(
            accelerator, lambda: [file for file in files if file.views[0] not in self._found]
        )

    def _files(self, views: Sequence[View], folder: Path) -> Iterator[_File]:
        """Yield a file for what is pooled, and one for patches."""
        for has_patches in (False, True):
            own = [view for view in views if (view.pooling == PATCHES) is has_patches]
            if own:
                precision = self._accelerator.mixed_precision
                digest = fingerprint(self._encoder, self._samples, own, precision)
                path = folder / f"{self._key}-{digest[:16]}.safetensors"
                yield _File(path, digest, own, has_patches)

    def _read(self, file: _File) -> dict[View, Features]:
        """Read a file, if it is there, and say so."""
        found = read_features(file.path, file.digest, file.views)
        for features in list(found.values())[:1]:
            missing = self._samples.manifest.num_samples - len(features.labels)
            bad = f" ({count(missing, 'image')} cannot be used)" if missing else ""
            logger.info("the features of data.%s are taken from %s%s", self._key, file.path, bad)
        return found

    @property
    def num_new_bytes(self) -> int:
        """Bytes of the patches that are yet to be written."""
        num_layers = sum(len(file.views) for file in self._missing if file.has_patches)
        return num_patch_bytes(self._encoder, self._samples, num_layers)

    def features(self, batch_size: int, workers: int) -> dict[View, Features]:
        """Return the features on the CPU, on the main process; on the others nothing.

        Args:
            batch_size: Images a forward pass on each rank.
            workers: Loader processes a rank.

        Raises:
            RunStopped: Patches cannot be written, or what the encoder gives is no number.
        """
        if self._missing:
            self._make(batch_size, workers)
        return self._found

    def _make(self, batch_size: int, workers: int) -> None:
        """Read what is missing in one pass over the images, and keep it."""
        name = f"data.{self._key}"
        logger.info("reading the features of %s", name)
        views = [view for file in self._missing if not file.has_patches for view in file.views]
        accelerator, encoder, samples = self._accelerator, self._encoder, self._samples
        with ExitStack() as stack:
            writer = None
            for file in self._missing:
                if file.has_patches:
                    layers = [view.layer for view in file.views]
                    writer = stack.enter_context(write_patches(file.path, file.digest, layers))
            made = extract(accelerator, encoder, samples, views, batch_size, workers, name, writer)
            say_unusable(made.unusable)
            problem = None if writer is None else first_problem(writer.close)
            if problem is not None:
                raise RunStopped(f"the patches of {name} are not kept: {problem}", is_agreed=True)
        if accelerator.is_main_process:
            for file in self._missing:
                if file.has_patches:
                    self._found |= read_features(file.path, file.digest, file.views)
                else:
                    self._found |= made.features
                    _keep(file.path, file.digest, made.features)


def read_features(path: Path, expected: str, views: Sequence[View]) -> dict[View, Features]:
    """Read a file of features; nothing if there is none, it is torn, or it is of something else."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("fingerprint") != expected:
                return {}
            labels, positions = file.get_tensor("labels"), file.get_tensor("positions")
            values = _values(file, views)
            return {
                view: Features(of_view, labels, positions)
                for view, of_view in zip(views, values, strict=True)
            }
    except (OSError, SafetensorError) as error:
        logger.warning("%s cannot be read, so the features are made anew: %s", path, error)
        return {}


def _values(file: Any, views: Sequence[View]) -> list[Tensor]:
    """Return the views' features; patches stay on disk until they are indexed."""
    if views[0].pooling == PATCHES:
        return list(file.get_tensor(PATCHES).unbind(1))
    return [file.get_tensor(_name(view)) for view in views]


def _keep(path: Path, digest: str, features: dict[View, Features]) -> None:
    """Write features, whole or not at all; a disk that is full costs the next start alone."""
    any_view = next(iter(features.values()))
    tensors = {"labels": any_view.labels, "positions": any_view.positions}
    tensors |= {_name(view): of.values for view, of in features.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(save(tensors, {"fingerprint": digest}))
    except OSError as error:
        logger.warning("the features are not kept in %s: %s", path, explain(error))


def _name(view: View) -> str:
    return f"{view.layer}/{view.pooling}"
