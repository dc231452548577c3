"""Alternatives that need not be installed: which of them take part."""

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from data.settings import UserError, require

NOBODY = "none"


@dataclass(frozen=True)
class Package:
    """The package that an alternative needs.

    Attributes:
        name: As pip knows it.
        module: As Python does.
    """

    name: str
    module: str

    @property
    def is_installed(self) -> bool:
        """Whether it can be imported; it is not."""
        outer = self.module.partition(".")[0]  # find_spec raises where that is missing
        return find_spec(outer) is not None and find_spec(self.module) is not None

    def require_for(self, what: str) -> Any:
        """Return the module.

        Raises:
            UserError: It is not installed.
        """
        require(self.is_installed, f"{what} {self.complaint}")
        return import_module(self.module)

    @property
    def complaint(self) -> str:
        """The message where it is not installed."""
        return (
            f"needs {self.name}, which is not installed; run pip install -e '.[bench]' here "
            "(make bench does, in an environment of its own)"
        )


VIT_PYTORCH = Package("vit-pytorch", "vit_pytorch.mpp")
TRANSFORMERS = Package("transformers", "transformers")


def choose(against: str | None, alternatives: dict[str, Package]) -> list[str]:
    """Choose the alternatives to run, in the order in which they are declared.

    Args:
        against: Names separated by commas, or none. None: all that are installed; what is not is
            named on stderr, a line each.
        alternatives: What each name needs.

    Raises:
        UserError: A name is unknown, or what it needs is not installed.
    """
    if against is None:
        for name, package in alternatives.items():
            if not package.is_installed:
                print(f"left out: {name} {package.complaint}", file=sys.stderr)
        return [name for name, package in alternatives.items() if package.is_installed]
    names = [] if against == NOBODY else against.split(",")
    for name in names:
        if name not in alternatives:
            known = ", ".join([*alternatives, NOBODY])
            raise UserError(f"--against={against}: {name!r} is not one of {known}")
        package = alternatives[name]
        require(package.is_installed, f"--against={against}: {name} {package.complaint}")
    return [name for name in alternatives if name in names]
