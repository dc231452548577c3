"""Are the definitions of two commits the same, wherever they stand?

    python tests/move/definitions.py OLD NEW [--diff]

A definition is a statement at the top of a file that is no import and no docstring. It is equal to
another if its syntax tree is (docstrings and imports within it left out), and if each name that it
takes from elsewhere in the repository leads to an equal definition, or from outside to the same
place. Files that were renamed between the commits may be named anew in texts (`data.storage`,
`data/storage.py`), and modules in code (`checkpoint.commit`). `Path(__file__).parents[2]` is equal
to what leads to the same folder.
"""

import argparse
import ast
import copy
import difflib
import io
import re
import subprocess
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import PurePath

FOLDERS = ("data", "pretrain", "finetune", "scripts", "tests")
LEFT_OUT = "tests/move/"


@dataclass
class Module:
    """A file: its statements by the names they define, and the names that it imports."""

    path: str
    statements: list[ast.stmt] = field(default_factory=list)
    defined: dict[str, ast.stmt] = field(default_factory=dict)
    imported: dict[str, tuple[str, str | None]] = field(default_factory=dict)


def read_commit(commit: str) -> dict[str, str]:
    """Return the text of each Python file of the five folders at a commit."""
    archive = subprocess.run(["git", "archive", commit, *FOLDERS], check=True, capture_output=True)
    texts = {}
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        for member in tar.getmembers():
            if member.name.endswith(".py") and not member.name.startswith(LEFT_OUT):
                file = tar.extractfile(member)
                texts[member.name] = file.read().decode() if file else ""
    return texts


def dotted(path: str) -> str:
    """Return a file's name as imports have it."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of(tree: ast.AST) -> dict[str, tuple[str, str | None]]:
    """Return where each imported name comes from: a module, and a name in it or None."""
    names: dict[str, tuple[str, str | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = (str(node.module), alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                names[alias.asname or whole] = (whole, None)
    return names


def targets_of(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement at the top of a file defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        yield statement.name
    else:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def is_text(statement: ast.stmt) -> bool:
    """Tell whether a statement is a docstring."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def read_module(path: str, text: str) -> Module:
    """Read a file."""
    module, tree = Module(path), ast.parse(text)
    for statement in tree.body:
        if not isinstance(statement, ast.Import | ast.ImportFrom) and not is_text(statement):
            module.statements.append(statement)
            module.defined |= dict.fromkeys(targets_of(statement), statement)
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            module.imported |= imports_of(statement)
    return module


