"""Measure what is fast and what is lost, against what all this is built on.

    python scripts/benchmark.py step [SHARDS ...] [--precision bf16] [--json step.json]
    python scripts/benchmark.py variants CONFIG.yaml --variant 'key=value ...' [--variant ...]
    python scripts/benchmark.py loader [SHARDS ...] [--epochs 20] [--json loader.json]
    python scripts/benchmark.py order [--samples 1e9] [--shards 1e5] [--batch-size 2048]
    python scripts/benchmark.py resume [SHARDS ...] [--samples 40000]
    python scripts/benchmark.py faults

`step` gives step_vs_timm, our whole training step against the forward and backward of timm's bare
encoder, and run_vs_step, a run from shards with loader processes against that step alone.
`variants` gives the speed of a training step with other keys against that of CONFIG.yaml, such as
--variant encoder.sees_masked=false; it reads no data.
`loader` gives loader_vs_pil, one loader process against the usual pipeline of Pillow and
torchvision, and loader_vs_webdataset, against plain webdataset with our decoder and crop. Above 1
ours is the faster. Without SHARDS, scikit-image's photographs are read.

`order` gives what a lookup of a batch's samples costs, and lookup_99_vs_1: late in an epoch against
early. `resume` gives the time and the bytes to the first batch at 1 and at 99 % of an epoch, and
plain webdataset's to skip to there; without SHARDS, over tiny images made on the spot. 1 is flat.
`faults` damages shards, servers and runs, and counts what was lost, named and mixed up.

Where other programs keep a core busy, give `step --threads 1`: threads that share a step wait for
the one that was held up, some hundreds of times a step, and the ratio is no longer ours.
"""

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.settings import OneLineParser, require, run_entry_point
from data.shards import atomic_write
from scripts.speed.rounds import add_values, make_record, table

# What each benchmark measures is imported where it starts: torch and timm take seconds, and a fresh
# process of `order` or `resume` imports this file again.


def main(arguments: list[str]) -> None:
    """Run `python scripts/benchmark.py ARGUMENTS`."""
    asked = _parse(arguments)
    measure = {
        "step": _measure_step,
        "variants": _measure_variants,
        "loader": _measure_loader,
        "order": _measure_order,
        "resume": _measure_resume,
        "faults": _measure_faults,
    }
    with TemporaryDirectory() as folder:
        record, text = measure[asked.benchmark](asked, Path(folder))
    print(text)
    if asked.json is not None:
        with atomic_write(asked.json) as file:
            file.write(json.dumps(record, indent=1).encode() + b"\n")


_Measured = tuple[dict[str, Any], str]  # the record, and what is printed


def _measure_step(asked: argparse.Namespace, folder: Path) -> _Measured:
    from scripts.speed import step
    from scripts.speed.photographs import make_photograph_shard

    asked.shards = asked.shards or [make_photograph_shard(folder)]
    options = step.StepOptions(**_values(asked, step.StepOptions))
    speeds = step.measure_step(options)
    record = make_record("step", asdict(options), speeds, step.RATIOS)
    return record, table(record)


def _measure_variants(asked: argparse.Namespace, _: Path) -> _Measured:
    from scripts.speed import variants

    options = variants.VariantOptions(**_values(asked, variants.VariantOptions))
    speeds = variants.measure_variants(options)
    ratios = {text: (text, variants.BASELINE) for text in options.variant}
    record = make_record("variants", asdict(options), speeds, ratios)
    return record, table(record)


def _measure_loader(asked: argparse.Namespace, folder: Path) -> _Measured:
    from scripts.speed import loader
    from scripts.speed.photographs import make_photograph_shard

    asked.shards = asked.shards or [make_photograph_shard(folder)]
    options = loader.LoaderOptions(**_values(asked, loader.LoaderOptions))
    memory = loader.measure_memory(options) if options.epochs else None
    speeds = loader.measure_loader(options)
    record = make_record("loader", asdict(options), speeds, loader.RATIOS)
    if memory is None:
        return record, table(record)
    text = f"worker's memory, {options.epochs} epochs: {memory['first']:.1f} MiB after the first,"
    text += f"\n{memory['last']:.1f} MiB after the last"
    return record | {"memory_mib": memory}, f"{table(record)}\n{text}"


def _measure_order(asked: argparse.Namespace, _: Path) -> _Measured:
    from scripts.speed import order

    options = order.OrderOptions(**_values(asked, order.OrderOptions))
    lookups, rest = order.measure_order(options)
    record = make_record("order", asdict(options), lookups, order.RATIOS) | rest
    costs = [
        f"{name:28}" + "".join(f"{value[key]:10.3f}" for key in ("median", "min", "max"))
        for name, value in rest["start"].items()
    ]
    return record, "\n".join(["in a fresh process", *costs, "", table(record)])


