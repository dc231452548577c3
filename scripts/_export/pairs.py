"""An image-text model as the source of an export, and the pairs that it is compared on."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from data.captions.aspect import Aspect
from data.captions.read import caption_extension, read_captions
from data.images.decoding import UnreadableImage
from data.images.transforms import evaluation_crop
from data.index.open import open_manifest
from data.reading.bad import BadSample
from data.reading.reader import ShardReader
from data.settings import RunStopped, UserError
from data.shards import caption_lines, choose_image
from pretrain.vilt.model import ViltModel
from pretrain.vilt.saved import Vilt, load_vilt
from scripts._export.pictures import NUM_IMAGES, draw, is_local, list_files
from scripts._export.source import Source, read_config

_SPLITS = ("val_shards", "shards")


@dataclass(frozen=True)
class Pairs:
    """Images with their captions.

    Attributes:
        images: uint8 (C, H, W), each as the model takes it.
        captions: As many.
    """

    images: list[Tensor]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class PairSource(Source):
    """An image-text model to export; its `encoder` is the image half.

    Attributes:
        vilt: The whole.
        model_name: The class of transformers that it becomes.
    """

    vilt: Vilt
    model_name: str
    noun: ClassVar[str] = "pair"

    @property
    def task(self) -> str:
        """What it is for, in the hub's words."""
        return "fill-mask" if self.model_name == "ViltForMaskedLM" else "feature-extraction"

    @property
    def what(self) -> str:
        """What it is, for people."""
        return f"{self.model_name} of images and text"

    @property
    def model(self) -> ViltModel:
        """The model."""
        return self.vilt.model

    @property
    def left_out(self) -> list[str]:
        """Nothing: the format says itself what it lacks."""
        return []

    @property
    def aspect(self) -> Aspect | None:
        """How large an image becomes that keeps its aspect; None where all are of one size."""
        long = self.vilt.config.data.long_side
        return None if long is None else Aspect(self.size[0], long, self.model.patch[0])

    def prepare(self, content: bytes) -> Tensor:
        """Decode an image as the model takes it: uint8 (C, H, W), of whole patches.

        Raises:
            UnreadableImage: It is damaged, or has other channels.
        """
        aspect = self.aspect
        if aspect is None:
            return evaluation_crop(content, self.size, self.channels)
        canvas, grid = aspect.place(content, self.channels)
        rows, columns = (number * aspect.patch for number in grid)
        return canvas[:, :rows, :columns]

    @torch.no_grad()
    def outputs(self, inputs: Any) -> dict[str, Tensor]:
        """Run it: `Pairs` -> all that transformers' model may be compared with, by name."""
        model = self.model
        tokens = self._encode(inputs.captions)
        fused = model.fuse(tokens, model.image_tokens(self._batch(inputs.images)))
        found = {"pieces": tokens.float(), "text": fused.text, "image": fused.image[:, 0]}
        if model.words is not None:
            found["words"] = model.words(fused.text, model.text.words.weight)
        if model.pooler is not None:
            logits = model.match(fused)
            found["pooled"] = model.pooler(fused.text[:, 0])
            found["score"] = logits[:, 1:] - logits[:, :1]
        return found

    def _encode(self, captions: list[str]) -> Tensor:
        length = self.model.max_tokens
        encoded = (self.vilt.vocabulary.encode(caption, length).tokens for caption in captions)
        return torch.stack([torch.from_numpy(tokens) for tokens in encoded])

    def _batch(self, images: list[Tensor]) -> dict[str, Tensor]:
        aspect = self.aspect
        if aspect is None:
            return {"image": torch.stack(images)}
        canvas = images[0].new_zeros(len(images), self.channels, aspect.long, aspect.long)
        for place, image in zip(canvas, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        grid = torch.tensor([image.shape[1:] for image in images]) // aspect.patch
        return {"image": canvas, "grid": grid, "random_key": torch.arange(len(images))}


# ---------------------------------------------------------------- pairs


def pick_pairs(source: PairSource, given: list[Path]) -> tuple[Pairs, str]:
    """Choose pairs: images that are given, with the captions beside them, else the run's own.

    A file without a `.txt` of its name, and a run whose shards are gone, get random words.

    Returns:
        The pairs, and what they are.

    Raises:
        UserError: What was given cannot be read.
    """
    if given:
        return _of_files(source, list_files(given))
    for split in _SPLITS:
        pairs = _of_shards(source, split)
        if pairs is not None:
            return pairs, f"data.{split}"
    images = list(draw((source.channels, *source.size)))
    return Pairs(images, _random_captions(source, len(images))), "random images and words"


def _of_files(source: PairSource, files: list[Path]) -> tuple[Pairs, str]:
    images: list[Tensor] = []
    captions = _random_captions(source, len(files))
    for number, file in enumerate(files):
        beside = file.with_suffix(".txt")
        try:
            images.append(source.prepare(file.read_bytes()))
            lines = caption_lines(beside.read_bytes()) if beside.is_file() else []
        except (UnreadableImage, OSError, UnicodeDecodeError) as error:
            raise UserError(f"--images: {file}: {error}; name other images") from error
        captions[number] = (lines or captions)[0 if lines else number]
    name = f"{files[0]}" + f" and {len(files) - 1} more" * (len(files) > 1)
    return Pairs(images, captions), name


def _of_shards(source: PairSource, split: str) -> Pairs | None:
    """Read pairs of the run's data, if it lies on this machine and is still there."""
    spec: Any = source.config.get("data", {}).get(split)
    if not spec or not is_local(spec):
        return None
    try:
        found = list(islice(_read(source, open_manifest(spec, f"data.{split}")), NUM_IMAGES))
    except (UserError, RunStopped, OSError):
        return None
    return Pairs([image for image, _ in found], [text for _, text in found]) if found else None


def _read(source: PairSource, manifest: Any) -> Iterator[tuple[Tensor, str]]:
    """Yield the samples that have an image and a caption, in the order of the shards."""
    reader, key = ShardReader(manifest), source.vilt.config.data.caption_key
    text = caption_extension(key)
    for shard, row in enumerate(manifest.shards):
        for place in range(row.num_samples):
            image = choose_image(reader.extensions(shard, place), source.channels)
            if image is None:
                continue
            try:
                members = reader.read(shard, place, {image, text})
                yield source.prepare(members[image]), read_captions(members, key)[0]
            except (BadSample, UnreadableImage):
                continue


def _random_captions(source: PairSource, number: int) -> list[str]:
    words = source.vilt.vocabulary
    generator = torch.Generator().manual_seed(0)
    special = set(words.special)
    pieces = [words.piece(piece) for piece in range(words.size) if piece not in special]
    longest = source.model.max_tokens - 1
    rows = torch.randint(len(pieces), (number, longest), generator=generator).tolist()
    return [" ".join(pieces[n] for n in row[: 1 + at % longest]) for at, row in enumerate(rows)]


# ---------------------------------------------------------------- loading


_HEADS = {  # of transformers' classes -> our module
    "ViltForMaskedLM": "words",
    "ViltForImageAndTextRetrieval": "matching",
}


def load_pair_source(path: str, model_name: str | None) -> PairSource:
    """Load an image-text run.

    Args:
        path: The run's folder.
        model_name: The class of transformers; None: the first one whose head the run has.

    Raises:
        UserError: The run has no checkpoint, or no such head.
    """
    vilt = load_vilt(path)
    name = model_name or next((n for n in _HEADS if has_head(vilt.model, n)), "ViltModel")
    if not has_head(vilt.model, name):
        raise UserError(
            f"--model={name}: {path} has no head for it (loss.{_HEADS[name]}=0); give "
            "--model=ViltModel"
        )
    return PairSource(path, vilt.model.encoder, None, read_config(path), vilt, name)


def has_head(model: ViltModel, model_name: str) -> bool:
    """Tell whether a model has the head of one of transformers' classes."""
    head = _HEADS.get(model_name)
    return head is None or getattr(model, head) is not None


def other_heads(source: PairSource) -> list[str]:
    """Return the classes whose heads the model has, but for the one that it becomes."""
    return [n for n in _HEADS if n != source.model_name and has_head(source.model, n)]
