"""Configuration files and overrides (`key.sub=value`), as entries that know where they stand.

Values stay YAML's nodes until their key is known: a text key takes what is written, letter by
letter, so that `dir: 1e3`, `dir: 2024-05-01` and `run.dir='exp #7'` name just these folders.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path, PurePath
from typing import Any, NamedTuple, cast

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from data.commands import CHECKOUT
from data.disks import explain, one_line
from data.settings import UserError, require
from data.storage.locations import expand_home

_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.[\d_]+([eE][-+]?\d+)?"
    r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
)
_MAX_DEPTH = 6  # of keys that are unknown
_NOTHING = ("none", "null", "")
RUN_MARK = "# Written by a run: what it was told. It is a CONFIG.yaml, too.\n"


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does, and a date as text."""


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read back as text."""


_RESOLVERS: dict[str, list[tuple[str, Any]]] = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":timestamp", ":float"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _first in "-+0123456789.":
    _RESOLVERS[_first] = [(f"{_TAG}float", _FLOAT), *_RESOLVERS.get(_first, [])]
_Loader.yaml_implicit_resolvers = _RESOLVERS
_Dumper.yaml_implicit_resolvers = _RESOLVERS


def _represent_path(dumper: _Dumper, path: PurePath) -> Node:
    return _represent_text(dumper, str(path))


def _represent_text(dumper: _Dumper, text: str) -> Node:
    # one of these breaks a line where it is not escaped
    style = '"' if set(text) & set("\x85\u2028\u2029") else None
    return dumper.represent_scalar(f"{_TAG}str", text, style)


def _represent_other(dumper: _Dumper, value: Any) -> Node:
    """Take a number of NumPy's, or a tensor of one, for what it is."""
    if hasattr(value, "item"):
        return dumper.represent_data(value.item())
    return dumper.represent_undefined(value)


_Dumper.add_representer(str, _represent_text)
cast(Any, _Dumper).add_representer(None, _represent_other)  # of all others
_Dumper.add_representer(tuple, _Dumper.represent_list)
_Dumper.add_multi_representer(PurePath, _represent_path)


class Entry(NamedTuple):
    """A key that is set.

    Attributes:
        name: Dotted.
        node: Its value.
        place: Where, such as `mine.yaml, line 3`; empty on the command line.
        is_record: Whether a run has written it, of itself.
    """

    name: str
    node: Node
    place: str
    is_record: bool = False

    @property
    def layer(self) -> str:
        """The file in which it stands; empty on the command line."""
        return self.place.rpartition(", line ")[0]


def is_nothing(value: Any) -> bool:
    """Tell whether a value means nothing: null, none, or no text."""
    return value is None or (isinstance(value, str) and value.lower() in _NOTHING)


def value_of(node: Node) -> Any:
    """Return a node's value as YAML gives it."""
    return _Loader("").construct_document(node)  # pyright: ignore[reportUnknownMemberType]


def text_of(node: Node) -> Any:
    """Return a node's text as it is written, or a list of texts; null and a mapping as YAML's."""
    if isinstance(node, SequenceNode):
        return [text_of(item) for item in node.value]
    is_text = isinstance(node, ScalarNode) and node.tag != f"{_TAG}null"
    return str(node.value) if is_text else value_of(node)


def dump(values: dict[str, Any], *, is_flow: bool = False) -> str:
    """Return values as YAML that reads the same back; in `{...}` on one line if `is_flow`."""
    style, width = (True, math.inf) if is_flow else (False, None)
    return yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=style,
        width=width,
    )


# ---------------------------------------------------------------- files


def read_yaml(path: str) -> dict[str, Any]:
    """Read a configuration file as plain values.

    Raises:
        UserError: It is none.
    """
    node = _compose_file(path)
    return {} if node is None else value_of(node)


