"""Records as a page of Markdown: docs/benchmarks.md is made of those in docs/benchmarks/."""

from pathlib import Path
from typing import Any

from data.settings import require
from scripts._benchmark.compare import read_record

_HEAD = """# Benchmarks

Made of the records in `benchmarks/` by `python scripts/benchmark.py page docs/benchmarks`. A figure
is the median of the rounds, beside the lowest and the highest. Variants take turns within a round,
and a ratio is made within one. `python scripts/benchmark.py --help` says what each benchmark
compares, docs/log what was tried. `make bench` measures most of it again and says what fell by more
than the spread.
"""
_UNTOLD = ("cpu", "cores", "threads", "load_average", "gpu")


def make_page(folder: Path) -> str:
    """Lay out a folder's records.

    Raises:
        UserError: There is none, or a file is none.
    """
    paths = sorted(folder.glob("*.json"))
    require(bool(paths), f"{folder} holds no record that --json wrote")
    return "\n".join([_HEAD, *(_section(path.stem, read_record(path)) for path in paths)])


def _section(title: str, record: dict[str, Any]) -> str:
    parts = [f"## {title}", f"```\n{record['command']}\n```", _where(record["machine"])]
    costs = record["lower_is_better"]
    if record["spread"]:
        parts.append(_table("ratio", record["spread"], costs))
    parts += [_table(unit.replace("_", " "), record[unit], ()) for unit in record["units"]]
    return "\n\n".join(parts) + "\n"


def _where(host: dict[str, Any]) -> str:
    device = f"{host['gpu']}; " if host["gpu"] else ""
    versions = ", ".join(f"{name} {value}" for name, value in host.items() if name not in _UNTOLD)
    return (
        f"{device}{host['cpu']}, {host['cores']} cores, {host['threads']} threads, load average "
        f"{host['load_average']:.2f} at the end; {versions}"
    )


def _table(
    title: str, values: dict[str, dict[str, Any]], costs: tuple[str, ...] | list[str]
) -> str:
    lines = [f"| {title} | median | lowest | highest |", "|---|---|---|---|"]
    for name, value in values.items():
        said = f"{name} (lower is better)" if name in costs else name
        numbers = " | ".join(_number(value[key]) for key in ("median", "min", "max"))
        lines.append(f"| {said} | {numbers} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"
