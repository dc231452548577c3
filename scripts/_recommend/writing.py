"""A recipe as a YAML file whose comments give the reasons."""

import tempfile
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from data.shards import atomic_write
from pretrain.config import PretrainConfig
from pretrain.configuration.layers import dump
from pretrain.configuration.load import load
from scripts._recommend.values import Choice

_WIDTH = 100


def write(path: Path, header: Sequence[str], choices: Sequence[Choice]) -> None:
    """Write a recipe that a run takes, whole or not at all.

    Args:
        path: Of the file.
        header: Lines of its head.
        choices: In order, those of one group together.
    """
    text = "\n".join([*_comments(header, ""), *_body(choices)]) + "\n"
    _load(text)
    with atomic_write(path) as file:
        file.write(text.encode())


def load_choices(choices: Sequence[Choice]) -> PretrainConfig:
    """Return choices as a run would load them."""
    return _load("\n".join(_body(choices)))


def _load(text: str) -> PretrainConfig:
    """Load the text of a recipe, with every check of a run's configuration."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(text, encoding="utf-8")
        return load(PretrainConfig, [str(path)])


def _body(choices: Sequence[Choice]) -> list[str]:
    lines: list[str] = []
    for group, members in groupby(choices, lambda choice: choice.key.split(".")[0]):
        lines.append(f"{group}:")
        for choice in members:
            lines += _comments([choice.why] if choice.why else [], "  ")
            lines.append(f"  {_entry(choice.key.split('.')[1], choice.value)}")
    return lines


def _entry(name: str, value: Any) -> str:
    """Write a key and its value on one line."""
    if isinstance(value, float) and 0 < value < 1e-2:
        return f"{name}: {value:.1e}"
    text = dump({name: value}).rstrip("\n")
    if "\n" in text:  # lists and mappings
        items = dump({"x": value}, is_flow=True).strip()
        return f"{name}: {items.removeprefix('{x: ').removesuffix('}')}"
    return text


def _comments(lines: Sequence[str], indent: str) -> list[str]:
    wrapped: list[str] = []
    for line in lines:
        wrapped += textwrap.wrap(line, _WIDTH - len(indent) - 2, break_on_hyphens=False) or [""]
    return [f"{indent}# {line}".rstrip() for line in wrapped]
