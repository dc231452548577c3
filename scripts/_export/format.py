"""The class `Format`: the parts of an export format. `export.py` beside it lists the formats."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from data.settings import require
from scripts._export.source import Source

Outputs = dict[str, Tensor]
HUB = "hf-hub:"  # before the name of a repository, where a usage's place is no folder


@dataclass(frozen=True)
class Format:
    """A format that an encoder or a classifier is written in.

    Attributes:
        name: What `--to` takes.
        library: What the model card calls it.
        packages: What it needs of the extra [export].
        write: Fills a folder.
        run: Loads that folder as its users do, and runs uint8 images (B, C, H, W) through it.
        usage: Python that loads it from a place and runs photo.jpg, or else image.npy.
        describe: Lines about what goes in and out.
        check: Raises `UserError` for what the format cannot hold.
    """

    name: str
    library: str
    packages: tuple[str, ...]
    write: Callable[[Source, Path], None]
    run: Callable[[Path, Tensor], Outputs]
    usage: Callable[[Source, str], str]
    describe: Callable[[Source], list[str]]
    check: Callable[[Source], None] = lambda _: None

    def require_packages(self) -> None:
        """Raise `UserError` unless its packages are installed."""
        require(
            all(find_spec(package) for package in self.packages),
            f"--to {self.name} needs the packages of the extra [export]: "
            "pip install -e '.[export]' here",
        )
