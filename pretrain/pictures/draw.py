"""Figures of what an encoder has learnt. Needs matplotlib (extra `report`).

Each function makes a matplotlib figure in the colours that it finds set, without a title, small
enough to be read on a phone. `render` and `save` set mid-grey ink on clear ground, which is
readable on light and on dark.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.settings import require
from data.shards import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#7f7f7f"  # readable on white and on black
_BLUE = "#0072b2"  # Okabe and Ito's
_INKED = (
    *("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"),
    *("xtick.color", "ytick.color", "legend.labelcolor"),
)
_WIDTH = 5.4  # inches; small, so that the text is still readable on a phone
_PAPER_DPI, _SCREEN_DPI = 200, 100
_FLATTEST, _STEEPEST = 0.25, 1.6  # height by width of a figure of tiles
_MOST_MAPS = 8  # similarity maps a side
_FILTERS_A_ROW = 7


def is_possible() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raise `UserError` unless matplotlib is installed."""
    require(
        is_possible(),
        "the charts need matplotlib, which is not installed; run pip install -e '.[report]' here",
    )


# ---------------------------------------------------------------- the figures


def filters(components: Tensor) -> "Figure":
    """Draw the patch embedding's principal filters, the first one top left.

    Each is stretched to its own full range.

    Args:
        components: (K, C, Ph, Pw), what `weights.principal_filters` gave.
    """
    lowest, highest = components.amin((1, 2, 3), keepdim=True), components.amax((1, 2, 3), True)
    tiles = _rgba((components - lowest) / (highest - lowest).clamp(min=1e-12))
    columns = min(_FILTERS_A_ROW, len(tiles))
    picture = _mosaic(_in_rows(tiles, columns), _gap(tiles))
    figure, axes = _canvas(picture)
    _hide(axes)
    axes.set_xlabel("principal components of the patch embedding")
    return figure


