"""Image-text models that exist already: whole, to use them, or as what a run starts from."""

import logging
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from data.captions.vocabulary import Vocabulary
from data.settings import require
from data.text import name_some
from pretrain.configuration.load import load
from pretrain.encoder import load_encoder
from pretrain.records.checkpoint import find_handed_on
from pretrain.records.kinds import Kind, kind_of_run
from pretrain.training.state import load_weights
from pretrain.vilt.building import make_model
from pretrain.vilt.config import ViltConfig
from pretrain.vilt.huggingface import find_vilt, read_vilt
from pretrain.vilt.model import ViltModel
from pretrain.vilt.pairs import PairEncoder
from pretrain.vilt.vocabulary import vocabulary_of

_logger = logging.getLogger(__name__)
_ENCODER = "encoder."  # before the names of weights that `make_encoder` takes over


class Vilt(NamedTuple):
    """A trained model, in evaluation mode, with what it needs to be used.

    Attributes:
        model: The model, on the CPU.
        vocabulary: Of its captions.
        config: Of the run that trained it.
    """

    model: ViltModel
    vocabulary: Vocabulary
    config: ViltConfig


def is_run(path: str | Path) -> bool:
    """Tell whether a folder is that of an image-text pretraining run."""
    return kind_of_run(path) is Kind.IMAGE_TEXT


def load_vilt(path: str | Path) -> Vilt:
    """Load the model of an image-text run.

    Args:
        path: The run's folder.

    Raises:
        UserError: It is no such run, or has no checkpoint yet.
    """
    run = Path(path)
    require(is_run(run), f"{run} is no image-text run; name a run.dir of pretrain/vilt/run.py")
    config = load(ViltConfig, [str(run / "config.yaml")])
    checkpoint = find_handed_on(run)
    vocabulary = vocabulary_of(run, "the run's vocabulary")
    model = make_model(config, load_encoder(run), vocabulary)
    load_weights(model, checkpoint)
    return Vilt(model.eval(), vocabulary, config)


def begin_from(model: PairEncoder, init: str | None) -> None:
    """Take over the text's half and the heads of what `encoder.init` names, if it has some.

    That is an image-text run, or a ViLT model that transformers wrote. The encoder itself has been
    taken over by `make_encoder`. Heads that only one of the two has stay as they are.

    Raises:
        UserError: The model has more positions for pieces, or another vocabulary or width.
    """
    found = None if init is None else _find_rest(model, init)
    if found is None:
        return
    own = _rest(model)
    _check_tokens(model, len(found["text.positions"]), init)
    found["text.positions"] = found["text.positions"][: model.max_tokens]
    for name in own.keys() & found.keys():
        own[name].copy_(found[name])
    if new := sorted(own.keys() - found.keys()):
        _logger.info("encoder.init=%s has no %s; they begin at random", init, name_some(new))


def _find_rest(model: PairEncoder, init: str) -> dict[str, Tensor] | None:
    """Return the weights beside the encoder's in what `encoder.init` names; None where are none."""
    if is_run(init):
        return _rest(load_vilt(init).model)
    saved = find_vilt(init)
    if saved is None:
        return None
    taken = read_vilt(saved, model.pieces.size, f"encoder.init={init}")
    if taken.unused:
        _logger.info("encoder.init=%s: not used: %s", init, name_some(taken.unused))
    return taken.state


def _check_tokens(model: PairEncoder, most: int, init: str | None) -> None:
    require(
        model.max_tokens <= most,
        f"data.max_tokens={model.max_tokens} is over the {most} of encoder.init={init}; lower it",
    )


def _rest(model: PairEncoder) -> dict[str, Tensor]:
    """Return the weights that are not the encoder's."""
    state = model.state_dict()
    return {name: value for name, value in state.items() if not name.startswith(_ENCODER)}
