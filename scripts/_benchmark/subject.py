"""What trains in `step` and `run`: one encoder, at one precision and compile setting."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from data.settings import require
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.config import DEFAULT_NAME
from pretrain.encoder.facts import patch_size
from pretrain.training.config import RunConfig

Step = Callable[[], object]

_SIZE = 224  # pixels
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Shape:
    """The shape of a plain vision transformer of square images.

    Attributes:
        width: D.
        depth: Blocks.
        heads: Of each block's attention.
        mlp_width: Hidden units of each block's MLP.
        patch: Pixels a side.
        image: Pixels a side.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: int
    image: int

    @property
    def num_patches(self) -> int:
        """N."""
        return (self.image // self.patch) ** 2


@dataclass(frozen=True)
class Subject:
    """What is trained, and how; the same for all variants.

    Attributes:
        encoder: timm's name, or a CONFIG.yaml whose encoder and image size are taken.
        image_size: Pixels a side; None: the configuration's, else 224.
        batch_size: Images a step.
        precision: fp32 or bf16.
        compile: Compile each variant's model.
        threads: CPU threads; 0: all.
    """

    encoder: str
    image_size: int | None
    batch_size: int
    precision: str
    compile: bool
    threads: int

    @cached_property
    def _config(self) -> PretrainConfig:
        is_file = self.encoder.endswith(_SUFFIXES)
        encoder = self.encoder if is_file else f"encoder.name={self.encoder}"
        return load(PretrainConfig, [encoder, "data.shards=unread"])

    @property
    def side(self) -> int:
        """Pixels a side of the images.

        Raises:
            UserError: The configuration is not right, or its images are not square.
        """
        height, width = self._config.data.size or (_SIZE, _SIZE)
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
        config, own = self._config.encoder, EncoderConfig()
        keys = ("init", "position", "position_at", "patch_embed", "stem")
        values = {f"encoder.{key}": (getattr(config, key), getattr(own, key)) for key in keys}
        channels = self._config.data.channels
        for key, (value, usual) in (values | {"data.channels": (channels or 3, 3)}).items():
            require(
                value == usual,
                f"{key}={value} of --encoder={self.encoder} has no equal in what it is measured "
                "against; take a configuration without it",
            )
        return replace(config, name=config.name or DEFAULT_NAME, sees_masked=sees_masked)

    def make_encoder(self, *, sees_masked: bool = True) -> VisionTransformer:
        """Build our encoder.

        Raises:
            UserError: As `encoder_config`; or sizes do not fit.
        """
        return make_encoder(self.encoder_config(sees_masked=sees_masked), (self.side, self.side))

    def make_bare(self) -> nn.Module:
        """Build timm's encoder as it comes."""
        config = self.encoder_config()
        sizes: dict[str, Any] = {"img_size": self.side, "num_classes": 0, **config.overrides}
        return timm.create_model(str(config.name), **sizes)

    @cached_property
    def shape(self) -> Shape:
        """The sizes that the alternatives are given.

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
        block = cast(Any, encoder.blocks[0])
        sizes = (encoder.embed_dim, len(encoder.blocks), block.attn.num_heads)
        return Shape(*sizes, block.mlp.fc1.out_features, height, self.side)

    def run_config(self, folder: str = "unused") -> RunConfig:
        """Return the keys of a run that has this precision, compile setting and threads."""
        return RunConfig(
            dir=folder,
            precision=self.precision,
            compile=self.compile,
            threads=self.threads,
            checkpoint_every=0,
            checkpoint_minutes=0,
        )