def similarity(table: Tensor) -> "Figure":
    """Draw a map for each patch: the cosine similarity of its position embedding to all others.

    Of a large grid, every k-th row and column has a map; each map shows all patches. Colours span
    the smallest similarity to 1.

    Args:
        table: (N, rows, columns), what `weights.position_similarity` gave.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    grid = table.shape[1:]
    rows, columns = (range(0, side, math.ceil(side / _MOST_MAPS)) for side in grid)
    chosen = table.unflatten(0, grid)[list(rows)][:, list(columns)]  # (r, c, rows, columns)
    norm, colours = Normalize(float(table.min()), 1), colormaps["viridis"]
    tiles = colours(norm(chosen.numpy()))  # (r, c, rows, columns, 4)
    gap = max(1, max(grid) // 8)
    figure, axes = _canvas(_mosaic(tiles, gap), spare=1.25)
    _hide(axes)
    axes.set_xticks(_middles(len(columns), grid[1], gap), [str(x + 1) for x in columns])
    axes.set_yticks(_middles(len(rows), grid[0], gap), [str(y + 1) for y in rows])
    axes.set_xlabel("column of the patch")
    axes.set_ylabel("row of the patch")
    figure.colorbar(ScalarMappable(norm, colours), ax=axes, label="cosine similarity", shrink=0.8)
    return figure


def distances(values: Tensor) -> "Figure":
    """Draw the mean attention distance over depth, a dot a head.

    Args:
        values: (L, heads) in pixels, what `attention.distances` gave.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(_WIDTH, 3.1), layout="constrained")
    axes = figure.add_subplot()
    depth, num_heads = values.shape
    layers = np.repeat(np.arange(1, depth + 1), num_heads)
    axes.plot(layers, values.flatten().numpy(), "o", color=_BLUE, markersize=5, alpha=0.6)
    axes.set_xlabel("depth (block)")
    axes.set_ylabel("mean attention distance (pixels)")
    axes.set_xlim(0.5, depth + 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(linewidth=0.8, alpha=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def rollout(images: Tensor, masks: Tensor) -> "Figure":
    """Draw each image beside itself, darkened where little of it reaches the output.

    Each mask is scaled to a maximum of 1 and interpolated to the image's size.

    Args:
        images: uint8 (B, C, H, W).
        masks: (B, rows, columns), what `attention.rollout` gave.
    """
    masks = masks / masks.amax((1, 2), keepdim=True)
    masks = F.interpolate(masks[:, None], images.shape[2:], mode="bilinear")  # (B, 1, H, W)
    colours = images.float() / 255
    pairs = torch.stack([colours, colours * masks], dim=1).flatten(0, 1)  # (2 B, C, H, W)
    columns = min(4, len(pairs))
    tiles, gap = _in_rows(_rgba(pairs), columns), max(2, images.shape[3] // 20)
    figure, axes = _canvas(_mosaic(tiles, gap))
    _hide(axes)
    names = ["input", "attention"] * (columns // 2)
    axes.set_xticks(_middles(columns, images.shape[3], gap), names)
    axes.xaxis.tick_top()
    return figure


def neighbours(images: Tensor, queries: Tensor, found: Mapping[str, Tensor]) -> "Figure":
    """Draw images in a column, and beside each its nearest ones, a group a name.

    Args:
        images: uint8 (B, C, H, W).
        queries: int64 (Q,), places among the images.
        found: By name, int64 (Q, K), what `neighbours.nearest_images` gave.
    """
    tiles, gap = _rgba(images.float() / 255), max(2, images.shape[3] // 20)
    groups = {"image": queries[:, None], **found}
    pictures = [_mosaic(tiles[places.numpy()], gap) for places in groups.values()]
    apart = [np.pad(picture, ((0, 0), (0, 4 * gap), (0, 0))) for picture in pictures]
    figure, axes = _canvas(np.concatenate(apart, axis=1)[:, : -4 * gap])
    _hide(axes)
    ends = np.cumsum([picture.shape[1] for picture in apart])
    middles = [end - 4 * gap - p.shape[1] / 2 for end, p in zip(ends, pictures, strict=True)]
    axes.set_xticks(middles, list(groups))
    axes.xaxis.tick_top()
    return figure


def sheet(pictures: Tensor, rows: Sequence[str], columns: Sequence[str]) -> "Figure":
    """Draw pictures in named rows and columns.

    Args:
        pictures: uint8 (rows, columns, C, H, W).
        rows: Their names.
        columns: Their names.
    """
    height, width = pictures.shape[3:]
    tiles, gap = _rgba(pictures.flatten(0, 1).float() / 255), max(2, width // 20)
    figure, axes = _canvas(_mosaic(_in_rows(tiles, len(columns)), gap))
    _hide(axes)
    axes.set_xticks(_middles(len(columns), width, gap), columns)
    plain = [name.replace("$", r"\$") for name in rows]  # no formulas
    axes.set_yticks(_middles(len(rows), height, gap), plain)
    axes.xaxis.tick_top()
    return figure


# ---------------------------------------------------------------- tiles


def rgb(pictures: Tensor) -> Tensor:
    """Show pictures of any channels in three: (B, C, H, W) -> (B, 3, H, W).

    One channel is grey. Of more than three the first three are red, green and blue; of two, blue
    is 0.
    """
    if pictures.shape[1] == 1:
        return pictures.expand(-1, 3, -1, -1)
    return F.pad(pictures[:, :3], (0, 0, 0, 0, 0, max(0, 3 - pictures.shape[1])))


def _rgba(pictures: Tensor) -> np.ndarray:
    """Colour pictures in 0..1: (K, C, H, W) -> (K, H, W, 4)."""
    return F.pad(rgb(pictures), (0, 0, 0, 0, 0, 1), value=1.0).permute(0, 2, 3, 1).numpy()


def _in_rows(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Lay tiles out in rows, the last one filled up with clear ones: (rows, columns, h, w, 4)."""
    missing = -len(tiles) % columns
    tiles = np.pad(tiles, ((0, missing), (0, 0), (0, 0), (0, 0)))
    return tiles.reshape(-1, columns, *tiles.shape[1:])


def _gap(tiles: np.ndarray) -> int:
    return max(1, max(tiles.shape[1:3]) // 8)


def _mosaic(tiles: np.ndarray, gap: int) -> np.ndarray:
    """Join tiles (rows, columns, h, w, 4) to one picture, with clear gaps."""
    padded = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)))
    rows, columns, height, width, _ = padded.shape
    joined = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 4)
    return joined[:-gap, :-gap]


def _middles(num: int, side: int, gap: int) -> list[float]:
    """Return where the middles of the tiles are along one side of the mosaic."""
    return [place * (side + gap) + (side - 1) / 2 for place in range(num)]


def _canvas(picture: np.ndarray, spare: float = 0.0) -> tuple["Figure", "Axes"]:
    """Make a figure of one picture (H, W, 4), `spare` inches of its width kept free."""
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    inches = (_WIDTH - spare) * min(max(height / width, _FLATTEST), _STEEPEST)
    figure = Figure(figsize=(_WIDTH, inches + 0.4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(picture, interpolation="none")  # pixels stay pixels
    return figure, axes


def _hide(axes: "Axes") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


# ---------------------------------------------------------------- into files


def render(
    make: Callable[[], "Figure"],
    suffix: str,
    *,
    ink: str = GREY,
    is_clear: bool = True,
    dpi: int = _PAPER_DPI,
    look: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Draw a figure and return the file's content, the same bytes at each call.

    Args:
        make: Draws it, in the colours that it finds set.
        suffix: png or svg.
        ink: Colour of text and lines.
        is_clear: Clear ground rather than white.
        dpi: Dots an inch of PNG.
        look: Further settings of matplotlib.
    """
    import matplotlib

    settings: dict[Any, Any] = {"svg.hashsalt": "figure", "font.size": 10.5, **look}
    settings.update(dict.fromkeys(_INKED, ink))
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # names in a script that its font lacks
        content = BytesIO()
        dates = ("Date", "Creator", "Format", "Type") if suffix == "svg" else ("Software",)
        nothing = dict.fromkeys(dates)
        make().savefig(content, format=suffix, transparent=is_clear, dpi=dpi, metadata=nothing)
    return content.getvalue()


def save(make: Callable[[], "Figure"], path: Path) -> None:
    """Write a figure to PATH.png, at 200 dots an inch, and PATH.svg."""
    for suffix in ("png", "svg"):
        with atomic_write(path.with_name(f"{path.name}.{suffix}")) as file:
            file.write(render(make, suffix))


def pixels(make: Callable[[], "Figure"]) -> Tensor:
    """Draw a figure as a picture for a screen, black on white: uint8 (H, W, 3)."""
    return on_white(render(make, "png", ink="black", is_clear=False, dpi=_SCREEN_DPI))


def on_white(png: bytes) -> Tensor:
    """Read a PNG, its clear parts as white: uint8 (H, W, 3)."""
    picture = Image.open(BytesIO(png)).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    return torch.from_numpy(np.array(Image.alpha_composite(ground, picture).convert("RGB")))
