"""What the subcommands of scripts/benchmark.py are asked in common. Imports nothing slow."""

import argparse
from dataclasses import fields
from typing import Any

from data.settings import require
from data.storage.locations import user_path

_ABOVE_0 = ("image_size", "batch_size", "rounds", "seconds", "samples", "shards", "lookups")
_FROM_0 = ("workers", "threads", "epochs")


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Ask for the shards; none are needed."""
    text = "pattern, glob or folder of shards"
    parser.add_argument("shards", nargs="*", metavar="SHARDS", help=text)


def add_images(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Ask for the shards, and the size and number of images."""
    add_shards(parser)
    option = parser.add_argument
    option("--image-size", type=int, default=224, help="pixels a side (224)")
    option("--batch-size", type=int, default=batch_size, help=f"images ({batch_size})")


def add_rounds(parser: argparse.ArgumentParser, seconds: float | None = None) -> None:
    """Ask how often each variant has its turn, and for how long."""
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant (5)")
    if seconds is not None:
        text = f"of each turn ({seconds})"
        parser.add_argument("--seconds", type=float, default=seconds, help=text)


def add_outputs(parser: argparse.ArgumentParser, *, has_chart: bool = True) -> None:
    """Ask where to write the record, and its chart."""
    option = parser.add_argument
    option("--json", type=user_path, metavar="PATH", help="write the record there")
    if has_chart:
        option("--png", type=user_path, metavar="PATH", help="draw its ratios and speeds there")


def count(text: str) -> int:
    """Read a whole number that may be written as 1e9."""
    value = float(text)
    if value != int(value):
        raise ValueError(text)
    return int(value)


def values(asked: argparse.Namespace, options: type[Any]) -> dict[str, Any]:
    """Pick what a dataclass of options holds."""
    return {field.name: getattr(asked, field.name) for field in fields(options)}


def check(asked: argparse.Namespace) -> None:
    """Refuse, before anything is measured, what cannot be measured or written.

    Raises:
        UserError: A number is out of range, a folder is missing, or matplotlib is.
    """
    for key in _ABOVE_0:
        value = getattr(asked, key, 1)
        is_number = isinstance(value, int | float)
        require(not is_number or value > 0, f"{_name(key)}={value} must be above 0")
    for key in _FROM_0:
        value = getattr(asked, key, 0)
        require(value >= 0, f"{_name(key)}={value} is below 0")
    for key in ("json", "png"):
        path = getattr(asked, key, None)
        require(
            path is None or path.absolute().parent.is_dir(),
            f"--{key}={path}: there is no such folder; make it first",
        )
    if getattr(asked, "png", None) is not None:
        from pretrain.pictures.draw import require_matplotlib

        require_matplotlib()


def _name(key: str) -> str:
    return "--" + key.replace("_", "-")
