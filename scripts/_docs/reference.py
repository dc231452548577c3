"""Pages of the reference: every key of each entry point, every option of each script."""

import argparse
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from itertools import groupby
from pathlib import Path
from textwrap import dedent
from typing import Any, NoReturn
from unittest.mock import patch

from finetune.config import FewshotConfig, FinetuneConfig
from finetune.frozen.config import LinearConfig
from finetune.frozen.dense.config import SegmentationConfig
from finetune.vilt.config import ViltFinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.configuration.key import Key
from pretrain.configuration.load import keys
from pretrain.vilt.config import ViltConfig
from scripts._docs.markdown import escape
from scripts._docs.rooms import read_docstring

_KEYS: dict[str, tuple[str, type[Any]]] = {
    "pretrain": ("pretrain/run.py", PretrainConfig),
    "vilt": ("pretrain/vilt/run.py", ViltConfig),
    "finetune": ("finetune/run.py", FinetuneConfig),
    "vilt-classify": ("finetune/vilt/classify.py", ViltFinetuneConfig),
    "fewshot": ("finetune/fewshot.py", FewshotConfig),
    "probe": ("finetune/probe.py", LinearConfig),
    "dense": ("finetune/dense.py", SegmentationConfig),
}


def make_key_pages(root: Path) -> dict[str, str]:
    """Return the pages of keys, by their paths in the site.

    Args:
        root: The checkout.
    """
    return {
        f"reference/{name}.md": "\n\n".join(_key_page(root, script, config))
        for name, (script, config) in _KEYS.items()
    }


def _key_page(root: Path, script: str, config: type[Any]) -> Iterator[str]:
    yield f"# Keys of `{script}`"
    yield _description(read_docstring(root / script))
    yield (
        "Keys are given as `key.sub=value` or in a CONFIG.yaml ([how](index.md)). A run that "
        "resumes refuses another value of a key, unless it *may change on resume*."
    )
    meanings = {group.name: group.metadata["meaning"] for group in fields(config)}
    for group, members in groupby(keys(config), lambda key: key.name.split(".")[0]):
        yield f"## {group}: {meanings[group]} {{#{group}}}"
        for key in members:
            yield f"### `{key.name}` {{#{key.name}}}"
            yield _meaning(key)


def _meaning(key: Key) -> str:
    default = "null" if key.default is None else key.default
    free = "" if key.changes_result else "; may change on resume"
    return f"{escape(key.meaning)}\n\n`{key.type}`, default `{default}`{free}\n{{ .key }}"


def make_scripts_page(folder: Path) -> str:
    """Return the page of all scripts that have options.

    Args:
        folder: Where the scripts lie.
    """
    names = sorted(path.stem for path in folder.glob("*.py"))
    sections = [_script_section(name) for name in names]
    return "\n\n".join(["# Scripts", "`--help` of each prints the same.", *sections])


def _script_section(name: str) -> str:
    module = import_module(f"scripts.{name}")
    parts = [f"## {name}.py {{#{name}}}", _description(str(module.__doc__))]
    parser = _parser_of(module.main)
    if parser is not None:
        parts += _options(parser)
    return "\n\n".join(parts)


class _Caught(Exception):  # noqa: N818 - no error: it ends `main` where its parser is ready
    """Holds the parser of a script that was about to parse."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def _catch(parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
    raise _Caught(parser)


def _parser_of(main: Any) -> argparse.ArgumentParser | None:
    """Return the parser that `main` builds, or None where it takes keys and no options."""
    with (
        patch.object(argparse.ArgumentParser, "parse_args", _catch),
        patch.object(argparse.ArgumentParser, "parse_intermixed_args", _catch),
    ):
        try:
            main(["--help"])
        except _Caught as caught:
            return caught.parser
    return None


def _options(parser: argparse.ArgumentParser, command: str = "") -> Iterator[str]:
    """Yield the options of a parser, then those of its subcommands, each as a list."""
    lines: list[str] = []
    subparsers: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            subparsers = action.choices
        elif not isinstance(action, argparse._HelpAction):
            lines.append(_option(action))
    if lines:
        yield f"Options of `{command}`:" if command else "Options:"
        yield "\n".join(lines)
    for name, part in subparsers.items():
        yield from _options(part, name)


def _option(action: argparse.Action) -> str:
    if not action.help:
        raise ValueError(f"{action.dest} has no help")
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    value = "|".join(map(str, action.choices)) if action.choices and not action.metavar else value
    name = ", ".join(action.option_strings)
    return f"- `{' '.join(filter(None, [name, str(value)]))}`: {escape(action.help)}"


def _description(text: str) -> str:
    """Return a script's docstring as Markdown: indented lines are code, the rest is prose."""
    parts: list[str] = []
    for is_code, lines in groupby(text.strip().splitlines(), _is_code):
        block = dedent("\n".join(lines)).strip("\n")
        parts.append(f"```text\n{block}\n```" if is_code else escape(block))
    return "\n\n".join(part for part in parts if part)


def _is_code(line: str) -> bool:
    return line.startswith(" ")
