"""The source of an export: an encoder alone, or a classifier."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.settings import UserError
from data.text import count
from finetune.head import Classifier
from finetune.load import load_classifier
from pretrain.configuration.layers import read_yaml
from pretrain.encoder import load_encoder
from pretrain.encoder.extensions import timm_format
from pretrain.encoder.facts import image_data, image_size, num_channels
from pretrain.encoder.saved import find_saved
from pretrain.encoder.tokens import Normalise
from pretrain.records.kinds import Kind, kind_of


@dataclass(frozen=True)
class Source:
    """A model to export, in evaluation mode.

    Attributes:
        path: RUN, as it was typed.
        encoder: A timm model; its own `head` gives logits where the classifier has no other.
        classifier: None for an encoder alone.
        config: The run's config.yaml as plain values; empty where there is none.
    """

    path: str
    encoder: Any
    classifier: Classifier | None
    config: dict[str, Any]
    noun: ClassVar[str] = "image"  # what it is compared on

    @property
    def model(self) -> nn.Module:
        """All of it."""
        return self.classifier or self.encoder

    @property
    def task(self) -> str:
        """What it is for, in the hub's words."""
        return f"image-{'classification' if self.classifier else 'feature-extraction'}"

    @property
    def what(self) -> str:
        """What it is, for people."""
        if self.classifier is None:
            return "encoder"
        return f"classifier of {count(len(self.class_names), 'class')}"

    @property
    def left_out(self) -> list[str]:
        """Lines about what RUN has beside it."""
        left = {
            Kind.IMAGE_TEXT: "it is the image half of a model of images and text: the words' "
            "embeddings and the heads are left out; --to transformers keeps them",
            Kind.IMAGE_TEXT_TUNING: "it is the image half of a classifier of images with "
            "sentences: the words' embeddings and the head are left out",
        }
        kind = kind_of(self.config)
        return [left[kind]] if kind in left else []

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return image_size(self.encoder)

    @property
    def channels(self) -> int:
        """C of the images."""
        return num_channels(self.encoder)

    @property
    def colours(self) -> str:
        """The kind of the channels, in words."""
        return {1: "grey", 3: "RGB"}.get(self.channels, f"{self.channels} channels")

    @property
    def width(self) -> int:
        """Number of features."""
        return int(self.encoder.num_features)

    @property
    def class_names(self) -> list[str]:
        """One a class, in order; none of an encoder alone."""
        return self.classifier.class_names if self.classifier else []

    @property
    def output_names(self) -> list[str]:
        """The outputs of a graph: `logits`, or those of the encoder alone."""
        return ["logits"] if self.classifier else [tokens_name(self.encoder), "features"]

    def timm_encoder(self, form: str) -> Any:
        """Return the encoder as timm itself has it, equal in its outputs.

        Raises:
            UserError: timm has none such.
        """
        is_ours = isinstance(self.encoder, VisionTransformer)
        return timm_format(self.encoder, f"--to {form}") if is_ours else self.encoder

    @torch.no_grad()
    def outputs(self, inputs: Any) -> dict[str, Tensor]:
        """Run it: uint8 (B, C, H, W) -> all that a format may be compared with, by name."""
        tokens = self.encoder.forward_features(Normalise(self.encoder)(inputs))
        last = {"features": self.encoder.forward_head(tokens)}
        if self.classifier is not None:
            last = {"logits": self.classifier.logits(inputs)}
        return {tokens_name(self.encoder): tokens} | last


def tokens_name(encoder: object) -> str:
    """Name what a timm model's `forward_features` gives."""
    return "tokens" if isinstance(encoder, VisionTransformer) else "feature_map"


def load_source(path: str, keep_head: bool) -> Source:
    """Load what RUN names.

    Args:
        path: A run, a folder that timm or transformers wrote, or a timm name.
        keep_head: A classifier is to stay one.

    Raises:
        UserError: There is nothing of that name.
    """
    config = read_config(path)
    is_classifier = kind_of(config) is Kind.FINE_TUNING
    place = Path(path) if is_classifier else _find_classifier(path)
    if place is None:
        return Source(path, load_encoder(path).eval(), None, config)
    classifier = load_classifier(place).eval()
    encoder = classifier.encoder
    if keep_head:
        return Source(path, encoder, classifier, config)
    encoder.reset_classifier(0)  # it still pools as the head did
    image_data(encoder).pop("label_names", None)
    encoder.problem_type = None
    return Source(path, encoder, None, config)


def _find_classifier(path: str) -> Path | None:
    """Return the folder of a whole timm classifier, or None."""
    saved = find_saved(path)
    if saved is None or saved.is_transformers or saved.num_classes == 0:
        return None
    return saved.folder


def read_config(run: str) -> dict[str, Any]:
    """Return a run's config.yaml as plain values; empty where there is none."""
    path = Path(run, "config.yaml")
    if not path.is_file():
        return {}
    return read_yaml(str(path))


def has_text(config: dict[str, Any]) -> bool:
    """Tell whether a run's configuration is that of a model of images and text."""
    return kind_of(config) is Kind.IMAGE_TEXT


def refuse_other_heads(source: Source, form: str) -> None:
    """Refuse a head that stands beside the encoder, where a format knows one linear layer alone."""
    head = source.classifier.head if source.classifier else None
    if head is None:
        return
    what = "a head with a hidden layer" if len(head) > 1 else "a head on two poolings"
    raise UserError(
        f"--to {form} cannot hold {what} (head.kind, head.pooling of {source.path}); "
        "give --no-head, or --to onnx"
    )