def _compose_file(path: str) -> MappingNode | None:
    own = Path(path, "config.yaml")
    require(not own.is_file(), f"{path} is the folder of a run; its configuration is {own}")
    is_there = path != "" and Path(expand_home(path)).exists()
    hint = f"name images by a key, as in data.shards={path}" if is_there else "see --help"
    require(
        path.endswith((".yaml", ".yml")),
        f"{path} is neither a CONFIG.yaml nor key.sub=value; {hint}",
    )
    file = Path(expand_home(path))
    ours = CHECKOUT / path  # README's commands name recipes from there
    hint = f"did you mean {ours}?" if ours.is_file() else "see configs/"
    require(file.is_file(), f"{path}: no such configuration file; {hint}")
    try:
        node = _compose(file.read_text(encoding="utf-8-sig"), path)
        if node is not None:
            value_of(node)  # what cannot be made of it is known now
    except OSError as error:
        raise UserError(f"{path} cannot be read: {explain(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        hint = "; indent by spaces, not tabs" if "'\\t'" in str(error) else ""
        raise UserError(f"{path} is not valid YAML: {one_line(error)}{hint}") from error
    if node is None:
        return None
    if not isinstance(node, MappingNode):
        raise UserError(f"{path} must hold keys and values, such as optim: {{lr: 0.001}}")
    twice = list(_twice(node))
    if twice:
        raise UserError("\n".join(f"{path}: {text}" for text in twice))
    return node


def _compose(text: str, name: str) -> Node | None:
    loader = _Loader(text)
    loader.name = name
    return loader.get_single_node()


def _twice(node: Node, above: tuple[Node, ...] = ()) -> Iterator[str]:
    """Name the keys that stand twice in one mapping; the latter would silently win."""
    lines: dict[str, int] = {}
    is_new = isinstance(node, MappingNode) and node not in above  # an anchor may hold itself
    for key, value in node.value if is_new else ():
        line = key.start_mark.line + 1
        if str(key.value) in lines:
            yield f"{key.value} is there twice, in lines {lines[str(key.value)]} and {line}"
        lines[str(key.value)] = line
        yield from _twice(value, (*above, node))


# ---------------------------------------------------------------- layers


def read_layers(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Read `[CONFIG.yaml ...] [key.sub=value ...]` unchecked, as plain values nested by key.

    Raises:
        UserError: An argument is neither, cannot be read, or is a file after an override.
    """
    files, overrides = _split(arguments)
    layers = list(map(read_yaml, files))
    for override in overrides:
        name, text = _name_and_text(override)
        value: Any = text
        for part in reversed(name.split(".")):
            value = {part: value}
        layers.append(value)
    return layers


def read_entries(
    arguments: Sequence[str], known: Collection[str], texts: Collection[str], lists: Collection[str]
) -> list[Entry]:
    """Read what `[CONFIG.yaml ...] [key.sub=value ...]` sets, in order.

    Args:
        arguments: As typed.
        known: All keys' names; mappings are followed down to them.
        texts: Those that take text as it is written.
        lists: Those of `texts` that take a list of texts too.

    Raises:
        UserError: An argument is neither, cannot be read, or is a file after an override.
    """
    files, overrides = _split(arguments)
    entries: list[Entry] = []
    problems: list[str] = []
    for path in files:
        node = _compose_file(path)
        if node is not None:
            is_record = Path(expand_home(path)).read_bytes().startswith(RUN_MARK.encode())
            found = _walk(node, known, "", path)
            entries += [entry._replace(is_record=is_record) for entry in found]
    for override in overrides:
        name, text = _name_and_text(override)
        try:
            node = read_value(text, name in texts, name in lists)
        except yaml.YAMLError as error:
            problems.append(f"{override} cannot be read: {one_line(error)}")
            continue
        if isinstance(node, MappingNode) and name not in known:
            entries += _walk(node, known, f"{name}.", "")
        else:
            entries.append(Entry(name, node, ""))
    if problems:
        raise UserError("\n".join(problems))
    return entries


def entries_of(values: Mapping[str, Any], known: Collection[str]) -> list[Entry]:
    """Return what Python values set, as `read_entries` does of text.

    Args:
        values: By dotted names, or by groups of keys: `{"optim": {"steps": 10}}`.
        known: All keys' names.

    Raises:
        UserError: A value is of no kind that a configuration holds.
    """
    entries: list[Entry] = []
    for name, value in values.items():
        try:
            node = _Dumper(StringIO()).represent_data(value)
        except yaml.YAMLError as error:
            raise UserError(
                f"{name}={value!r} is a {type(value).__name__}, which no configuration holds; give "
                "text, a number, true or false, None, or a list of them"
            ) from error
        if isinstance(node, MappingNode) and name not in known:
            entries += _walk(node, known, f"{name}.", "")
        else:
            entries.append(Entry(name, node, ""))
    return entries


def read_value(text: str, is_text: bool, is_list: bool) -> Node:
    """Read a value from the command line.

    Raises:
        YAMLError: It is no text key's, and no YAML.
    """
    as_written = ScalarNode(f"{_TAG}{'null' if text == 'null' else 'str'}", text)
    if is_list and text.startswith("["):
        return _list(text) or as_written
    if is_text:
        return as_written
    node = _compose(text, "the value")
    return ScalarNode(f"{_TAG}null", "") if node is None else node


def _list(text: str) -> Node | None:
    """Read `[a.tar, b-{0..9}.tar]`; None for a path such as `[v2]/a.tar`."""
    try:
        node = _compose(text, "the value")
    except yaml.YAMLError:
        inner = text.removeprefix("[").removesuffix("]")
        if not text.endswith("]") or "[" in inner or "]" in inner:
            return None
        parts = re.split(r",(?![^{]*\})", inner)  # commas within braces belong to a pattern
        return SequenceNode(
            f"{_TAG}seq", [ScalarNode(f"{_TAG}str", part.strip()) for part in parts]
        )
    is_list = isinstance(node, SequenceNode)
    return node if is_list and all(isinstance(item, ScalarNode) for item in node.value) else None


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Tell files from overrides; a file may have a `=` in its name."""
    num_files = next(
        (n for n, text in enumerate(arguments) if "=" in text and not Path(text).is_file()),
        len(arguments),
    )
    return arguments[:num_files], arguments[num_files:]


def _name_and_text(argument: str) -> tuple[str, str]:
    name, equals, text = argument.partition("=")
    require(
        bool(equals) or not argument.endswith((".yaml", ".yml")),
        f"{argument} stands after a key.sub=value; name every CONFIG.yaml before the first of them",
    )
    require(bool(equals and name), f"{argument} is not of the form key.sub=value; see --help")
    return name, text


def _walk(node: MappingNode, known: Collection[str], prefix: str, path: str) -> Iterator[Entry]:
    _Loader("").flatten_mapping(node)  # YAML's `<<`
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        is_deeper = name not in known and name.count(".") < _MAX_DEPTH
        if is_deeper and isinstance(value, MappingNode) and value.value:
            yield from _walk(value, known, f"{name}.", path)
        else:
            place = f"{path}, line {key.start_mark.line + 1}" if path else ""
            yield Entry(name, value, place)
