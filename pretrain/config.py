"""Configurations: dataclasses <- YAML <- command line, checked before anything runs."""

from dataclasses import dataclass

from data.config import DataConfig
from data.settings import require, setting
from pretrain.encoder import EncoderConfig
from pretrain.evaluation.config import ProbeConfig
from pretrain.objective.config import CorruptionConfig, DecoderConfig, TargetConfig
from pretrain.training.config import OptimConfig, RunConfig


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that a pretraining run is told."""

    run: RunConfig = setting(RunConfig, "where, how long between saves, on what")
    data: DataConfig = setting(DataConfig, "the images")
    encoder: EncoderConfig = setting(EncoderConfig, "the network")
    corruption: CorruptionConfig = setting(CorruptionConfig, "the corrupted patches")
    target: TargetConfig = setting(TargetConfig, "what is predicted")
    decoder: DecoderConfig = setting(DecoderConfig, "the decoder of encoder.sees_masked=false")
    optim: OptimConfig = setting(OptimConfig, "the steps")
    probe: ProbeConfig = setting(ProbeConfig, "whether it is learning")

    def __post_init__(self) -> None:
        require(
            bool(self.data.shards),
            "data.shards is missing; name a folder of images, as in data.shards=photos, or shards, "
            "as in data.shards='shards/train-*.tar'",
        )
        require(
            not self.encoder.sees_masked or self.decoder == DecoderConfig(),
            "decoder.* has no effect with encoder.sees_masked=true; set it "
            "to false, or leave decoder.* out",
        )
        require(
            self.target.kind != "words" or self.data.read == "random",
            f"target.kind=words reads the first images twice, which data.read={self.data.read} "
            "cannot; set data.read=random, or another target.kind",
        )

    @property
    def light_decoder(self) -> DecoderConfig | None:
        """The decoder, or None where the encoder itself sees the mask embeddings."""
        return None if self.encoder.sees_masked else self.decoder