class Normal(ast.NodeTransformer):
    """Takes docstrings, imports and the names of the repository's modules out of a definition."""

    def __init__(
        self, path: str, modules: set[str], texts: list[tuple[re.Pattern[str], str]]
    ) -> None:
        self.path, self.modules, self.texts = path, modules, texts

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Leave out the statements that do not count."""
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                kept = [s for s in body if not isinstance(s, ast.Import | ast.ImportFrom)]
                setattr(node, name, kept[1:] if kept and is_text(kept[0]) else kept)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Name a module of the repository like any other."""
        return ast.Name("MODULE", node.ctx) if node.id in self.modules else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """Count the folders of `Path(__file__).parents[2]` from the repository's own, 0."""
        self.generic_visit(node)
        names = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
        if "__file__" in names and isinstance(node.slice, ast.Constant):
            node.slice = ast.Constant(int(str(node.slice.value)) - self.path.count("/"))
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Name moved files as they are named now."""
        if isinstance(node.value, str):
            text = node.value
            for pattern, new in self.texts:
                text = pattern.sub(new, text)
            return ast.Constant(text)
        return node


class Commit:
    """All definitions of a commit.

    Args:
        name: The commit.
        texts: How names of files are replaced in texts.
    """

    def __init__(self, name: str, texts: list[tuple[re.Pattern[str], str]]) -> None:
        self.texts = texts
        files = read_commit(name).items()
        self.modules = {dotted(path): read_module(path, text) for path, text in files}
        self.trees: dict[int, ast.AST] = {}
        self.hashes: dict[int, str] = {}

    def normal(self, module: Module, statement: ast.stmt) -> ast.AST:
        """Return a definition's tree as it is compared."""
        if id(statement) not in self.trees:
            names = module.imported | imports_of(statement)
            own = {n for n, (m, a) in names.items() if self._as_module(m, a)}
            tree = Normal(module.path, own, self.texts).visit(copy.deepcopy(statement))
            self.trees[id(statement)] = tree
        return self.trees[id(statement)]

    def _hash(self, module: Module, statement: ast.stmt) -> str:
        if id(statement) not in self.hashes:
            dump = ast.dump(self.normal(module, statement))
            self.hashes[id(statement)] = sha256(dump.encode()).hexdigest()[:12]
        return self.hashes[id(statement)]

    def _as_module(self, module: str, name: str | None) -> str | None:
        full = module if name is None else f"{module}.{name}"
        is_folder = any(one.startswith(f"{full}.") for one in self.modules)
        return full if full in self.modules or is_folder else None

    def resolve(self, module: str, name: str | None, depth: int = 0) -> str:
        """Return what a name stands for: an equal definition's hash, or its place outside."""
        if (place := self._as_module(module, name)) is not None:
            return f"module {place.split('.')[0]}"
        if module not in self.modules and f"tests.{module}" in self.modules:
            module = f"tests.{module}"  # pytest had put tests/ on the path
        if module not in self.modules or name is None or depth > 9:
            return f"{module}:{name}"
        own = self.modules[module]
        if name in own.defined:
            return self._hash(own, own.defined[name])
        if name in own.imported:
            return self.resolve(*own.imported[name], depth + 1)
        return f"missing {module}:{name}"

    def uses(self, module: Module, statement: ast.stmt) -> list[str]:
        """Return what each name that a definition takes from elsewhere stands for."""
        names = module.imported | imports_of(statement)
        bound = {n.arg for n in ast.walk(statement) if isinstance(n, ast.arg)} | {
            n.id
            for n in ast.walk(statement)
            if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)
        }
        used = set()
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id not in bound:
                if node.id in module.defined:
                    used.add(f"{node.id} = {self.resolve(dotted(module.path), node.id)}")
                elif node.id in names and not self._as_module(*names[node.id]):
                    used.add(f"{node.id} = {self.resolve(*names[node.id])}")
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                place = self._as_module(*names.get(node.value.id, ("", None)))
                if place and node.value.id not in bound:
                    used.add(f"MODULE.{node.attr} = {self.resolve(place, node.attr)}")
        return sorted(used)

    def definitions(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield each definition's file, name, text and what its names stand for."""
        for module in self.modules.values():
            for statement in module.statements:
                tree = self.normal(module, statement)
                names = ",".join(targets_of(statement)) or type(statement).__name__
                yield module.path, names, ast.dump(tree), "\n".join(self.uses(module, statement))


def renames(old: str, new: str) -> list[tuple[re.Pattern[str], str]]:
    """Return how texts that name a moved file are rewritten, longest names first."""
    command = ["git", "diff", "-M50%", "--diff-filter=R", "--name-status", old, new]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pairs = [line.split("\t")[1:] for line in lines]
    rules = []
    for one, other in sorted(pairs, key=lambda pair: -len(pair[0])):
        if PurePath(one).suffix == ".py":
            rules.append((re.compile(rf"\b{re.escape(one)}\b"), other))
            rules.append((re.compile(rf"\b{re.escape(dotted(one))}\b(?!/)"), dotted(other)))
    return rules


def code(dump: str) -> list[str]:
    """Return a dumped tree as lines of code."""
    tree = eval(dump, {name: getattr(ast, name) for name in dir(ast)})
    return ast.unparse(ast.fix_missing_locations(tree)).splitlines()


def main() -> None:
    """Compare two commits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--diff", action="store_true", help="show what differs")
    given = parser.parse_args()
    rules = renames(given.old, given.new)  # for both, as data.augment is a key and was a file
    old = list(Commit(given.old, rules).definitions())
    new = list(Commit(given.new, rules).definitions())
    alone = Counter(d[2:] for d in old), Counter(d[2:] for d in new)
    gone, come = alone[0] - alone[1], alone[1] - alone[0]
    bodies = Counter(d[2] for d in old) - Counter(d[2] for d in new)
    print(f"{len(old)} definitions, now {len(new)}: {len(old) - gone.total()} equal with all that")
    print(f"their names stand for, {len(old) - bodies.total()} equal by themselves;")
    placed = Counter((d[0], *d[2:]) for d in old) - Counter((d[0], *d[2:]) for d in new)
    print(f"{placed.total() - gone.total()} of the equal ones stand in another file than before")
    left: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for path, name, dump, uses in new:
        if come[dump, uses]:
            left[name].append((path, dump, uses))
    for path, name, dump, uses in old:
        if not gone[dump, uses]:
            continue
        same = sorted(left[name], key=lambda one: one[1] != dump)
        if not same:
            print(f"gone: {path}: {name}")
            continue
        left[name].remove(same[0])
        where, other, now = same[0]
        kind = "its names stand for others" if other == dump else "differs"
        print(f"{kind}: {path} -> {where}: {name}")
        if given.diff:
            lines = difflib.unified_diff(
                [*code(dump), *uses.splitlines()],
                [*code(other), *now.splitlines()],
                n=0,
                lineterm="",
            )
            print("\n".join(f"    {line}" for line in list(lines)[2:]))
    for name, rest in left.items():
        for path, _, _ in rest:
            print(f"new: {path}: {name}")


if __name__ == "__main__":
    main()
