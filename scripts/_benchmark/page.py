"""Records as a page of Markdown: docs/results/speed.md is made of those in docs/benchmarks/."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.settings import require
from scripts._benchmark.gpu.markdown import markdown
from scripts._benchmark.records import read_record

Record = dict[str, Any]

_HEAD = """# Beside other tools

How fast, and how good in equal time, beside what people would use instead. This page is made of the
records in `docs/benchmarks/` by

```sh
python scripts/benchmark.py page docs/benchmarks > docs/results/speed.md
```

Variants take turns within a round, and a ratio is made within one: a figure is the median of the
rounds (and the lowest to the highest). Above 1 the first is the faster, or, of memory, takes more.
`make bench` measures most of it again and reports what got worse by more than the spread."""


class _Summary(NamedTuple):
    """A table of ratios over some records.

    Attributes:
        title: Its heading.
        text: What is compared.
        columns: By their titles, the record's name and the ending of its ratios.
    """

    title: str
    text: str
    columns: Mapping[str, tuple[str, str]]


_STEPS = ("bf16", "bf16-compiled", "fp32", "fp32-compiled")
_STEP_TEXT = (
    "Ours is the whole step, with targets, corruption, loss and optimizer; timm's is the bare "
    "encoder's forward and backward pass. Others' steps are as their documentation has them."
)
_SUMMARIES = (
    _Summary(
        "A training step",
        f"ViT-S/16, images of 224 px, batches of 16. {_STEP_TEXT}",
        {name.replace("-", ", "): (f"step-s16-{name}", "") for name in _STEPS},
    ),
    _Summary(
        "A small encoder",
        f"0.8 M parameters, images of 32 px, batches of 128. {_STEP_TEXT}",
        {name.replace("-", ", "): (f"step-small-{name}", "") for name in _STEPS},
    ),
    _Summary(
        "The loader",
        "Training crops of 224 px that one core makes of the same JPEGs of about 500x375 pixels: "
        "200 photographs, and the cuts of scikit-image's that are made where no shards are given.",
        {
            "photographs, by the clock": ("loader-photos", ""),
            "photographs, CPU time": ("loader-photos", "_cpu"),
            "cuts, by the clock": ("loader", ""),
            "cuts, CPU time": ("loader", "_cpu"),
        },
    ),
    _Summary(
        "A run",
        "ViT-S/16 in fp32, from shards with loader processes and checkpoints, beside its own step.",
        {"fp32": ("run", "")},
    ),
    _Summary("Two processes", "The same on the two cores of a CPU.", {"fp32": ("processes", "")}),
)
_RATIOS = {
    "step_vs_timm": "ours / timm's bare encoder",
    "step_maskfree_vs_timm": "ours, mask-free (ratio .75) / timm's bare encoder",
    "step_selective_vs_timm": "ours, `run.grad_checkpointing=selective` / timm's bare encoder",
    "step_vs_vit_pytorch": "ours / vit-pytorch's masked patch prediction",
    "step_vs_transformers_mim": "ours / transformers' SimMIM",
    "step_vs_transformers_mae": "ours / transformers' MAE",
    "step_maskfree_vs_transformers_mae": "ours, mask-free / transformers' MAE",
    "memory_vs_timm": "peak memory: ours / timm's without optimizer",
    "memory_maskfree_vs_timm": "peak memory: ours, mask-free / timm's without optimizer",
    "memory_selective_vs_timm": "peak memory: ours, `selective` / timm's without optimizer",
    "memory_vs_vit_pytorch": "peak memory: ours / vit-pytorch's",
    "loader_vs_folder": "ours, of shards / of a folder of files",
    "loader_vs_pil": "ours / Pillow and torchvision's transforms (bicubic, float32)",
    "loader_vs_pil_uint8": "ours / the same, bilinear and uint8 as ours",
    "loader_vs_dali": "ours / DALI's CPU pipeline",
    "loader_vs_webdataset": "ours / plain webdataset with Pillow",
    "loader_vs_timm": "ours / timm's webdataset reader",
    "loader_vs_streaming": "ours / MosaicML Streaming",
    "stream_vs_webdataset": "ours / plain webdataset with our decoder and crop",
    "run_vs_step": "a run / our own step alone",
    "two_processes_vs_one": "2 processes of one thread / 1 process of two",
}
_LEARN_TEXT = """\
Each objective pretrains the same encoder on the same images by the same optimizer
({budget}), then all are fine-tuned alike. Top-1 on the test images, read of the last block's patch
averages; mean and deviation over {num_seeds} seeds. `scratch` begins as `ours` does
(`configs/pretrain/cifar10.yaml`). MAE begins as its authors' code does, which is alike; the others
begin with learnt positions and timm's own weights, whose row from scratch was not run. Command and
machine: [learn](#learn)."""
_LEARN_ROWS = {
    "ours": "ours (`cifar10.yaml`)",
    "mae": "MAE (transformers)",
    "mpp": "vit-pytorch's masked patch prediction",
    "ours-paper": "the paper's objective, ours",
    "simmim": "SimMIM (transformers)",
    "scratch": "from scratch, begun as ours",
}
_LEARN_COLUMNS = {
    "ridge, 5 images a class": "fewshot/5shot@4",
    "25": "fewshot/25shot@4",
    "400": "fewshot/400shot@4",
    "linear probe": "probe/linear_top1@4",
    "attentive probe": "attentive/linear_top1@4",
    "fine-tuned": "finetune/accuracy",
}
_NO_VERSION = ("cpu", "cores", "threads", "load_average", "gpu")


def make_page(folder: Path) -> str:
    """Lay out a folder's records: what they say side by side, then each in full.

    Raises:
        UserError: There is none, or a file is none.
    """
    paths = sorted(folder.glob("*.json"))
    require(bool(paths), f"{folder} holds no record that --json wrote")
    records = {path.stem: read_record(path) for path in paths}
    summaries = [_summary(summary, records) for summary in _SUMMARIES]
    equal_time = [_equal_time(record["table"]) for record in records.values() if "table" in record]
    sections = [_section(title, record) for title, record in records.items()]
    parts = [_HEAD, *filter(None, summaries), *equal_time, "## Records", *sections]
    return "\n\n".join(parts) + "\n"


def _summary(summary: _Summary, records: dict[str, Record]) -> str:
    """Return the ratios of some records side by side, or nothing where there is no such record."""
    columns = {
        title: _ratios(records[name], ending)
        for title, (name, ending) in summary.columns.items()
        if name in records
    }
    if not columns:
        return ""
    names = dict.fromkeys(name for ratios in columns.values() for name in ratios)
    rows = [
        [_RATIOS.get(name, name), *(_spread(ratios.get(name)) for ratios in columns.values())]
        for name in names
    ]
    used = dict.fromkeys(name for name, _ in summary.columns.values() if name in records)
    sources = ", ".join(f"[{name}](#{name})" for name in used)
    text = f"{summary.text} Commands and machine: {sources}."
    return f"## {summary.title}\n\n{text}\n\n{_table(['ratio', *columns], rows)}"


def _ratios(record: Record, ending: str) -> Record:
    """Return the spreads of the ratios that end so, by their names without it."""
    return {
        name.removesuffix(ending): spread
        for name, spread in record["spread"].items()
        if name.endswith(ending) and (ending or not name.endswith("_cpu"))
    }


def _spread(value: Record | None) -> str:
    return "" if value is None else "{median:.2f} ({min:.2f} to {max:.2f})".format(**value)


def _equal_time(table: Record) -> str:
    """Return the section on objectives that were given the same time."""
    by_name = {row["row"]: row["figures"] for row in table["rows"]}
    figures = [by_name[name] for name in _LEARN_ROWS]
    columns = {
        title: key for title, key in _LEARN_COLUMNS.items() if all(key in of for of in figures)
    }
    rows = [
        [
            title,
            f"{by_name[name]['steps']['mean']:,.0f}",
            *(_percent(by_name[name][key]) for key in columns.values()),
        ]
        for name, title in _LEARN_ROWS.items()
    ]
    text = _LEARN_TEXT.format(num_seeds=len(table["seeds"]), budget=table["budget"])
    head = ["", "steps", *columns]
    return f"## Equal time of pretraining\n\n{text}\n\n{_table(head, rows)}"


def _percent(value: Record) -> str:
    return f"{100 * value['mean']:.1f} ± {100 * value['deviation']:.1f} %"


def _section(title: str, record: Record) -> str:
    parts = [f"### {title}", f"```sh\n{record['command']}\n```"]
    if record["benchmark"] == "gpu":
        return "\n\n".join([*parts, markdown(record)])
    parts.append(_where(record["machine"]))
    costs = record["lower_is_better"]
    if record["spread"]:
        parts.append(_values("ratio", record["spread"], costs))
    parts += [_values(unit.replace("_", " "), record[unit], ()) for unit in record["units"]]
    return "\n\n".join(parts)


def _where(host: Record) -> str:
    device = f"{host['gpu']}; " if host["gpu"] else ""
    versions = ", ".join(f"{name} {host[name]}" for name in host if name not in _NO_VERSION)
    return (
        f"{device}{host['cpu']}, {host['cores']} cores, {host['threads']} threads, load average "
        f"{host['load_average']:.2f} at the end; {versions}"
    )


def _values(title: str, values: dict[str, Record], costs: tuple[str, ...] | list[str]) -> str:
    rows = [
        [
            f"{name} (lower is better)" if name in costs else name,
            *(_number(value[key]) for key in ("median", "min", "max")),
        ]
        for name, value in values.items()
    ]
    return _table([title, "median", "lowest", "highest"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"
