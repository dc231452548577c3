"""The parts of a report: sections of figures, and charts of lines."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

LineKind = Literal["raw", "line", "joined", "points", "dashed", "dotted", "smooth", "steps"]
Suffix = Literal["png", "svg"]
SUFFIXES: tuple[Suffix, ...] = ("png", "svg")

# Okabe and Ito's palette and neighbours of it, told apart by colour-blind readers. The names are
# variables of the page, which gives them another lightness on dark ground.
PALETTE = {
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#009e73",
    "purple": "#8250df",
    "gold": "#9a6700",
    "pink": "#bf3989",
    "cyan": "#0e7c8a",
    "grey": "#6b7280",
}


@dataclass(frozen=True)
class Line:
    """One line of a chart, or its points.

    Attributes:
        label: Its name in the legend.
        colour: A name in `PALETTE`.
        kind: `raw` is thin; `points` are markers, `joined` markers on a thin line; `smooth` is a
            running mean; `steps` hold each value until the next.
        points: (x, y) in the axes' units.
        marker: matplotlib's sign, where the kind has markers.
        spread: A deviation for each point, drawn as a bar; empty for none.
        key: Of the records that its values come from, where they are filled in later.
    """

    label: str
    colour: str
    kind: LineKind
    points: tuple[tuple[float, float], ...] = ()
    marker: str = "o"
    spread: tuple[float, ...] = ()
    key: str = ""


@dataclass(frozen=True)
class Plot:
    """A chart.

    Attributes:
        title: Heading, unlike any other's of the page.
        axis: Label of the vertical axis, with the unit.
        lines: What is drawn.
        reading: A sentence or two on how to read it.
        across: Label of the horizontal axis.
        start_at_zero: Whether the vertical axis begins at 0.
        least_top: The vertical axis ends there or above.
        is_of_runs: Whether each line is of another run.
    """

    title: str
    axis: str
    lines: tuple[Line, ...]
    reading: str
    across: str = "step"
    start_at_zero: bool = True
    least_top: float | None = None
    is_of_runs: bool = False

    @property
    def scale(self) -> float:
        """The factor on the records' values, which are fractions where the axis says percent."""
        return 100 if "%" in self.axis else 1

    @property
    def has_legend(self) -> bool:
        """Whether its lines need names; the title names a single one, unless it is a run's."""
        return len(self.lines) > 1 or self.is_of_runs


@dataclass(frozen=True)
class Figure:
    """A picture on the page and, when asked for, in files of its own.

    Attributes:
        title: Heading.
        name: Of its files; no other of the report has it.
        picture: HTML with an alternative text.
        caption: How to read it.
        export: A file's content by its suffix.
        is_wide: Whether it takes the page's whole width.
    """

    title: str
    name: str
    picture: str
    caption: str
    export: Callable[[Suffix], bytes]
    is_wide: bool = False


@dataclass(frozen=True)
class Section:
    """The contents of one heading.

    Attributes:
        title: Heading.
        body: HTML above the figures.
        figures: They stand side by side where there is room.
        notes: Small print below.
        script: JavaScript that its body needs.
    """

    title: str
    body: str = ""
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    script: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.body or self.figures or self.notes)


def file_name(title: str) -> str:
    """Return a heading as a file's name: lower case, with hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
