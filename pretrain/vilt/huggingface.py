"""Between this project's ViLT and transformers': the text's half and the heads, both ways.

The image's half is an encoder: `pretrain/encoder/huggingface.py` reads it. As there, only the names
in `model.safetensors` are known, and no transformers is needed.

BERT's embedding of a first sentence, which ViLT adds to every piece before the layer norm, becomes
a part of the positions: an equal function. The head of retrieval has one output, the score of a
pair, and ours of matching has two, of which softmax makes the probability that it matches. So the
score is their difference, and a score becomes its half for the own caption, and less its half for
another's.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from data.settings import require
from pretrain.encoder.huggingface import MODALITY, TEXT, base_of, is_vilt
from pretrain.encoder.saved import Saved, find_saved

_TEXT = "embeddings.text_embeddings."
_WORDS, _POSITIONS = f"{_TEXT}word_embeddings.weight", f"{_TEXT}position_embeddings.weight"
_SENTENCES = f"{_TEXT}token_type_embeddings.weight"

_EMBEDDINGS = {  # ours -> transformers'
    "text.words.weight": _WORDS,
    "text.norm.weight": f"{_TEXT}LayerNorm.weight",
    "text.norm.bias": f"{_TEXT}LayerNorm.bias",
}
_POOLER = {f"pooler.dense.{kind}": f"pooler.dense.{kind}" for kind in ("weight", "bias")}
_WORD_HEAD = {
    "words.dense.weight": "mlm_score.transform.dense.weight",
    "words.dense.bias": "mlm_score.transform.dense.bias",
    "words.norm.weight": "mlm_score.transform.LayerNorm.weight",
    "words.norm.bias": "mlm_score.transform.LayerNorm.bias",
    "words.bias": "mlm_score.decoder.bias",
}
_WORD_BIASES = ("mlm_score.bias", "mlm_score.decoder.bias")  # of transformers 4, of 5
_DECODER = "mlm_score.decoder.weight"  # the words' embeddings once more
_OURS = "gelu"  # the activation of our head of words
_SCORE = {f"matching.{kind}": f"rank_output.{kind}" for kind in ("weight", "bias")}


class Taken(NamedTuple):
    """What a ViLT model has beside its image half.

    Attributes:
        state: Weights under our names.
        unused: The names of what is of no use here.
    """

    state: dict[str, Tensor]
    unused: list[str]


def find_vilt(path: str | None) -> Saved | None:
    """Return the ViLT model that transformers wrote into a folder, or None."""
    saved = None if path is None else find_saved(path)
    return saved if saved is not None and is_vilt(saved) else None


# ---------------------------------------------------------------- ours to theirs


def to_vilt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the text's half, the pooler and the heads of a model; the names are `ViltModel`'s.

    Args:
        state: The weights of an image-text model; its encoder's are passed over.
    """
    names = _EMBEDDINGS | _POOLER | _WORD_HEAD
    tensors = {theirs: state[ours] for ours, theirs in names.items() if ours in state}
    scores = {ours: theirs for ours, theirs in _SCORE.items() if ours in state}
    words, modality = state["text.words.weight"], state["text.modality"]
    nothing = torch.zeros_like(modality)
    return {
        **tensors,
        **{theirs: state[ours][1:] - state[ours][:1] for ours, theirs in scores.items()},
        _DECODER: words,
        _POSITIONS: state["text.positions"],
        _SENTENCES: torch.stack([nothing, nothing]),
        MODALITY: torch.stack([modality, nothing]),  # the image's is in its positions
    }


# ---------------------------------------------------------------- theirs to ours


def read_vilt(saved: Saved, num_pieces: int, source: str) -> Taken:
    """Read the text's half, and the pooler and heads that are there.

    Args:
        saved: What `find_vilt` found.
        num_pieces: Of the vocabulary; a table of more words is cut to it.
        source: How messages name it, such as `encoder.init=FOLDER`.

    Raises:
        UserError: A weight is missing, or there are fewer words than pieces.
    """
    tensors = saved.read_weights(source)
    base = base_of(tensors)
    theirs = {name.removeprefix(base): value for name, value in tensors.items()}
    needed = [*_EMBEDDINGS.values(), _POSITIONS, _SENTENCES, MODALITY]
    missing = ", ".join(base + name for name in needed if name not in theirs)
    require(not missing, f"{source} lacks {missing}; give a whole ViLT model")
    num_words = len(theirs[_WORDS])
    require(
        num_pieces <= num_words,
        f"the vocabulary has {num_pieces} pieces and {source} {num_words} words, so it is another "
        "one; leave data.vocabulary out, or give that model's",
    )
    _rename_old(theirs)
    heads = _POOLER | (_WORD_HEAD if saved.config.get("hidden_act", _OURS) == _OURS else {})
    state = {
        **_renamed(theirs, _EMBEDDINGS),
        **_renamed(theirs, heads),
        **_matching(theirs),
        "text.positions": theirs[_POSITIONS] + theirs[_SENTENCES][0],
        "text.modality": theirs[MODALITY][TEXT],
    }
    for name in state.keys() & {"text.words.weight", "words.bias"}:
        state[name] = state[name][:num_pieces]
    return Taken(state, _unused(theirs, {*heads.values(), *_SCORE.values(), _DECODER}))


def _rename_old(theirs: dict[str, Tensor]) -> None:
    old, new = _WORD_BIASES
    if old in theirs:
        theirs.setdefault(new, theirs[old])
        del theirs[old]


def _renamed(theirs: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {ours: theirs[name] for ours, name in names.items() if name in theirs}


def _matching(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scores = _renamed(theirs, _SCORE)
    return {name: torch.cat([-score / 2, score / 2]) for name, score in scores.items()}


def _unused(theirs: Mapping[str, Tensor], used: set[str]) -> list[str]:
    """Name the heads of other tasks."""
    of_model = ("embeddings.", "encoder.", "layernorm.")
    return sorted(name for name in theirs if name not in used and not name.startswith(of_model))
