"""The benchmarks of scripts/benchmark.py, and the options of each. Imports nothing slow."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from data.settings import require
from data.storage.locations import user_path

Measured = tuple[dict[str, Any], str]  # the record, and what is printed


def option(default: Any, meaning: str, **keywords: Any) -> Any:
    """Declare a field of a dataclass of options.

    Args:
        default: The value when the user gives none; a callable is called for each instance.
        meaning: One line for `--help`.
        keywords: Further ones for `argparse.ArgumentParser.add_argument`; with `nargs` or without
            a default the option is given by its place.
    """
    metadata = {"help": meaning, **keywords}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _from(lowest: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {lowest} on")
        return int(text)

    return read


def _duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


_SHARDS = "pattern, glob or folder of shards; without it scikit-image's photographs"


@dataclass(frozen=True)
class Training:
    """The encoder that `step` and `run` train, and how; the same for all variants."""

    encoder: str = option(
        "vit_small_patch16_224",
        "timm's name, or a CONFIG.yaml whose encoder and image size to take",
        metavar="NAME",
    )
    image_size: int | None = option(
        None, "pixels a side; without it the configuration's, else 224", type=_from(1)
    )
    batch_size: int = option(16, "images a batch", type=_from(1))
    precision: str = option("fp32", "of all variants", choices=("fp32", "bf16"))
    compile: bool = option(False, "compile the models of all variants", action="store_true")
    threads: int = option(0, "CPU threads; 0: all", type=_from(0))


@dataclass(frozen=True)
class StepOptions(Training):
    """Options of `step`."""

    against: str | None = option(
        None,
        "others to run, such as vit_pytorch,transformers_mae; none; without it those installed",
        metavar="NAME,...",
    )
    rounds: int = option(5, "turns of each variant", type=_from(1))
    seconds: float = option(20, "seconds of each turn", type=_duration)


@dataclass(frozen=True)
class VariantOptions:
    """Options of `variants`."""

    config: str = option("", "of pretraining: the baseline", nargs=None, metavar="CONFIG.yaml")
    variant: list[str] = option(
        list,
        "overrides of it, separated by spaces; may be given again",
        action="append",
        required=True,
        metavar="OVERRIDES",
    )
    batch_size: int = option(32, "images a batch", type=_from(1))
    threads: int = option(0, "CPU threads; 0: all", type=_from(0))
    rounds: int = option(5, "turns of each variant", type=_from(1))
    seconds: float = option(5, "seconds of each turn", type=_duration)


@dataclass(frozen=True)
class RunOptions(Training):
    """Options of `run`."""

    shards: list[str] = option(list, _SHARDS, nargs="*", metavar="SHARDS")
    workers: int = option(1, "loader processes of each process", type=_from(0))
    processes: int = option(
        1,
        "2: two processes of half the threads against one of all, as started runs",
        type=int,
        choices=(1, 2),
    )
    rounds: int = option(5, "turns of each variant", type=_from(1))
    seconds: float = option(60, "seconds of each turn", type=_duration)


@dataclass(frozen=True)
class LoaderOptions:
    """Options of `loader`."""

    shards: list[str] = option(list, _SHARDS, nargs="*", metavar="SHARDS")
    image_size: int = option(224, "pixels a side", type=_from(1))
    batch_size: int = option(64, "images a batch", type=_from(1))
    rounds: int = option(5, "turns of each variant", type=_from(1))
    seconds: float = option(5, "seconds of each turn", type=_duration)
    against: str | None = option(
        None, "names separated by commas; none; without it those installed", metavar="NAME,..."
    )


@dataclass(frozen=True)
class LearnOptions:
    """Options of `learn`."""

    overrides: list[str] = option(
        list, "of all rows, and of measures", nargs="*", metavar="key=value"
    )
    plan: str = option("learn", "of configs/ablate", metavar="NAME|FILE.yaml")
    minutes: float | None = option(None, "of training a row; without it the plan's", type=float)
    seeds: str | None = option(None, "in place of the plan's", metavar="0,1,2")
    against: str | None = option(
        None, "rows beside ours; without it all that are installed", metavar="ROW,ROW"
    )
    output: str | None = option(
        None, "folder of the runs; without it runs/ablate/learn", metavar="DIR"
    )


@dataclass(frozen=True)
class GpuOptions:
    """Options of `gpu`."""

    minutes: float = option(25, "of all, at most; what hangs is ended", type=_duration)
    short: bool = option(
        False,
        "a tiny encoder, seconds a row; by itself where there is no CUDA device",
        action="store_true",
    )
    parts: str | None = option(
        None, "in place of all: some of B/16,S/16,L/16,run,small,loader", metavar="NAME,..."
    )


@dataclass(frozen=True)
class Benchmark:
    """A subcommand that measures.

    Attributes:
        options: Its dataclass of options.
        module: Where its `measure(options, folder) -> Measured` stands; imported where it starts.
        meaning: One line for `--help`.
    """

    options: type[Any]
    module: str
    meaning: str

    def measure(self, options: Any, folder: Path) -> Measured:
        """Run it; the folder is an empty one for what it writes."""
        return import_module(f"scripts._benchmark.{self.module}").measure(options, folder)


BENCHMARKS = {
    "step": Benchmark(
        StepOptions, "training.step", "a training step against timm's encoder and others"
    ),
    "variants": Benchmark(VariantOptions, "training.variants", "a training step with other keys"),
    "run": Benchmark(
        RunOptions, "training.run", "from shards to new weights against the bare step"
    ),
    "loader": Benchmark(
        LoaderOptions, "loading.loader", "crops a second of one core, against others"
    ),
    "gpu": Benchmark(
        GpuOptions, "gpu.measure", "steps, runs and the loader on one GPU, within some minutes"
    ),
    "learn": Benchmark(LearnOptions, "learn", "encoders after an equal time of pretraining"),
}


def add_options(parser: argparse.ArgumentParser, options: type[Any]) -> None:
    """Let a parser read a benchmark's options, and where to write its record and chart."""
    for key in fields(options):
        keywords = dict(key.metadata)
        if "nargs" in keywords:
            parser.add_argument(key.name, **keywords)
            continue
        has_default = key.default is not None and key.default is not False  # 0 is one
        if has_default and "required" not in keywords:
            keywords |= {"default": key.default, "help": f"{keywords['help']} (%(default)s)"}
        parser.add_argument(_flag(key.name), **keywords)
    for name, text in (("--json", "write the record there"), ("--png", "draw it there")):
        parser.add_argument(name, type=user_path, metavar="PATH", help=text)


def read_options(namespace: argparse.Namespace, options: type[Any]) -> Any:
    """Return a benchmark's options from what the parser read.

    Raises:
        UserError: The record or the chart cannot be written.
    """
    for key in ("json", "png"):
        path = getattr(namespace, key)
        require(
            path is None or path.absolute().parent.is_dir(),
            f"--{key}={path}: there is no such folder; make it first",
        )
    if namespace.png is not None:
        from pretrain.pictures.draw import require_matplotlib

        require_matplotlib()
    return options(**{key.name: getattr(namespace, key.name) for key in fields(options)})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
