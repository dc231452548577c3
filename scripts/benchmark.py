"""Measure the speed of training and of loading against what they are built on.

    python scripts/benchmark.py step [SHARDS ...] [--precision bf16] [--json step.json]
    python scripts/benchmark.py loader [SHARDS ...] [--epochs 20] [--json loader.json]

`step` gives step_vs_timm, our whole training step against the forward and backward of timm's bare
encoder, and run_vs_step, a run from shards with loader processes against that step alone.
`loader` gives loader_vs_pil, one loader process against the usual pipeline of Pillow and
torchvision. Above 1 ours is the faster. Without SHARDS, scikit-image's photographs are read.

Where other programs keep a core busy, give `step --threads 1`: threads that share a step wait for
the one that was held up, some hundreds of times a step, and the ratio is no longer ours.
"""

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.settings import UserError, require, run_entry_point
from data.shards import atomic_write
from scripts.speed import loader, step
from scripts.speed.photographs import make_photograph_shard
from scripts.speed.rounds import make_record, table


def main(arguments: list[str]) -> None:
    """Run `python scripts/benchmark.py ARGUMENTS`."""
    asked = _parse(arguments)
    with TemporaryDirectory() as folder:
        asked.shards = asked.shards or [make_photograph_shard(Path(folder))]
        record = _measure_step(asked) if asked.benchmark == "step" else _measure_loader(asked)
    print(table(record))
    if "memory_mib" in record:
        memory = record["memory_mib"]
        print(f"worker's memory, {asked.epochs} epochs: {memory['first']:.1f} MiB after the first,")
        print(f"{memory['last']:.1f} MiB after the last")
    if asked.json is not None:
        with atomic_write(asked.json) as file:
            file.write(json.dumps(record, indent=1).encode() + b"\n")


def _measure_step(asked: argparse.Namespace) -> dict[str, Any]:
    options = step.StepOptions(**_values(asked, step.StepOptions))
    speeds = step.measure_step(options)
    return make_record("step", asdict(options), speeds, step.RATIOS)


def _measure_loader(asked: argparse.Namespace) -> dict[str, Any]:
    options = loader.LoaderOptions(**_values(asked, loader.LoaderOptions))
    memory = {"memory_mib": loader.measure_memory(options)} if options.epochs else {}
    speeds = loader.measure_loader(options)
    return make_record("loader", asdict(options), speeds, loader.RATIOS) | memory


def _values(asked: argparse.Namespace, options: type[Any]) -> dict[str, Any]:
    return {field.name: getattr(asked, field.name) for field in fields(options)}


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what `run_entry_point` prints."""
        raise UserError(f"{message}; see --help")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="step|loader")
    step_parser = benchmarks.add_parser("step", help="a training step against timm's encoder")
    _add_common(step_parser, batch_size=16, seconds=20)
    option = step_parser.add_argument
    option("--encoder", default="vit_small_patch16_224", help="timm's name (vit_small_patch16_224)")
    option("--precision", choices=("fp32", "bf16"), default="fp32", help="(fp32)")
    option("--workers", type=int, default=1, help="loader processes of the run (1)")
    option("--threads", type=int, default=0, help="CPU threads (0: all)")
    loader_parser = benchmarks.add_parser("loader", help="a loader process against Pillow")
    _add_common(loader_parser, batch_size=64, seconds=5)
    text = "watch a worker's memory for so many epochs (0: not at all)"
    loader_parser.add_argument("--epochs", type=int, default=0, help=text)
    asked = parser.parse_args(arguments)
    _check(asked)
    return asked


def _add_common(parser: argparse.ArgumentParser, batch_size: int, seconds: float) -> None:
    option = parser.add_argument
    option("shards", nargs="*", metavar="SHARDS", help="pattern, glob or folder of shards")
    option("--image-size", type=int, default=224, help="pixels a side (224)")
    option("--batch-size", type=int, default=batch_size, help=f"images ({batch_size})")
    option("--rounds", type=int, default=5, help="turns of each variant (5)")
    option("--seconds", type=float, default=seconds, help=f"of each turn ({seconds})")
    option("--json", type=Path, metavar="PATH", help="write the record there")


def _check(asked: argparse.Namespace) -> None:
    for key in ("image_size", "batch_size", "rounds", "seconds"):
        name, value = key.replace("_", "-"), getattr(asked, key)
        require(value > 0, f"--{name}={value} must be above 0")
    for key in ("workers", "threads", "epochs"):
        value = getattr(asked, key, 0)
        require(value >= 0, f"--{key}={value} is below 0")
    require(
        asked.json is None or asked.json.absolute().parent.is_dir(),
        f"--json={asked.json}: there is no such folder; make it first",
    )


if __name__ == "__main__":
    run_entry_point(main)
