"""Plain values of an ablation's YAML and of its command line, checked."""

import difflib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import yaml

from data.disks import one_line
from data.settings import UserError, require
from finetune.config import FewshotConfig, FinetuneConfig, LinearConfig
from pretrain.config import PretrainConfig
from pretrain.configuration.layers import read_value, value_of
from pretrain.configuration.load import keys
from pretrain.configuration.values import Key
from scripts._benchmark.alternatives.config import AlternativePretrainConfig

Overrides = dict[str, Any]  # dotted key -> value


def read_arguments(arguments: Sequence[str]) -> Overrides:
    """Read `key=value` arguments: values as YAML, as a run reads them."""
    found: Overrides = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        require(bool(equals and key), f"{argument} is not of the form key.sub=value; see --help")
        found[key] = _read(key, text)
    return found


def _read(key: str, text: str) -> Any:
    """Read a value as a run's command line does."""
    own = _text_keys().get(key)
    try:
        node = read_value(text, own is not None, own is not None and own.is_list_of_text)
        return value_of(node)
    except yaml.YAMLError as error:
        raise UserError(f"{text} cannot be read: {one_line(error)}") from error


@cache
def _text_keys() -> dict[str, Key]:
    kinds = (PretrainConfig, AlternativePretrainConfig, FinetuneConfig, FewshotConfig, LinearConfig)
    return {key.name: key for kind in kinds for key in keys(kind) if key.is_text}


def mapping(value: Any, where: str, known: Collection[str] | None = None) -> dict[str, Any]:
    """Return a mapping with text keys; refuse another thing, and keys that are not known."""
    value = {} if value is None else value
    require(isinstance(value, Mapping), f"{where} must hold keys and values, and is {value}")
    found = {str(key): item for key, item in value.items()}
    for key in found:
        if known is not None and key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: {key} is no key; {hint}")
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> Overrides:
    """Return dotted keys of nested ones: {a: {b: 1}} -> {a.b: 1}."""
    found: Overrides = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def text_of(key: str, value: Any) -> str:
    """Write a value so that a configuration reads the same back."""
    with suppress(UserError):
        if isinstance(value, str) and (key in _text_keys() or _read(key, value) == value):
            return value
    return json.dumps(value)


def check_name(name: str, where: str) -> None:
    """Refuse a name that is no good name of a folder."""
    require(
        re.fullmatch(r"\w[\w.+-]*", name) is not None,
        f"{where} names a folder; use letters, digits and . _ + - alone",
    )
