"""The rooms of the code, and who may import whom.

A room is a folder of code, or a file beside such folders. Rooms stand in the order of `ROOMS`: one
imports what is listed before it, rooms of one line do not import each other, and nobody imports an
entry point but the `__main__` of its package, and `pretrain.api`: the two are doors to it. Scripts
are run, never imported; the parts of a large one lie in a folder of its name.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["data", "pretrain", "finetune", "scripts"]
MOST_FILES = 16  # beside each other in one folder

ROOMS = [
    "data.text data.disks data.processes data.randomness data.devices data.batch "
    "data.shared_memory",
    "data.settings data.order",
    "data.storage data.images data.shards data.commands",
    "data.config data.listing data.folder",
    "data.index",
    "data.reading data.demo",
    "data.labels data.ahead",
    "data.samples data.sources",
    "data.captions data.stream data.segmented",
    "data.sequential data.resident",
    "pretrain.ranks pretrain.configuration pretrain.machine",
    "pretrain.encoder pretrain.records",
    "pretrain.training",
    "pretrain.objective pretrain.evaluation",
    "pretrain.config pretrain.inputs",
    "pretrain.pictures",
    "pretrain.vilt",
    "pretrain.run",
    "pretrain.__main__",
    "finetune",
    "pretrain.mpp pretrain.api",
    "scripts",
]
LEVELS = {room: level for level, line in enumerate(ROOMS) for room in line.split()}

SCRIPTS = {f"scripts.{path.stem}" for path in (ROOT / "scripts").glob("*.py")}
ENTRY_POINTS = {
    *("pretrain.run", "pretrain.vilt.run"),
    *("finetune.run", "finetune.fewshot", "finetune.probe", "finetune.dense"),
    *("finetune.vilt.classify", "finetune.vilt.retrieve"),
    *SCRIPTS,
}
DOORS = ("__main__.py", "api.py")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(path) for path in FILES}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a file imports: of `from a import b`, both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_entry_point(name: str) -> bool:
    """Tell whether an imported name is an entry point, or something in it."""
    return any(f"{name}.".startswith(f"{entry}.") for entry in ENTRY_POINTS)


def room_of(module: str) -> str:
    """Return a module's room: its entry in `ROOMS`, or its script's own folder."""
    parts = module.split(".")
    if parts[0] == "scripts":
        return ".".join(parts[:2])
    return parts[0] if parts[0] in LEVELS else ".".join(parts[:2])


def is_forbidden(own: str, other: str) -> bool:
    """Tell whether the room `own` may not import `other`."""
    if other in (own, "data", "pretrain"):  # the packages themselves hold a docstring alone
        return False
    if own.startswith("scripts") and other.startswith("scripts"):
        own_parts = own.replace("scripts.", "scripts._").replace("__", "_")
        return other != own_parts and own_parts != "scripts._benchmark"
    if own == "finetune" and other == "pretrain.objective":
        return True
    return level_of(other) >= level_of(own)


def level_of(room: str) -> int:
    return LEVELS["scripts" if room.startswith("scripts") else room]


def violations(path: Path, tree: ast.AST) -> list[str]:
    """Return what a file imports although its room may not."""
    own = room_of(module_of(path))
    names = [name for name in imported(tree) if name.split(".")[0] in [*FOLDERS, "tests"]]
    return [
        name
        for name in names
        if name.split(".")[0] == "tests"
        or (is_entry_point(name) and path.name not in DOORS)
        or is_forbidden(own, room_of(name))
    ]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_rooms_before_its_own(path: Path) -> None:
    assert violations(path, TREES[path]) == []


@pytest.mark.parametrize(
    ("path", "line", "is_wrong"),
    [
        ("data/order.py", "from pretrain.training.contract import Sums", True),
        ("data/storage/a.py", "import finetune", True),
        ("data/storage/a.py", "from data.settings import require", False),
        ("data/storage/a.py", "from data.storage.http import HttpTransport", False),
        ("data/storage/a.py", "from data.index.manifest import Manifest", True),
        ("data/storage/a.py", "from data.images import jpeg", True),
        ("pretrain/training/a.py", "from data.index.manifest import Manifest", False),
        ("pretrain/training/a.py", "def f():\n    from pretrain.objective import targets", True),
        ("pretrain/encoder/a.py", "from pretrain.records import logs", True),
        ("pretrain/evaluation/a.py", "from pretrain.training.contract import Evaluator", False),
        ("pretrain/training/a.py", "def f():\n    from finetune import head", True),
        ("finetune/a.py", "from pretrain.run import main", True),
        ("finetune/__main__.py", "from finetune.run import main", False),
        ("finetune/a.py", "from pretrain import run", True),
        ("finetune/a.py", "from pretrain.objective.targets import Target", True),
        ("finetune/a.py", "from pretrain.training.trainer import Trainer", False),
        ("scripts/a.py", "from scripts.export import main", True),
        ("scripts/a.py", "import pretrain.encoder", False),
        ("scripts/report.py", "from scripts._report.page import write", False),
        ("scripts/report.py", "from scripts._benchmark import rounds", True),
        ("scripts/_report/page.py", "from scripts._export import card", True),
        ("scripts/_benchmark/run.py", "from scripts._ablate import jobs", False),
    ],
)
def test_the_rule_finds_what_breaks_it(path: str, line: str, is_wrong: bool) -> None:
    assert bool(violations(ROOT / path, ast.parse(line))) == is_wrong


def test_there_are_files_in_each_folder() -> None:
    assert {name_of(path).split("/")[0] for path in FILES} == set(FOLDERS)


def test_no_room_is_empty_and_each_file_has_one() -> None:
    rooms = {room_of(module_of(path)) for path in FILES}
    rooms = {"scripts" if room.startswith("scripts") else room for room in rooms}
    assert rooms - {"data", "pretrain"} == set(LEVELS)


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {module_of(path): set(imported(TREES[path])) for path in FILES}
    packages = {module_of(path) for path in FILES if path.name == "__init__.py"}
    arrows = {own: (others & MODULES) - packages - {own} for own, others in arrows.items()}
    while free := {own for own, others in arrows.items() if not others & set(arrows)}:
        arrows = {own: others for own, others in arrows.items() if own not in free}
    assert arrows == {}


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=name_of)
def test_a_folder_holds_few_files(folder: Path) -> None:
    files = [path for path in FILES if path.parent == folder and path.name != "__init__.py"]
    assert len(files) <= MOST_FILES


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name == "__init__.py"], ids=name_of
)
def test_packages_hold_nothing_but_a_docstring(path: Path) -> None:
    if module_of(path) == "pretrain.encoder":  # the face of a room that others use as a library
        return
    [statement] = TREES[path].body
    assert isinstance(statement, ast.Expr)


def test_tests_lie_as_the_code_does() -> None:
    folders = {name_of(path.parent) for path in FILES if not path.parent.name.startswith("_")}
    tests = ROOT / "tests"
    mirrored = {str(path.parent.relative_to(tests)) for path in tests.rglob("test_*.py")}
    assert mirrored - {".", "faults"} <= folders


@pytest.mark.parametrize(
    "path", [path for path in FILES if "run_entry_point(main)" in path.read_text()], ids=name_of
)
def test_an_entry_point_finds_the_checkout_from_anywhere(path: Path) -> None:
    text = path.read_text()
    assert "if not __package__:" in text
    depth = len(path.relative_to(ROOT).parts) - 1
    assert f"sys.path[0] = str(Path(__file__).resolve().parents[{depth}])" in text


def test_only_entry_points_print() -> None:
    for path in FILES:
        is_entry_point = (
            name_of(path).startswith("scripts/") or "run_entry_point(" in path.read_text()
        )
        calls = [n for n in ast.walk(TREES[path]) if isinstance(n, ast.Call)]
        prints = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert is_entry_point or not prints, path


def test_nothing_is_pickled() -> None:
    """Neither torch.load and torch.save nor pickle occur: a checkpoint runs no code."""
    for path in FILES:
        names = set(imported(TREES[path]))
        assert "pickle" not in names, path
        assert "torch.load(" not in path.read_text(), path
        assert "torch.save(" not in path.read_text(), path
