"""Vision transformers: built, loaded, saved."""

from pretrain.encoder.encoder import EncoderConfig, load_encoder, make_encoder, save_encoder

__all__ = ["EncoderConfig", "load_encoder", "make_encoder", "save_encoder"]
