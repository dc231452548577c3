"""Configurations: dataclasses <- YAML <- command line, checked before anything runs."""

import copy
import difflib
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from timm.models.vision_transformer import VisionTransformer
from yaml import YAMLError

from data.disks import one_line
from data.loader import DataConfig
from data.settings import UserError, require, setting
from pretrain.corruption import CorruptionConfig
from pretrain.decoder import DecoderConfig
from pretrain.encoder import EncoderConfig, image_data, image_size, num_channels
from pretrain.launch import RunConfig
from pretrain.optim import OptimConfig
from pretrain.probe import ProbeConfig
from pretrain.targets import TargetConfig

Config = TypeVar("Config")


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
            "data.shards is missing; name the training shards, such as "
            "data.shards='shards/train-*.tar'",
        )
        require(
            not self.encoder.sees_masked or self.decoder == DecoderConfig(),
            f"decoder.* has no effect with encoder.sees_masked={self.encoder.sees_masked}; set it "
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


class Key(NamedTuple):
    """One key of a configuration, as `--help` shows it."""

    name: str
    type: str
    default: Any
    meaning: str
    changes_result: bool


def keys(config: type[Any]) -> list[Key]:
    """List all keys of a configuration class, by their dotted names."""
    schema = OmegaConf.structured(config)
    return [
        key
        for part in fields(config)
        for key in _keys_of(typing.get_type_hints(config)[part.name], part.name, schema[part.name])
    ]


def _keys_of(part: type[Any], prefix: str, defaults: Any) -> Iterator[Key]:
    types = typing.get_type_hints(part)
    for field in fields(part):
        kind = types[field.name]
        type_name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        meta = field.metadata
        type_name = meta["type_name"] or type_name
        default = plain_value(defaults, field.name)
        name = f"{prefix}.{field.name}"
        yield Key(name, type_name, default, meta["meaning"], meta["changes_result"])


def usage(config: type[Any], command: str) -> str:
    """Return the text of `--help`: every key with its type, default and one line of meaning."""
    lines = [f"usage: {command} [CONFIG.yaml ...] [key.sub=value ...]", ""]
    for key in keys(config):
        default = "null" if key.default is None else key.default
        lines.append(f"  {key.name}  ({key.type}, default {default})")
        free = "" if key.changes_result else "  [may change on resume]"
        lines.append(f"      {key.meaning}{free}")
    return "\n".join(lines)


def load(config: type[Config], arguments: list[str]) -> Config:
    """Merge the defaults, YAML files, and `key.sub=value` overrides; what comes later wins.

    Raises:
        UserError: A key is unknown, a value has the wrong type or breaks a rule, a file stands
            after an override, or it cannot be read.
    """
    schema = OmegaConf.structured(config)
    OmegaConf.set_readonly(schema, False)  # frozen dataclasses give read-only schemas
    merged = schema
    for layer in read_layers(arguments):
        _check_keys(config, layer)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise UserError(_type_message(config, schema, layer, error)) from error
    try:
        return typing.cast(Config, OmegaConf.to_object(merged))
    except UserError as error:
        # omegaconf adds lines of its own to what a dataclass raises
        raise UserError(str(error).splitlines()[0]) from error
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def resolve(config: Config, encoder: VisionTransformer) -> Config:
    """Fill in the image size, channels, mean and std that were left to the encoder."""
    whole: Any = config
    data = replace(
        whole.data,
        image_size=list(image_size(encoder)),
        channels=num_channels(encoder),
        mean=tuple(image_data(encoder)["mean"]),
        std=tuple(image_data(encoder)["std"]),
    )
    return replace(whole, data=data)


def plain_value(config: Any, name: str) -> Any:
    """Return a value as YAML would give it: without omegaconf's types, sequences as lists."""
    value = OmegaConf.select(config, name)
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return list(plain) if isinstance(plain, tuple) else plain


def read_layers(arguments: list[str]) -> list[DictConfig]:
    """Read `[CONFIG.yaml ...] [key.sub=value ...]`, unchecked: one layer an argument, in order.

    Raises:
        UserError: An argument is neither, cannot be read, or is a file after an override.
    """
    num_files = next((n for n, text in enumerate(arguments) if "=" in text), len(arguments))
    files, overrides = arguments[:num_files], arguments[num_files:]
    return [*map(read_yaml, files), *map(_parse_override, overrides)]


def read_yaml(path: str) -> DictConfig:
    """Read a configuration file.

    Raises:
        UserError: It is none.
    """
    require(
        path.endswith((".yaml", ".yml")),
        f"{path} is neither a CONFIG.yaml nor key.sub=value; see --help",
    )
    require(Path(path).is_file(), f"{path}: no such configuration file; see configs/")
    try:
        layer = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {one_line(error)}") from error
    require(isinstance(layer, DictConfig), f"{path} must hold keys and values")
    return typing.cast(DictConfig, layer)


def _parse_override(argument: str) -> DictConfig:
    name, equals, _ = argument.partition("=")
    require(
        bool(equals) or not argument.endswith((".yaml", ".yml")),
        f"{argument} stands after a key.sub=value; name every CONFIG.yaml before the first of them",
    )
    require(bool(equals and name), f"{argument} is not of the form key.sub=value; see --help")
    try:
        return OmegaConf.from_dotlist([argument])
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{argument} cannot be read: {one_line(error)}") from error


def _check_keys(config: type[Any], layer: DictConfig) -> None:
    """Name an unknown key, and the nearest right one."""
    known = {key.name: key for key in keys(config)}
    for name in _leaf_names(layer, set(known)):
        if name in known:
            continue
        by_leaf = [full for full in known if full.split(".")[-1] == name.split(".")[-1]]
        near = by_leaf or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see --help"
        raise UserError(f"{name} is no key; {hint}")


def _leaf_names(layer: DictConfig, known: set[str], prefix: str = "") -> list[str]:
    """List the dotted names that a layer sets, down to the known keys."""
    names: list[str] = []
    for key in layer:
        name = f"{prefix}{key}"
        value = layer._get_node(key)
        if isinstance(value, DictConfig) and name not in known and len(value):
            names += _leaf_names(value, known, f"{name}.")
        else:
            names.append(name)
    return names


def _type_message(
    config: type[Any], schema: DictConfig, layer: DictConfig, error: OmegaConfBaseException
) -> str:
    """Name the key of a value that does not fit; omegaconf's own errors do not always."""
    types = {key.name: key.type for key in keys(config)}
    for name in _leaf_names(layer, set(types)):
        value = OmegaConf.select(layer, name)
        try:
            OmegaConf.update(copy.deepcopy(schema), name, value)
        except OmegaConfBaseException:
            return f"{name}={value} is no {types[name]}; see --help"
    return str(error).splitlines()[0]
