"""Models that timm creates; what it refuses is said in one line."""

import difflib
from collections.abc import Sequence
from typing import Any

import timm
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer

from data.disks import first_line, one_line
from data.settings import UserError, is_out_of_memory, require
from pretrain.encoder.config import DEFAULT_NAME

EPS = 1e-6  # of timm's layer norms
HYBRIDS = "vision_transformer_hybrid"  # timm's modules
FAMILIES = ("vision_transformer", HYBRIDS)
BARE: dict[str, Any] = {"num_classes": 0, "global_pool": "avg", "fc_norm": False}


def transformer_names(family: str | None = None) -> list[str]:
    """List timm's VisionTransformers, those with a CNN stem of their own too; or one family's."""
    return [
        name
        for kind in FAMILIES
        if family in (None, kind)
        for name in timm.list_models(module=kind)
    ]


def check_name(name: str, known: Sequence[str], kind: str, source: str | None = None) -> None:
    """Raise `UserError`, with the nearest right name, unless timm knows a model.

    Args:
        name: With or without a tag.
        known: The names that fit.
        kind: What they are, for the message.
        source: What the user typed for it; default: `encoder.name`.
    """
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "see timm.list_models()"
    require(
        name.split(".")[0] in known,
        f"{source or f'encoder.name={name}'} is no {kind} that timm knows; {hint}",
    )


def create_model(
    name: str,
    arguments: dict[str, Any],
    *,
    pretrained: bool = False,
    source: str | None = None,
    key: str = "encoder.name",
) -> Any:
    """Let timm create a model.

    Args:
        name: timm's, with its scheme where it has one.
        arguments: Of timm's model.
        pretrained: Load its weights; timm refuses those that do not fit by name.
        source: What the user typed for it, as messages have it; default: its name.
        key: Of the configuration, that names it.

    Raises:
        UserError: timm's own reason, in one line.
    """
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (TypeError, AssertionError, ValueError, LookupError, AttributeError) as error:
        reason = first_line(error)
        raise UserError(f"{key}={name} with {arguments}: timm says: {reason}") from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        what = source or f"{key}={name}"
        reason = one_line(error)
        raise UserError(f"{what} cannot be loaded: {reason}") from error


def plain(model: Any, name: str, source: str | None = None) -> VisionTransformer:
    """Return a model as the plain VisionTransformer that it has to be.

    Args:
        model: timm's.
        name: Its name.
        source: What the user typed for it, as messages have it; default: its name.

    Raises:
        UserError: It is none.
    """
    require(
        isinstance(model, VisionTransformer)
        and type(model).forward_features is VisionTransformer.forward_features,
        f"{source or f'encoder.name={name}'} is no plain timm VisionTransformer; "
        f"try {DEFAULT_NAME}",
    )
    return model