def _measure_resume(asked: argparse.Namespace, folder: Path) -> _Measured:
    from scripts.speed import resume

    samples = asked.samples
    asked.shards = asked.shards or resume.make_tiny_shards(folder, samples)
    options = resume.ResumeOptions(**_values(asked, resume.ResumeOptions))
    seconds, read = resume.measure_resume(options)
    record = make_record("resume", asdict(options), seconds, resume.TIME_RATIOS)
    add_values(record, read, resume.BYTES_RATIOS)
    return record, table(record)


def _measure_faults(_: argparse.Namespace, folder: Path) -> _Measured:
    from scripts.speed import faults

    found = faults.inject_faults(folder)
    return faults.make_faults_record(found), faults.faults_table(found)


def _values(asked: argparse.Namespace, options: type[Any]) -> dict[str, Any]:
    return {field.name: getattr(asked, field.name) for field in fields(options)}


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = "step|variants|loader|order|resume|faults"
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar=names)
    step = benchmarks.add_parser("step", help="a training step against timm's encoder")
    _add_images(step, batch_size=16)
    _add_rounds(step, seconds=20)
    option = step.add_argument
    option("--encoder", default="vit_small_patch16_224", help="timm's name (vit_small_patch16_224)")
    option("--precision", choices=("fp32", "bf16"), default="fp32", help="(fp32)")
    option("--workers", type=int, default=1, help="loader processes of the run (1)")
    option("--threads", type=int, default=0, help="CPU threads (0: all)")
    variants = benchmarks.add_parser("variants", help="a training step with other keys")
    option = variants.add_argument
    option("config", metavar="CONFIG.yaml", help="of pretraining: the baseline")
    text = "keys over it, apart by spaces; may be given again"
    option("--variant", metavar="KEYS", action="append", required=True, help=text)
    option("--batch-size", type=int, default=32, help="images (32)")
    option("--threads", type=int, default=0, help="CPU threads (0: all)")
    _add_rounds(variants, seconds=5)
    loader = benchmarks.add_parser("loader", help="a loader process against Pillow, webdataset")
    _add_images(loader, batch_size=64)
    _add_rounds(loader, seconds=5)
    text = "watch a worker's memory for so many epochs (0: not at all)"
    loader.add_argument("--epochs", type=int, default=0, help=text)
    order = benchmarks.add_parser("order", help="lookups anywhere in an epoch; reads nothing")
    option = order.add_argument
    option("--samples", type=_count, default=1_000_000_000, help="(1e9)")
    option("--shards", type=_count, default=100_000, help="(1e5)")
    option("--batch-size", type=int, default=2048, help="positions (2048)")
    option("--lookups", type=int, default=200, help="batches at each place (200)")
    _add_rounds(order)
    resume = benchmarks.add_parser("resume", help="the first batch late in an epoch, and early")
    _add_images(resume, batch_size=64)
    text = "how many are made without SHARDS (40000)"
    resume.add_argument("--samples", type=_count, default=40_000, help=text)
    _add_rounds(resume)
    faults = benchmarks.add_parser("faults", help="what is lost, beside plain webdataset")
    for benchmark in (step, variants, loader, order, resume, faults):
        benchmark.add_argument("--json", type=Path, metavar="PATH", help="write the record there")
    asked = parser.parse_args(arguments)
    _check(asked)
    return asked


def _count(text: str) -> int:
    """Read a whole number that may be written as 1e9."""
    value = float(text)
    if value != int(value):
        raise ValueError(text)
    return int(value)


def _add_images(parser: argparse.ArgumentParser, batch_size: int) -> None:
    option = parser.add_argument
    option("shards", nargs="*", metavar="SHARDS", help="pattern, glob or folder of shards")
    option("--image-size", type=int, default=224, help="pixels a side (224)")
    option("--batch-size", type=int, default=batch_size, help=f"images ({batch_size})")


def _add_rounds(parser: argparse.ArgumentParser, seconds: float | None = None) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant (5)")
    if seconds is not None:
        text = f"of each turn ({seconds})"
        parser.add_argument("--seconds", type=float, default=seconds, help=text)


def _check(asked: argparse.Namespace) -> None:
    for key in ("image_size", "batch_size", "rounds", "seconds", "samples", "shards", "lookups"):
        name, value = key.replace("_", "-"), getattr(asked, key, 1)
        require(isinstance(value, list) or value > 0, f"--{name}={value} must be above 0")
    for key in ("workers", "threads", "epochs"):
        value = getattr(asked, key, 0)
        require(value >= 0, f"--{key}={value} is below 0")
    require(
        asked.json is None or asked.json.absolute().parent.is_dir(),
        f"--json={asked.json}: there is no such folder; make it first",
    )


if __name__ == "__main__":
    run_entry_point(main)
