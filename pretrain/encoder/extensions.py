"""Extensions of timm's VisionTransformer that an encoder may have, and how they are saved.

config.json then has the key `additions`, which timm passes over and `load_encoder` follows. A table
at the stem is saved as timm's `pos_embed`, and so timm loads the encoder too, equal in its outputs;
that the table is fixed, or of rows and columns, only `additions` says. All else (positions in the
layers, CNN stems) is saved under an architecture that timm does not know, and timm refuses it.
Where the eps of the layer norms is not timm's, config.json has it as `norm_eps`: timm loads the
encoder and computes with its own.
"""

import logging
from dataclasses import asdict, dataclass
from typing import Any, cast

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from data.settings import UserError, require
from pretrain.encoder import positions
from pretrain.encoder.config import check_position
from pretrain.encoder.saved import Saved
from pretrain.encoder.stems import install_stem, stem_of
from pretrain.encoder.timm_model import EPS, create_model, plain

logger = logging.getLogger(__name__)

_PREFIX = "masked_patch."  # of the architecture: no name of timm's begins so


@dataclass(frozen=True)
class Extensions:
    """The parts that are added to timm's encoder.

    Attributes:
        position: Kind of position embedding, one of `POSITIONS`.
        position_at: Where it acts, one of `POSITION_PLACES`.
        stem: A timm CNN from whose feature map the patches are cut, or None.
        stem_stride: Pixels a cell of that map, or None.
    """

    position: str = "learned_1d"
    position_at: str = "stem"
    stem: str | None = None
    stem_stride: int | None = None

    @property
    def is_none(self) -> bool:
        """Whether it is timm's own encoder."""
        return self.stem is None and positions.is_timms(self.position, self.position_at)

    @property
    def beyond_timm(self) -> str | None:
        """The keys that timm's format cannot hold; None where timm loads it."""
        if self.stem is not None:
            return f"encoder.stem={self.stem}"
        if self.is_none or positions.is_bakeable(self.position, self.position_at):
            return None
        at = self.position_at
        where = "" if at == "stem" else f" with encoder.position_at={at}"
        return f"encoder.position={self.position}{where}"


def build(name: str, arguments: dict[str, Any], extensions: Extensions) -> VisionTransformer:
    """Create an encoder, its weights at random.

    Args:
        name: Of a timm VisionTransformer.
        arguments: Of timm's model.
        extensions: What it gets besides.

    Raises:
        UserError: The name or an argument is unknown, or does not go with the extensions.
    """
    kind, place = extensions.position, extensions.position_at
    check_position(kind, place)
    if (kind, place) != ("learned_1d", "stem"):
        arguments = arguments | {"pos_embed": "none"}
    encoder = plain(create_model(name, arguments), name)
    if extensions.stem is not None:
        install_stem(encoder, extensions.stem, extensions.stem_stride)
    positions.install(encoder, kind, place)
    return encoder


def extensions_of(encoder: VisionTransformer) -> Extensions:
    """Return what an encoder has that timm's has not."""
    stem = stem_of(encoder)
    return Extensions(*positions.described(encoder), *(stem or (None, None)))


def timm_format(encoder: VisionTransformer, what: str) -> VisionTransformer:
    """Return an encoder as timm's own VisionTransformer, equal in its outputs.

    A table that is added at the stem is put into `pos_embed`.

    Args:
        encoder: Any.
        what: That cannot hold the rest, for the message, such as `--to timm`.

    Raises:
        UserError: It has more than timm's format can hold.
    """
    beyond = extensions_of(encoder).beyond_timm
    require(
        beyond is None,
        f"{what} cannot hold {beyond}: timm has a table at the stem, and no CNN before it; it is "
        "kept in the run's own format, and in --to onnx and --to torch",
    )
    return positions.baked(encoder)


def describe_extensions(encoder: VisionTransformer) -> dict[str, Any]:
    """Return what config.json states of the extensions: nothing where the encoder is timm's own."""
    extensions, eps = extensions_of(encoder), norm_eps(encoder)
    described: dict[str, Any] = {} if eps == EPS else {"norm_eps": eps}
    if extensions.is_none:
        return described
    data = cast(dict[str, Any], encoder.pretrained_cfg)
    prefix = "" if extensions.beyond_timm is None else _PREFIX
    architecture = prefix + data["architecture"]
    return described | {"architecture": architecture, "additions": asdict(extensions)}


def norm_eps(encoder: Any) -> float:
    """Return the eps of the layer norms; timm's where there are none, or it is no transformer."""
    return next((norm.eps for norm in _norms(encoder)), EPS)


def set_norm_eps(encoder: VisionTransformer, eps: float | None) -> None:
    """Give all layer norms of an encoder one eps; None leaves them as they are."""
    for norm in _norms(encoder):
        norm.eps = norm.eps if eps is None else eps


def _norms(encoder: Any) -> list[nn.LayerNorm]:
    if not isinstance(encoder, VisionTransformer):
        return []
    parts = (encoder.blocks, encoder.norm_pre, encoder.norm, encoder.fc_norm)
    modules = (module for part in parts for module in part.modules())
    return [module for module in modules if isinstance(module, nn.LayerNorm)]


def say_what_timm_lacks(encoder: Any, folder: str) -> None:
    """Tell the user of an encoder that timm alone will not load."""
    beyond = extensions_of(encoder).beyond_timm if isinstance(encoder, VisionTransformer) else None
    if beyond is not None:
        logger.info(
            "timm alone cannot load %s, since it has no %s; "
            "use pretrain.encoder.load_encoder, or export.py --to onnx or torch",
            folder,
            beyond,
        )


def rebuild(saved: Saved, args: dict[str, Any]) -> VisionTransformer:
    """Create the encoder that config.json describes; its weights are still at random.

    Args:
        saved: What has `extensions`.
        args: Arguments over the saved ones.

    Raises:
        UserError: The description is not one that this version knows.
    """
    config = saved.config
    try:
        name, extensions = config["architecture"].removeprefix(_PREFIX), config["additions"]
        known, data = Extensions(**extensions), config["pretrained_cfg"]
        size = {"img_size": tuple(data["input_size"][1:]), "num_classes": config["num_classes"]}
        arguments = saved.model_args | size | args
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{saved.folder}/config.json describes an encoder that this version does not "
            f"know ({error}); use the version that wrote it"
        ) from error
    encoder = build(name, arguments, known)
    names = {} if saved.class_names is None else {"label_names": saved.class_names}
    cast(dict[str, Any], encoder.pretrained_cfg).update(data | names)
    cast(Any, encoder).problem_type = saved.problem_type
    return encoder
