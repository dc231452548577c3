"""Values of configuration keys: what fits a key's type, and what `none` means."""

import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.config import SHARDS_TYPE
from data.settings import UserError
from data.storage.locations import expand_home
from pretrain.configuration.alternatives import choose
from pretrain.configuration.hints import in_file, name_unknown
from pretrain.configuration.key import Key
from pretrain.configuration.layers import Entry, is_nothing, text_of, value_of

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def plain(value: Any) -> Any:
    """Return a value as YAML would give it: sequences as lists."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in typing.cast(Sequence[Any], value)]
    return value


def fit(key: Key, value: Any) -> Any:
    """Return a value as its key holds it.

    Raises:
        ValueError: It does not fit; the message is what would, or empty.
    """
    if is_nothing(value) and not (value == "none" and key.knows_none):
        nothing = _nothing(key, value)
        if nothing is not _REFUSED:
            return nothing
    fitted = _fit(key.kind, value)
    if key.type == SHARDS_TYPE and not isinstance(fitted, str):
        fitted = list(_fit(tuple[str, ...], fitted))
    return _at_home(fitted) if key.is_path else fitted


def merge(entries: Sequence[Entry], known: Mapping[str, Key]) -> tuple[dict[str, Any], list[str]]:
    """Return the values that are set, by their keys' names, and what is wrong, a line each."""
    groups = {name.split(".")[0] for name in known}
    set_, unknown, problems = list[tuple[Key, Entry]](), list[Entry](), list[str]()
    for entry in entries:
        key = _key_of(entry.name, known)
        if key is not None:
            set_.append((key, entry))
        elif entry.name not in groups:
            unknown.append(entry)
        elif value_of(entry.node):  # a group without keys sets nothing
            what = (
                f"{entry.name}={value_of(entry.node)} is no value: {entry.name} is a group of keys"
            )
            problems.append(f"{what}, such as {_first_of(entry.name, known)}{in_file(entry.place)}")
    problems += name_unknown(unknown, known)
    values: dict[str, Any] = {}
    chosen, twice = choose(set_, known)
    problems += twice
    for key, entry in chosen:
        try:
            value = _fit_entry(key, entry)
        except UserError as error:
            problems.append(str(error))
        else:
            is_more = isinstance(value, dict) and key.name in values
            values[key.name] = _merged(values[key.name], value) if is_more else value
    return _with_references(values, known, problems), problems


def _first_of(group: str, known: Mapping[str, Key]) -> str:
    return next(name for name in known if name.startswith(f"{group}."))


def _key_of(name: str, known: Mapping[str, Key]) -> Key | None:
    """Return the key that is set; `encoder.args.depth=2` sets a part of `encoder.args`."""
    if name in known:
        return known[name]
    above = (key for key in known.values() if typing.get_origin(key.kind) is dict)
    return next((key for key in above if name.startswith(f"{key.name}.")), None)


def _fit_entry(key: Key, entry: Entry) -> Any:
    value = text_of(entry.node) if key.is_text else value_of(entry.node)
    for part in reversed(entry.name.removeprefix(key.name).split(".")[1:]):
        value = {part: value}
    if not key.is_text and isinstance(value, str) and _REFERENCE.fullmatch(value):
        return _Reference(value, entry)
    try:
        return fit(key, value)
    except UserError as error:
        raise UserError(f"{entry.name}: {error}{in_file(entry.place)}") from error
    except ValueError as error:
        shown = f"{entry.name}={'' if value is None else value} is no {key.type}"
        raise UserError(f"{shown}; {str(error) or 'see --help'}{in_file(entry.place)}") from error


def _merged(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings at all depths."""
    both = {
        name: _merged(before[name], value)
        for name, value in after.items()
        if isinstance(value, dict) and isinstance(before.get(name), dict)
    }
    return {**before, **after, **both}


_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


class _Reference(NamedTuple):
    """`${optim.batch_size}`: the value of another key."""

    text: str
    entry: Entry


def _with_references(
    values: dict[str, Any], known: Mapping[str, Key], problems: list[str]
) -> dict[str, Any]:
    resolved = dict(values)
    for name, value in values.items():
        if not isinstance(value, _Reference):
            continue
        other = value.text[2:-1]
        try:
            if other not in known or isinstance(values.get(other), _Reference):
                raise ValueError(f"{other} is no key with a value")
            own = values.get(other, known[other].default)
            if own is None:
                raise ValueError(f"{other} has no value")
            resolved[name] = fit(known[name], own)
        except ValueError as error:
            hint = str(error) or f"it is no {known[name].type}"
            problems.append(f"{name}={value.text}: {hint}{in_file(value.entry.place)}")
    return resolved


# ---------------------------------------------------------------- types


_REFUSED = object()


def as_held(key: Key, value: Any) -> Any:
    """Return a value that was written down as a configuration of today holds it, plain."""
    try:
        return plain(fit(key, value))
    except ValueError:
        return value


def shown(value: Any) -> str:
    """Show a value in a message as it is typed: null, true."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nothing(key: Key, value: Any) -> Any:
    """Return what null and none mean: nothing, where a key can be left empty."""
    is_optional = key.kind is Any or type(None) in typing.get_args(key.kind)
    if is_optional and key.default is None:
        return None
    if value != "" and key.default == "none":
        return "none"
    if value != "" and key.default == []:
        return ()
    if value is None or key.default == "none":
        raise ValueError("it needs a value")
    return _REFUSED


def _fit(kind: Any, value: Any) -> Any:
    if kind is Any:
        return value
    if isinstance(kind, types.UnionType):
        [kind] = [part for part in typing.get_args(kind) if part is not type(None)]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _tuple(inner, value)
    if origin is dict and isinstance(value, dict):
        return value
    if kind in _SCALARS and isinstance(value, str | int | float):
        return _SCALARS[kind](value)
    raise ValueError


def _tuple(inner: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | int | float):
        number = 1 if inner[-1] is ... else len(inner)
        raise ValueError(f"write a list, such as [{', '.join([str(value)] * number)}]")
    if not isinstance(value, list | tuple):
        raise ValueError
    items = typing.cast(list[Any], value)
    if inner[-1] is not ... and len(items) != len(inner):
        raise ValueError(f"it takes {len(inner)} values")
    return tuple(_fit(inner[0], item) for item in items)


def _int(value: str | float) -> int:
    if type(value) is not int and not (isinstance(value, str) and _INT.fullmatch(value)):
        raise ValueError
    return int(value)


_INT = re.compile(r"[-+]?\d+")


def _float(value: str | float) -> float:
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+,\d+", value):
        raise ValueError(f"write {value.replace(',', '.')}")
    return _number(value)


def _number(value: str | float) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError from error


def _bool(value: str | float) -> bool:
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise ValueError("write true or false")
    return text in _TRUE


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


_SCALARS: dict[Any, Any] = {int: _int, float: _float, bool: _bool, str: _str}


def _at_home(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(expand_home, typing.cast(list[str], value)))
    return expand_home(value)
