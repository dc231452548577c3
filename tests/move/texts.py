"""What users read of two commits: error texts, help texts, exit statuses. Equal, or listed.

    python tests/move/texts.py errors OLD NEW               (commits)
    python tests/move/texts.py all OLD NEW                  (commits)
    python tests/move/texts.py help OLD_CHECKOUT NEW_CHECKOUT

An error text is any text in a `raise` statement or in a call of an error's class or of `require`;
of an f-string, what is not filled in. With `all`, each text with a space that is no docstring:
what is printed, keys' help, and errors whose text is made elsewhere. `--folders data,pretrain`
looks at these alone.
"""

import argparse
import ast
import difflib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from definitions import is_text, read_commit

FUNCTIONS = {"require", "UserError", "RunStopped"}


def parts_of(node: ast.AST) -> Iterator[str]:
    """Yield the texts below a node: each constant, each f-string with {} where it is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(
            str(value.value) if isinstance(value, ast.Constant) else "{}" for value in node.values
        )
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                yield from parts_of(value.value)
    elif not isinstance(node, ast.Compare | ast.Subscript):
        for child in ast.iter_child_nodes(node):
            yield from parts_of(child)


def is_error(node: ast.AST) -> bool:
    """Tell whether a node says an error."""
    if isinstance(node, ast.Raise):
        return True
    name = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
    return name in FUNCTIONS or name.endswith("Error")


def errors(commit: str, folders: list[str]) -> Counter[str]:
    """Count the error texts of a commit."""
    texts: Counter[str] = Counter()
    for path, text in read_commit(commit).items():
        if path.split("/")[0] not in folders:
            continue
        seen: set[int] = set()
        for node in ast.walk(ast.parse(text)):
            if is_error(node) and id(node) not in seen:
                seen |= {id(child) for child in ast.walk(node)}
                texts.update(one for one in parts_of(node) if len(one) > 3)
    return texts


def prose(commit: str, folders: list[str]) -> Counter[str]:
    """Count the texts of a commit that have a space and are no docstring."""
    texts: Counter[str] = Counter()
    for path, text in read_commit(commit).items():
        if path.split("/")[0] not in folders:
            continue
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [statement for statement in node.body if not is_text(statement)]
        texts.update(one for one in parts_of(tree) if " " in one.strip())
    return texts


def show(old: Counter[str], new: Counter[str], what: str) -> None:
    """Print what is on one side only, the nearest texts side by side."""
    gone, come = list((old - new).elements()), list((new - old).elements())
    print(f"{old.total()} {what}, now {new.total()}: {(old & new).total()} equal")
    for text in gone:
        print(f"- {text!r}")
        if near := difflib.get_close_matches(text, come, 1, 0.6):
            come.remove(near[0])
            print(f"+ {near[0]!r}")
    for text in come:
        print(f"(new) + {text!r}")


def entry_points(checkout: Path) -> list[str]:
    """List what can be run: files that end in `run_entry_point(main)`."""
    files = [
        p
        for folder in ("pretrain", "finetune", "scripts")
        for p in (checkout / folder).rglob("*.py")
    ]
    return sorted(
        str(p.relative_to(checkout)) for p in files if "run_entry_point(main)" in p.read_text()
    )


def help_of(checkout: Path, script: str) -> str:
    """Return what `--help` prints, with its status."""
    answer = subprocess.run(
        [str(checkout / ".venv/bin/python"), str(checkout / script), "--help"],
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(checkout), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    text = f"status {answer.returncode}\n{answer.stdout}{answer.stderr}"
    return re.sub(re.escape(str(checkout)), "CHECKOUT", text)


def compare_help(old: Path, new: Path) -> None:
    """Print which entry points' help differs, and how."""
    before, after = entry_points(old), entry_points(new)
    print(f"gone: {sorted({*before} - {*after})}; new: {sorted({*after} - {*before})}")
    for script in sorted({*before} & {*after}):
        one, other = help_of(old, script).splitlines(), help_of(new, script).splitlines()
        print(f"{script:32} {len(one) - 1} lines: {'equal' if one == other else 'differs'}")
        for line in list(difflib.unified_diff(one, other, n=0, lineterm=""))[3:]:
            print(f"    {line}")


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["errors", "all", "help"])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--folders", default="data,pretrain,finetune,scripts")
    given = parser.parse_args()
    folders = given.folders.split(",")
    if given.what == "errors":
        show(errors(given.old, folders), errors(given.new, folders), "error texts")
    elif given.what == "all":
        show(prose(given.old, folders), prose(given.new, folders), "texts")
    else:
        compare_help(Path(given.old).resolve(), Path(given.new).resolve())


if __name__ == "__main__":
    main()
