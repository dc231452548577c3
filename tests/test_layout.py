"""Imports follow the data: data <- pretrain <- finetune <- scripts, and nobody an entry point.

Scripts are run, never imported; the parts of a large one lie in a folder beside it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["data", "pretrain", "finetune", "scripts"]
SCRIPTS = {f"scripts.{path.stem}" for path in (ROOT / "scripts").glob("*.py")}
ENTRY_POINTS = {"pretrain.run", "finetune.run", "finetune.fewshot", "finetune.probe", *SCRIPTS}

FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a file imports: of `from a import b`, both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(path: Path, tree: ast.AST) -> list[str]:
    """Return what a file imports from further right, or from an entry point."""
    folder = name_of(path).split("/")[0]
    right = [*FOLDERS[FOLDERS.index(folder) + 1 :], "tests"]
    return [
        name
        for name in imported(tree)
        if name.split(".")[0] in right or ".".join(name.split(".")[:2]) in ENTRY_POINTS
    ]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_leftwards_and_no_entry_point(path: Path) -> None:
    assert violations(path, ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("path", "line", "is_wrong"),
    [
        ("data/a.py", "from pretrain.objective.model import Sums", True),
        ("data/a.py", "import finetune", True),
        ("pretrain/a.py", "from data.index import Manifest", False),
        ("pretrain/a.py", "def f():\n    from finetune import head", True),
        ("finetune/a.py", "from pretrain.run import main", True),
        ("finetune/a.py", "from pretrain import run", True),
        ("finetune/a.py", "from pretrain.training.trainer import Trainer", False),
        ("scripts/a.py", "from scripts.export import main", True),
        ("scripts/a.py", "import pretrain.encoder", False),
    ],
)
def test_the_rule_finds_what_breaks_it(path: str, line: str, is_wrong: bool) -> None:
    assert bool(violations(ROOT / path, ast.parse(line))) == is_wrong


def test_there_are_files_in_each_folder() -> None:
    assert {name_of(path).split("/")[0] for path in FILES} == set(FOLDERS)


@pytest.mark.parametrize("folder", ["data", "pretrain", "finetune"])
def test_packages_hold_nothing_but_a_docstring(folder: str) -> None:
    [statement] = ast.parse((ROOT / folder / "__init__.py").read_text()).body
    assert isinstance(statement, ast.Expr)


@pytest.mark.parametrize(
    "path", [path for path in FILES if "run_entry_point(main)" in path.read_text()], ids=name_of
)
def test_an_entry_point_finds_the_checkout_from_anywhere(path: Path) -> None:
    text = path.read_text()
    assert "if not __package__:" in text
    assert "sys.path[0] = str(Path(__file__).resolve().parents[1])" in text


def test_only_entry_points_print() -> None:
    for path in FILES:
        is_entry_point = (
            name_of(path).startswith("scripts/") or "run_entry_point(" in path.read_text()
        )
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert is_entry_point or not prints, path


def test_nothing_is_pickled() -> None:
    """Neither torch.load and torch.save nor pickle occur: a checkpoint runs no code."""
    for path in FILES:
        names = set(imported(ast.parse(path.read_text())))
        assert "pickle" not in names, path
        assert "torch.load(" not in path.read_text(), path
        assert "torch.save(" not in path.read_text(), path
