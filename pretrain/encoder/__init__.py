"""Vision transformers: built, loaded, saved. The configuration can be had without torch."""

from typing import TYPE_CHECKING, Any

from pretrain.encoder.config import EncoderConfig

if TYPE_CHECKING:
    from pretrain.encoder.encoder import load_encoder, make_encoder, save_encoder

__all__ = ["EncoderConfig", "load_encoder", "make_encoder", "save_encoder"]


def __getattr__(name: str) -> Any:  # of what is not here yet: torch and timm take seconds
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pretrain.encoder import encoder

    return getattr(encoder, name)
