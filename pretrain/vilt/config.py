"""The configuration of image-text pretraining: what `pretrain/vilt/run.py` is told."""

from dataclasses import dataclass, fields

from data.captions.config import CaptionedDataConfig
from data.settings import require, setting
from pretrain.encoder import EncoderConfig
from pretrain.evaluation.config import ProbeConfig
from pretrain.objective.config import CorruptionConfig, TargetConfig
from pretrain.training.config import OptimConfig, RunConfig


@dataclass(frozen=True)
class TextConfig:
    """The text's embedding, and which of its words are masked.

    Source: Kim et al. 2021 (ViLT), arXiv:2102.03334, sections 3.2 and 3.3; Devlin et al. 2019.
    """

    ratio: float = setting(0.15, "fraction of a caption's pieces, in whole words, to be predicted")
    mask_ratio: float = setting(0.8, "fraction of those words that become the mask's piece")
    random_ratio: float = setting(0.1, "fraction that become random pieces; the rest stay")
    dropout: float = setting(0.0, "dropout of the text's embeddings; the paper has 0.1")

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, f"text.ratio={self.ratio} is not in (0, 1]; the paper has .15")
        for key in ("mask_ratio", "random_ratio"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"text.{key}={value} is not in 0..1")
        total = self.mask_ratio + self.random_ratio
        require(
            total <= 1 + 1e-9,
            f"text.mask_ratio + text.random_ratio = {total:g} is over 1; the paper has 0.8 + 0.1",
        )
        require(0 <= self.dropout < 1, f"text.dropout={self.dropout} is not in [0, 1)")


@dataclass(frozen=True)
class LossConfig:
    """The weights of the objectives; 0 leaves one out.

    Source: Kim et al. 2021 (ViLT), section 3.3: matching, with word-patch alignment, and words.
    """

    matching: float = setting(1.0, "weight of: is this the image's own caption, or another's")
    words: float = setting(1.0, "weight of: the masked words of the image's own caption")
    alignment: float = setting(0.1, "weight of: optimal transport between words and patches")
    patches: float = setting(0.0, "weight of: the corrupted patches, from image and caption")

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(value >= 0, f"loss.{field.name}={value} is below 0; 0 leaves it out")
        require(
            self.matching > 0 or self.words > 0 or self.patches > 0,
            "loss.matching, loss.words and loss.patches are all 0; give one of them a weight",
        )
        require(
            self.alignment == 0 or self.matching > 0,
            f"loss.alignment={self.alignment} needs loss.matching, whose pairs it aligns; "
            "set loss.alignment=0",
        )


@dataclass(frozen=True)
class ViltConfig:
    """Everything that an image-text pretraining run is told."""

    run: RunConfig = setting(RunConfig, "where, how long between saves, on what")
    data: CaptionedDataConfig = setting(CaptionedDataConfig, "the images and their captions")
    encoder: EncoderConfig = setting(EncoderConfig, "the transformer")
    text: TextConfig = setting(TextConfig, "the captions' embedding and masking")
    loss: LossConfig = setting(LossConfig, "the weights of the objectives")
    corruption: CorruptionConfig = setting(CorruptionConfig, "the patches of loss.patches")
    target: TargetConfig = setting(TargetConfig, "what of them is predicted")
    optim: OptimConfig = setting(OptimConfig, "the steps")
    probe: ProbeConfig = setting(ProbeConfig, "whether the image half is learning")

    def __post_init__(self) -> None:
        require(
            bool(self.data.shards),
            "data.shards is missing; name shards of images with captions, as in "
            "data.shards='shards/train-*.tar'",
        )
        require(
            self.encoder.sees_masked,
            "encoder.sees_masked=false is not for images with captions; leave it out",
        )
        for group, default in (("corruption", CorruptionConfig()), ("target", TargetConfig())):
            require(
                self.loss.patches > 0 or getattr(self, group) == default,
                f"{group}.* has no effect with loss.patches=0; give loss.patches a weight, or "
                f"leave {group}.* out",
            )
        require(
            self.loss.patches == 0 or self.data.long_side is None,
            f"loss.patches={self.loss.patches} needs images of one size; leave data.long_side out",
        )
        require(
            self.target.kind != "words",
            "target.kind=words is not for images with captions; take another target.kind",
        )
