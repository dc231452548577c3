"""The rooms of the code: which imports which, and what each file is."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from scripts._docs.markdown import escape

Arrows = dict[str, set[str]]
"""By each room's name those that it imports."""

_PACKAGES = ("data", "pretrain", "finetune", "scripts")


def make_files_tables(root: Path) -> str:
    """Return a table for each folder: its files, and the first line of each one's docstring."""
    parts: list[str] = []
    folders = {path.parent for package in _PACKAGES for path in (root / package).rglob("*.py")}
    for folder in sorted(folders):
        name = folder.relative_to(root).as_posix()
        parts.append(f"### {name}/ {{#{name.replace('/', '-')}}}")
        files = {path.name: _first_line(path) for path in sorted(folder.glob("*.py"))}
        parts.append(files.pop("__init__.py", ""))
        rows = [f"| `{file}` | {line} |" for file, line in files.items()]
        if rows:
            parts.append("\n".join(["| file | what it does |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def read_docstring(path: Path) -> str:
    """Return the docstring of a Python file.

    Raises:
        ValueError: It has none.
    """
    text = ast.get_docstring(_parse(path))
    if text is None:
        raise ValueError(f"{path} has no docstring")
    return text


def _first_line(path: Path) -> str:
    return escape(read_docstring(path).split("\n\n")[0].replace("\n", " "))


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def find_arrows(root: Path, top: str) -> Arrows:
    """Return what imports what: `data` in its rooms, or `pretrain` in its, and what is around it.

    A room is a folder of the package, or one file that lies directly in it.

    Args:
        root: The checkout.
        top: data, which imports nothing else; or pretrain, with each other package as one room.
    """
    arrows: Arrows = {}
    for package in [top] if top == "data" else _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            room = _room(root, path.relative_to(root).with_suffix("").parts, top)
            targets = {_room(root, tuple(name.split(".")), top) for name in _imports(_parse(path))}
            arrows.setdefault(room, set()).update(targets - {room, "", f"{top}/"})
    arrows.pop(f"{top}/", None)  # its __init__.py
    return arrows


def _room(root: Path, parts: tuple[str, ...], top: str) -> str:
    """Return the room of a module, such as pretrain/training/ or pretrain/run.py, or nothing."""
    if parts[0] not in _PACKAGES:
        return ""
    if parts[0] != top or len(parts) == 1 or parts[1] == "__init__":
        return f"{parts[0]}/"
    name = f"{parts[0]}/{parts[1]}"
    return f"{name}/" if (root / name).is_dir() else f"{name}.py"


def _imports(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever it does; of `from a import b`, a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
