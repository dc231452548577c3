"""What each format provides."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
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
        check: Raises `UserError` for what the format cannot hold.
        write: Fills a folder.
        run: Loads that folder as its users do, and runs uint8 images (B, C, H, W) through it.
        usage: Python that loads it from a place and runs photo.jpg, or else image.npy.
        describe: Lines about what goes in and out.
    """

    name: str
    library: str
    packages: tuple[str, ...]
    check: Callable[[Source], None]
    write: Callable[[Source, Path], None]
    run: Callable[[Path, Tensor], Outputs]
    usage: Callable[[Source, str], str]
    describe: Callable[[Source], list[str]]

    def require_packages(self) -> None:
        """Raise `UserError` unless its packages are installed."""
        require(
            all(find_spec(package) for package in self.packages),
            f"--to {self.name} needs the packages of the extra [export]: "
            "pip install -e '.[export]' here",
        )


def run_in_two_batches(run: Callable[[Tensor], Outputs], images: Tensor) -> Outputs:
    """Run one image alone and all of them with one more, so that two batch sizes are used."""
    alone, together = run(images[:1]), run(torch.cat([images, images[:1]]))
    return {name: torch.cat([alone[name], together[name][1:-1]]) for name in together}
