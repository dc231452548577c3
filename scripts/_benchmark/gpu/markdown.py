"""A record of `gpu` as Markdown, for a page of results."""

from typing import Any

Record = dict[str, Any]


def markdown(record: Record) -> str:
    """Return a table of all rows, one of the ratios, and what is missing."""
    shown = [*_where(record), _rows(record)]
    if record["spread"]:
        ratios = [[name, _spread(values, ".3f")] for name, values in record["spread"].items()]
        shown.append(_table(["ratio", "median (lowest to highest)"], ratios))
    missing = [f"- {row}: {reason}" for row, reason in record["missing"].items()]
    return "\n\n".join([*shown, *(["Missing:", "\n".join(missing)] if missing else [])])


def _where(record: Record) -> list[str]:
    host, settings = record["machine"], record["settings"]
    device = host["gpu"] or f"{host['cpu']}, {host['cores']} cores"
    form = "the short form, which measures nothing" if settings["short"] else "bf16, compiled"
    batches = ", ".join(
        f"{name} {subject['batch_size']}" for name, subject in settings["subjects"].items()
    )
    peaks = "; ".join(
        f"{part} {_spread(values, ',.0f')}"
        for part, values in record["matrix_gflop_per_second"].items()
    )
    return [
        f"{device}; torch {host['torch']}, timm {host['timm']}; {form}; images a batch: {batches}; "
        f"{settings['workers']} loader processes; {record['seconds']:.0f} s in all.",
        *([f"Matrix peak beside each, GFLOP/s: {peaks}."] if peaks else []),
    ]


def _rows(record: Record) -> str:
    head = ["", "images/s (lowest to highest)", "GFLOP an image", "TFLOP/s", "MFU"]
    head += ["peak memory, GiB", "counted, GiB"]
    return _table(head, [_row(record, row) for row in record["images_per_second"]])


def _row(record: Record, row: str) -> list[str]:
    speed = record["images_per_second"][row]
    gflop = record["gflop_per_image"].get(row)
    rate = None if gflop is None else gflop * speed["median"] / 1000
    medians = [record[unit].get(row, {}).get("median") for unit in ("mfu", *_MEMORY)]
    mfu, *memory = medians
    return [
        row,
        _spread(speed, ",.0f"),
        "" if gflop is None else f"{gflop:.3g}",
        "" if rate is None else f"{rate:.3g}",
        "" if mfu is None else f"{mfu:.2f}",
        *("" if mib is None else f"{mib / 1024:.1f}" for mib in memory),
    ]


_MEMORY = ("peak_memory_mib", "counted_memory_mib")


def _spread(values: Record, form: str) -> str:
    median, low, high = (format(values[key], form) for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
