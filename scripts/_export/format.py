"""The class `Format`: the parts of an export format. `export.py` beside it lists the formats."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from data.settings import require

Outputs = dict[str, Tensor]
HUB = "hf-hub:"  # before the name of a repository, where a usage's place is no folder


@dataclass(frozen=True)
class Format:
    """A format that a model is written in: a `Source`, or a `PairSource` of image and text.

    Attributes:
        name: What `--to` takes.
        library: What the model card calls it.
        packages: What it needs of the extra [export].
        write: Fills a folder.
        run: Loads that folder as its users do, and runs through it what `Source.outputs` takes.
        usage: Python that loads it from a place and runs photo.jpg, or else image.npy.
        describe: Lines about what goes in and out.
        check: Raises `UserError` for what the format cannot hold.
    """

    name: str
    library: str
    packages: tuple[str, ...]
    write: Callable[[Any, Path], None]
    run: Callable[[Path, Any], Outputs]
    usage: Callable[[Any, str], str]
    describe: Callable[[Any], list[str]]
    check: Callable[[Any], None] = lambda _: None

    def require_packages(self) -> None:
        """Raise `UserError` unless its packages are installed."""
        require(
            all(find_spec(package) for package in self.packages),
            f"--to {self.name} needs the packages of the extra [export]: "
            "pip install -e '.[export]' here",
        )
