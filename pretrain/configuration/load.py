"""Configurations: dataclasses <- YAML <- command line, checked before anything runs."""

import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import cache, reduce
from typing import Any, TypeVar

from data.settings import UserError, require_utf8
from pretrain.configuration.key import Key
from pretrain.configuration.layers import dump, entries_of, read_entries
from pretrain.configuration.values import merge, plain

Config = TypeVar("Config")


@cache
def keys(config: type[Any]) -> list[Key]:
    """List all keys of a configuration class, by their dotted names."""
    return [key for name, part in _defaults(config).items() for key in _keys_of(part, name)]


def _defaults(config: type[Any]) -> dict[str, Any]:
    """Make each group of keys as it is when nothing is set."""
    factories = {part.name: part.default_factory for part in fields(config)}
    return {name: make() for name, make in factories.items() if callable(make)}


def _keys_of(part: Any, prefix: str) -> Iterator[Key]:
    types = typing.get_type_hints(type(part))
    for field in fields(part):
        kind, meta = types[field.name], field.metadata
        type_name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        yield Key(
            name=f"{prefix}.{field.name}",
            type=meta["type_name"] or type_name,
            default=plain(getattr(part, field.name)),
            meaning=meta["meaning"],
            changes_result=meta["changes_result"],
            kind=kind,
            is_path=meta["is_path"],
            knows_none=meta["knows_none"],
            instead_of=meta["instead_of"],
        )


def usage(config: type[Any], command: str) -> str:
    """Return the text of `--help`: every key with its type, default and one line of meaning."""
    lines = [f"usage: {command} [CONFIG.yaml ...] [key.sub=value ...]", "", *_RULES, ""]
    for key in keys(config):
        default = "null" if key.default is None else key.default
        lines.append(f"  {key.name}  ({key.type}, default {default})")
        free = "" if key.changes_result else "  [may change on resume]"
        lines.append(f"      {key.meaning}{free}")
    return "\n".join(lines)


_RULES = (
    "Text is taken as it is written; ~/ in front of a path is the home folder. null and none both",
    "mean nothing, for each key that can be nothing: its default is null, none or [].",
)


def load(
    config: type[Config],
    arguments: list[str],
    values: Mapping[str, Any] | None = None,
    *,
    is_part: bool = False,
) -> Config:
    """Merge the defaults, YAML files, and `key.sub=value` overrides; what comes later wins.

    Args:
        config: The configuration's class.
        arguments: As typed.
        values: What a program sets behind them, by the keys' names.
        is_part: Leave out groups of keys that the class does not have, instead of refusing them.

    Raises:
        UserError: A file cannot be read, or stands after an override; a key is unknown, or a value
            has the wrong type or breaks a rule: a line for each.
    """
    require_utf8(arguments)
    known = {key.name: key for key in keys(config)}
    texts = {name for name, key in known.items() if key.is_text}
    lists = {name for name, key in known.items() if key.is_list_of_text}
    entries = read_entries(arguments, known, texts, lists) + entries_of(values or {}, known)
    if is_part:
        groups = {name.split(".")[0] for name in known}
        entries = [entry for entry in entries if entry.name.split(".")[0] in groups]
    values, problems = merge(entries, known)
    _refuse(problems)
    parts: dict[str, Any] = {}
    for name, default in _defaults(config).items():
        own = {
            key.split(".")[1]: value for key, value in values.items() if key.startswith(f"{name}.")
        }
        try:
            parts[name] = replace(default, **own)
        except UserError as error:
            problems.append(str(error))
    _refuse(problems)
    return config(**parts)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UserError("\n".join(problems))


def plain_value(config: Any, name: str) -> Any:
    """Return the value of a dotted key as YAML would give it: sequences as lists."""
    return plain(reduce(getattr, name.split("."), config))


def to_yaml(config: Any, change: Callable[[Key, Any], Any] = lambda _, value: value) -> str:
    """Return a configuration as a CONFIG.yaml that loads as just this one.

    Args:
        config: What `load` gave.
        change: Says otherwise what is written of a value.
    """
    groups: dict[str, Any] = {part.name: {} for part in fields(config)}
    for key in keys(type(config)):
        group, name = key.name.split(".")
        groups[group][name] = change(key, plain_value(config, key.name))
    return dump(groups)
