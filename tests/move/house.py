"""Print the figures of a checkout's rooms, names and texts: `python tests/move/house.py CHECKOUT`.

With `--no-help`, without the seconds of `--help`.
"""

import argparse
import ast
import os
import re
import resource
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

FOLDERS = ("data", "pretrain", "finetune", "scripts")
SENTENCES = (
    "are keys of the same pipeline, as are the masks and encoders of what came after it",
    "The one that learnt most here",
    "Its step computes a third as much",
    "goes over the named one",
    "Attention is computed beside the encoder, whose own fused kernel stays as it is",
    "says which ratio fell by more than the spread",
    "they cannot unsay what a resume repeats",
    "is 1.96 times as fast",
    "that, while pretraining runs",
    "that, held against the shards and the order",
    "ordering rows as short runs do",
)
MOODS = ("asked", "found", "said", "told")
Graph = dict[str, set[str]]


def tracked(checkout: Path) -> list[str]:
    """List the files that git knows, without this folder's."""
    command = ["git", "-C", str(checkout), "ls-files"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    return [n for n in names if n and not n.startswith("tests/move/") and (checkout / n).is_file()]


def file_graph(checkout: Path, names: Iterable[str]) -> Graph:
    """Return which file imports which, lazily or not."""
    modules = {n.removesuffix(".py").removesuffix("/__init__").replace("/", "."): n for n in names}
    graph: Graph = {n: set() for n in modules.values()}
    for module, name in modules.items():
        for node in ast.walk(ast.parse((checkout / name).read_text())):
            wanted: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    wanted.append(full if full in modules else node.module)
            elif isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            graph[name] |= {modules[w] for w in wanted if w in modules and w != module}
    return graph


def grouped(graph: Graph, group: Callable[[str], str]) -> Graph:
    """Return the graph of groups of files."""
    result: Graph = defaultdict(set)
    for name, others in graph.items():
        result[group(name)] |= {group(other) for other in others} - {group(name)}
    return dict(result)


def circles(graph: Graph) -> list[list[str]]:
    """Return the sets of nodes that reach each other."""
    reach = {name: _reached(graph, name) for name in graph}
    sets = {frozenset(o for o in reach[n] if n in reach[o]) for n in graph if n in reach[n]}
    return sorted(sorted(one) for one in sets)


def _reached(graph: Graph, start: str) -> set[str]:
    seen, rest = set(), [start]
    while rest:
        for name in graph[rest.pop()]:
            if name not in seen:
                seen.add(name)
                rest.append(name)
    return seen


def levels(graph: Graph) -> int:
    """Return the number of nodes of the longest way along imports; a circle counts as one node."""
    leader = {n: n for n in graph} | {n: one[0] for one in circles(graph) for n in one}
    graph = grouped(graph, leader.__getitem__)
    depth: dict[str, int] = {}

    def measure(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((measure(other) for other in graph[name]), default=0)
        return depth[name]

    return max(map(measure, graph))


def room_of(name: str) -> str:
    """Return the room of a file: a folder below data/, pretrain/ and so on, or the file itself."""
    return "/".join(name.split("/")[:2])


def inside(graph: Graph, folder: str) -> Graph:
    """Return the part of a graph that lies in a folder, without the packages' empty files."""
    kept = {
        n
        for n in graph
        if n.startswith(f"{folder}/") and (not n.endswith("__init__.py") or graph[n])
    }
    return {n: graph[n] & kept for n in kept}


def describe_rooms(checkout: Path, code: list[str]) -> None:
    """Print how files lie, and who imports whom."""
    flat = Counter(str(Path(n).parent) for n in code if not n.endswith("__init__.py"))
    product = [n for n in code if not n.startswith("tests/")]
    most = ", ".join(f"{f} {c}" for f, c in flat.most_common(40) if not f.startswith("tests"))
    print(f"files flat in a folder, most: {', '.join(most.split(', ')[:4])}")
    tests = [f"{f} {c}" for f, c in flat.most_common() if f.startswith("tests")]
    print(f"of tests: {', '.join(tests[:4])}")
    graph = file_graph(checkout, product)
    for text, one in (
        ("rooms of pretrain/", grouped(inside(graph, "pretrain"), room_of)),
        ("files of pretrain/", inside(graph, "pretrain")),
        ("rooms of data/", grouped(inside(graph, "data"), room_of)),
    ):
        arrows, turns = sum(map(len, one.values())), len(circles(one))
        print(f"{text}: {len(one)} on {levels(one)} levels, {arrows} arrows, {turns} circles")
    for text, one in (
        ("files", graph),
        ("rooms", grouped(graph, room_of)),
    ):
        found = circles(one)
        print(f"circles of {text}: {len(found)} {[len(f) for f in found]}")
        for circle in found:
            print(f"    {' '.join(circle)}")


def describe_readers(checkout: Path, product: list[str]) -> None:
    """Print which files read a config.json of an encoder."""
    pattern = re.compile(
        r'(read_json|json\.loads?)\([^\n]*"config\.json|/ "config\.json"\)\.(read|open)'
    )
    places: dict[str, int] = {}
    for name in product:
        text = (checkout / name).read_text()
        for constant in re.findall(r'^(\w+)(?:, \w+)* = "config\.json"', text, re.MULTILINE):
            text = re.sub(rf"\b{constant}\b", '"config.json"', text)
        places[name] = len(pattern.findall(text))
    places = {n: c for n, c in places.items() if c}
    print(f"files that parse a config.json: {len(places)}")
    for name, number in places.items():
        print(f"    {name} {number}")


def describe_size(checkout: Path, names: list[str]) -> None:
    """Print lines by folder, code and all that is written in it."""
    lines: Counter[str] = Counter()
    for name in names:
        folder = name.split("/")[0]
        if folder in {*FOLDERS, "tests"} and name.endswith((".py", ".c", ".sh")):
            lines[folder] += (checkout / name).read_bytes().count(b"\n")
    total = sum(lines[f] for f in FOLDERS)
    each = ", ".join(f"{f} {lines[f]:,}" for f in FOLDERS)
    print(
        f"lines: {each}: {total:,}; tests {lines['tests']:,}, {lines['tests'] / total:.2f} of that"
    )
    for name in ("README.md", "LOG.md", "CONTRIBUTING.md"):
        path = checkout / name
        print(f"{name}: {path.read_text().count(chr(10)) if path.is_file() else 0} lines")


def describe_words(checkout: Path, names: list[str], product: list[str]) -> None:
    """Print how often the words occur that were to go."""
    stored: Counter[str] = Counter()
    docstrings: Counter[str] = Counter()
    for name in product:
        for node in ast.walk(ast.parse((checkout / name).read_text())):
            if isinstance(node, ast.arg):
                stored[node.arg] += 1
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                stored[node.id] += 1
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                stored[node.attr] += 1
            elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                docstrings[text.split(" ")[0]] += 1
    print(
        "variables:",
        ", ".join(f"{w} {stored[w]}" for w in (*MOODS, "figures", "key", "keys", "place")),
    )
    print(f"docstrings that begin with What: {docstrings['What']}, How: {docstrings['How']}")
    texts = [(checkout / n).read_text() for n in product]
    for word in ("figures", "ledger", "lineage", "cut"):
        lines = sum(
            bool(re.search(rf"\b{word}\b", line, re.I)) for t in texts for line in t.splitlines()
        )
        print(f"lines with {word!r} in code: {lines}")
    for sentence in SENTENCES:
        pattern = re.compile(r"[\s#|\"']+".join(map(re.escape, sentence.split())))
        where = [
            n
            for n in names
            if n.endswith((".md", ".py", ".yaml")) and pattern.search((checkout / n).read_text())
        ]
        print(f"    {sentence!r}: {', '.join(where) or 'gone'}")


def describe_help(checkout: Path, product: list[str]) -> None:
    """Print how long each entry point takes to say its keys: the better of two."""
    for name in product:
        if "run_entry_point(main)" in (checkout / name).read_text():
            clock, cpu = min(_seconds(checkout, name) for _ in range(2))
            print(f"--help of {name}: {clock:.2f} s by the clock, {cpu:.2f} s of the CPU")


def _seconds(checkout: Path, name: str) -> tuple[float, float]:
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [str(checkout / ".venv/bin/python"), str(checkout / name), "--help"],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, cpu


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--no-help", action="store_true")
    given = parser.parse_args()
    checkout = given.checkout.resolve()
    names = tracked(checkout)
    code = [n for n in names if n.endswith(".py") and n.split("/")[0] in {*FOLDERS, "tests"}]
    product = [n for n in code if not n.startswith("tests/")]
    describe_rooms(checkout, code)
    describe_readers(checkout, product)
    describe_size(checkout, names)
    describe_words(checkout, names, product)
    if not given.no_help:
        describe_help(checkout, product)


if __name__ == "__main__":
    main()
