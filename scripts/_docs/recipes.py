"""The page of recipes: what stands in the headers of configs/, command, cost and result."""

import re
from collections.abc import Iterator
from pathlib import Path

from scripts._docs.markdown import escape

_LABEL = re.compile(r"([a-z][a-z, ]*):( +)")
_HEAD = """# Recipes

Each file of `configs/` begins with its command, its sources, its cost and its result; this page is
made of these lines. A result names what it was measured on."""
_GROUPS = {
    "pretrain": "Pretraining",
    "objective": "Objectives, to go behind a recipe of pretraining",
    "encoder": "Encoders, to go behind a recipe",
    "finetune": "Fine-tuning",
    "ablate": "Comparisons",
    "accelerate": "Launches",
}


def make_recipes_page(configs: Path) -> str:
    """Return the page of all configurations.

    Args:
        configs: The folder configs/.
    """
    parts = [_HEAD]
    for folder, title in _GROUPS.items():
        parts.append(f"## {title} {{#{folder}}}")
        for path in sorted((configs / folder).glob("*.yaml")):
            parts.append(f"### {folder}/{path.name} {{#{folder}-{path.stem}}}")
            parts += _header(path.read_text(encoding="utf-8"))
    return "\n\n".join(parts) + "\n"


def _header(text: str) -> Iterator[str]:
    """Yield the paragraphs of one file's header."""
    for label, lines in _fields(text).items():
        body = "\n".join(lines)
        is_code = label in ("command", "final") or any(line.startswith("  ") for line in lines)
        if not label:
            yield escape(body)
        elif is_code:
            yield f"**{label}**\n\n```text\n{body}\n```"
        else:
            yield f"**{label}**: {escape(body)}"


def _fields(text: str) -> dict[str, list[str]]:
    """Return the lines of a header by their labels; those before any label under ""."""
    fields: dict[str, list[str]] = {"": []}
    label, indent = "", 0
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        line = line.removeprefix("#").removeprefix(" ")
        begin = _LABEL.match(line)
        if begin:
            label, indent = begin[1], begin.end()
            fields[label] = []
        fields[label].append(line[indent:])
    return fields
