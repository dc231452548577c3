"""The subject of `step` and `run`: one encoder, at one precision and compile setting."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from data.config import DataConfig
from data.settings import require
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.facts import patch_size
from pretrain.encoder.timm_model import DEFAULT_NAME
from pretrain.objective.config import CorruptionConfig
from pretrain.training.config import OptimConfig, RunConfig
from scripts._benchmark.alternatives.encoder import transformers_settings
from scripts._benchmark.options import Training

MASKFREE = CorruptionConfig(ratio=0.75, mask_ratio=1.0, random_ratio=0.0)
WORDS = Path(__file__).resolve().parents[3] / "configs/pretrain/cifar10.yaml"
_SIZE = 224  # pixels
_SUFFIXES = (".yaml", ".yml")
_OURS_ALONE = ("init", "position", "position_at", "patch_embed", "stem")  # keys of the encoder


@dataclass(frozen=True)
class Subject(Training):
    """The encoder that is trained, and how; the same for all variants."""

    @classmethod
    def of(cls, options: Training) -> Self:
        """Take what is trained from a benchmark's options."""
        return cls(**{key.name: getattr(options, key.name) for key in fields(Training)})

    @cached_property
    def _given(self) -> PretrainConfig:
        is_file = self.encoder.endswith(_SUFFIXES)
        encoder = self.encoder if is_file else f"encoder.name={self.encoder}"
        return load(PretrainConfig, [encoder, "data.shards=unread"])

    @property
    def side(self) -> int:
        """Pixels a side of the images.

        Raises:
            UserError: The configuration is not right, or its images are not square.
        """
        height, width = self._given.data.size or (_SIZE, _SIZE)
        require(
            self.image_size is not None or height == width,
            f"--encoder={self.encoder} takes images of {height} x {width} pixels, and not all that "
            "is measured can; give --image-size",
        )
        return self.image_size or height

    def encoder_config(self, *, sees_masked: bool = True) -> EncoderConfig:
        """Return timm's encoder with its sizes.

        Raises:
            UserError: The configuration is not right, or has what the alternatives have not.
        """
        config, own = self._given.encoder, EncoderConfig()
        values = {
            f"encoder.{key}": (getattr(config, key), getattr(own, key)) for key in _OURS_ALONE
        }
        values["data.channels"] = (self._given.data.channels or 3, 3)
        for key, (value, usual) in values.items():
            require(
                value == usual,
                f"{key}={value} of --encoder={self.encoder} has no equal in what it is measured "
                "against; take a configuration without it",
            )
        return replace(config, name=config.name or DEFAULT_NAME, sees_masked=sees_masked)

    def run_config(self, folder: str = "unused", **others: Any) -> RunConfig:
        """Return the keys of a run that has this precision, compile setting and threads."""
        return RunConfig(
            dir=folder,
            precision=self.precision,
            compile=self.compile,
            threads=self.threads,
            checkpoint_every=0,
            checkpoint_minutes=0,
            **others,
        )

    def pretrain_config(self, *, is_maskfree: bool = False, **run: Any) -> PretrainConfig:
        """Return our pretraining with all defaults, or mask-free: three quarters masked.

        Raises:
            UserError: As `encoder_config`.
        """
        return PretrainConfig(
            run=self.run_config(**run),
            data=DataConfig(shards=["unread"], image_size=self.side),
            encoder=self.encoder_config(sees_masked=not is_maskfree),
            corruption=MASKFREE if is_maskfree else CorruptionConfig(),
            optim=OptimConfig(batch_size=self.batch_size),
        )

    def words_config(self, **run: Any) -> PretrainConfig:
        """Return our recipe of visual words, of this encoder: mask-free, with cross-attention.

        Raises:
            UserError: As `encoder_config`.
        """
        recipe = load(PretrainConfig, [str(WORDS)])
        own = self.pretrain_config(is_maskfree=True, **run)
        return replace(
            own,
            encoder=replace(own.encoder, position=recipe.encoder.position),
            corruption=recipe.corruption,
            target=recipe.target,
            decoder=recipe.decoder,
        )

    def make_encoder(self) -> VisionTransformer:
        """Build our encoder.

        Raises:
            UserError: As `encoder_config`; or sizes do not fit.
        """
        return make_encoder(self.encoder_config(), (self.side, self.side))

    def make_bare(self) -> nn.Module:
        """Build timm's encoder as it comes."""
        config = self.encoder_config()
        sizes: dict[str, Any] = {"img_size": self.side, "num_classes": 0, **config.overrides}
        return timm.create_model(str(config.name), **sizes)

    @cached_property
    def sizes(self) -> dict[str, Any]:
        """The encoder's sizes by transformers' names, as the alternatives are given them.

        Raises:
            UserError: As `make_encoder`; or patches are not square.
        """
        with torch.device("meta"):
            encoder = self.make_encoder()
        height, width = patch_size(encoder)
        require(
            height == width,
            f"--encoder={self.encoder} has patches of {height} x {width} pixels, and not all that "
            "is measured can; take one with square patches",
        )
        return transformers_settings(encoder)

    @property
    def num_patches(self) -> int:
        """N."""
        return (self.side // self.sizes["patch_size"]) ** 2
