"""Rooms as an SVG: each above all that it imports, arrows in lanes beside the rooms they pass."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from scripts._docs.rooms import Arrows

_WIDTH, _ROW, _BOX, _GAP, _LANE = 380, 62, 32, 8, 8
"""Units of the drawing; a telephone shows it at about 1 pixel a unit."""
_MOST = 3  # rooms side by side: a name must fit


class _Item(NamedTuple):
    """An entry of a row: a room, or the lane of all arrows that go on down to one."""

    row: int
    room: str
    is_lane: bool = False


_Link = tuple[_Item, _Item]


@dataclass(frozen=True)
class _Placed:
    """An item's place: its left edge, its width, and the top of its row."""

    x: float
    y: float
    width: float

    @property
    def centre(self) -> float:
        """The middle, where arrows come and go."""
        return self.x + self.width / 2


def draw(arrows: Arrows) -> str:
    """Return the drawing, in the page's own colours. What follows from other arrows is left out.

    Raises:
        ValueError: The rooms import each other in a circle.
    """
    rows = _rows(arrows)
    rooms = {room: _Item(row, room) for row, names in enumerate(rows) for room in names}
    links = {
        link
        for room, below in arrows.items()
        for target in below - _below(arrows, below)
        for link in pairwise(_way(rooms[room], rooms[target]))
    }
    items = {*rooms.values(), *(item for link in links for item in link)}
    places = {item: place for row in _order(items, links, len(rows)) for item, place in _place(row)}
    shapes = [_arrow(places[upper], places[lower], lower) for upper, lower in sorted(links)]
    shapes += [_shape(item, places[item]) for item in sorted(items)]
    height = len(rows) * _ROW
    label = f"{len(arrows)} rooms; each imports only rooms below it"
    return (
        f'<svg class="rooms" viewBox="0 {-height} {_WIDTH} {height}" role="img" '
        f'aria-label="{label}"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>'
        f"{''.join(shapes)}</svg>"
    )


def _rows(arrows: Arrows) -> list[list[str]]:
    """Sort rooms by the longest way down to one that imports nothing; a few side by side."""
    rows: list[list[str]] = []
    left = dict(arrows)
    while left:
        floor = sorted(room for room, below in left.items() if not below & set(left))
        if not floor:
            raise ValueError(f"in a circle, or above one: {', '.join(sorted(left))}")
        rows += [floor[start : start + _MOST] for start in range(0, len(floor), _MOST)]
        left = {room: below for room, below in left.items() if room not in floor}
    return rows


def _below(arrows: Arrows, rooms: Iterable[str]) -> set[str]:
    """Return what any of the rooms imports, and what that imports, and so on."""
    below: set[str] = set()
    for room in rooms:
        below |= arrows[room] | _below(arrows, arrows[room])
    return below


def _way(room: _Item, target: _Item) -> list[_Item]:
    """Return an arrow's stations, a row each: the room, lanes, the target."""
    lanes = [_Item(row, target.room, True) for row in range(room.row - 1, target.row, -1)]
    return [room, *lanes, target]


def _order(items: set[_Item], links: set[_Link], num_rows: int) -> list[list[_Item]]:
    """Order each row by the middle of what its items lead to, so that few arrows cross."""
    rows: list[list[_Item]] = []
    at: dict[_Item, float] = {}
    for row in range(num_rows):
        middle = {
            item: fmean([at[lower] for upper, lower in links if upper == item] or [0.5])
            for item in items
            if item.row == row
        }
        rows.append(sorted(middle, key=lambda item: (middle[item], item)))
        at |= {item: (place + 0.5) / len(middle) for place, item in enumerate(rows[-1])}
    return rows


def _place(row: list[_Item]) -> Iterator[tuple[_Item, _Placed]]:
    """Yield the places of a row's items from left to right: long names get wide rooms."""
    shares = {item: 0 if item.is_lane else len(_name(item)) + 4 for item in row}
    num_lanes = sum(item.is_lane for item in row)
    free = _WIDTH - num_lanes * _LANE - (len(row) + 1) * _GAP
    x = float(_GAP)
    for item, share in shares.items():
        width = _LANE if item.is_lane else free * share / sum(shares.values())
        yield item, _Placed(x, -(item.row + 1) * _ROW + (_ROW - _BOX) / 2, width)
        x += width + _GAP


def _name(item: _Item) -> str:
    return item.room.partition("/")[2] or item.room


def _shape(item: _Item, place: _Placed) -> str:
    x, y, centre = place.x, place.y, place.centre
    if item.is_lane:
        return f'<path d="M{centre:.0f} {y:.0f}v{_BOX}"/>'
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{place.width:.0f}" height="{_BOX}" rx="5"/>'
        f'<text x="{centre:.0f}" y="{y + _BOX / 2 + 4:.0f}">{_name(item)}</text>'
    )


def _arrow(upper: _Placed, lower: _Placed, end: _Item) -> str:
    x, y, to_x, to_y = upper.centre, upper.y + _BOX, lower.centre, lower.y
    half = (y + to_y) / 2
    tip = "" if end.is_lane else ' marker-end="url(#tip)"'
    curve = f"M{x:.0f} {y:.0f}C{x:.0f} {half:.0f} {to_x:.0f} {half:.0f} {to_x:.0f} {to_y:.0f}"
    return f'<path{tip} d="{curve}"/>'
