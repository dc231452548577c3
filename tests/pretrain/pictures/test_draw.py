"""The figures: what is drawn where, and files that are the same at each call."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.settings import UserError
from pretrain.pictures import draw


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


PLACES = torch.tensor([[1, 2], [4, 1]])
FIGURES: dict[str, Callable[[], Any]] = {
    "filters": lambda: draw.filters(random(28, 3, 16, 16)),
    "few grey filters": lambda: draw.filters(random(3, 1, 4, 8)),
    "filters of many channels": lambda: draw.filters(random(9, 6, 4, 4)),
    "similarity": lambda: draw.similarity(random(64, 8, 8)),
    "similarity of a long grid": lambda: draw.similarity(random(34, 2, 17)),
    "distances": lambda: draw.distances(random(12, 6) * 100),
    "rollout": lambda: draw.rollout((random(3, 3, 32, 48) * 255).byte(), random(3, 4, 6)),
    "neighbours": lambda: draw.neighbours(
        (random(5, 3, 16, 16) * 255).byte(), torch.tensor([0, 3]), dict.fromkeys("ab", PLACES)
    ),
    "rollout of two channels": lambda: draw.rollout(
        (random(1, 2, 16, 16) * 255).byte(), random(1, 4, 4)
    ),
}


def pixels(figure: Any) -> np.ndarray:
    """Return what the first axes show, uint8 (H, W, 4)."""
    return (np.asarray(figure.axes[0].images[0].get_array()) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_same_file_at_each_call(name: str, tmp_path: Path) -> None:
    make = FIGURES[name]
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        draw.save(make, tmp_path / folder / "my.figure")
    for suffix in ("png", "svg"):
        one, other = (tmp_path / f / f"my.figure.{suffix}" for f in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()
    text = (tmp_path / "one/my.figure.svg").read_text()
    assert "<dc:date>" not in text
    with Image.open(tmp_path / "one/my.figure.png") as picture:
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert picture.width == 5.4 * 200  # readable at a phone's width
        assert 200 < picture.height < 2000
        corner: Any = picture.getpixel((0, 0))
    assert corner[3] == 0  # clear


@pytest.mark.parametrize("name", FIGURES)
def test_the_ink_is_what_is_asked_for(name: str) -> None:
    """Mid-grey for any ground; a page sets colours of its own."""
    assert draw.GREY in draw.render(FIGURES[name], "svg").decode()
    svg = draw.render(FIGURES[name], "svg", ink="#010203").decode()
    assert "#010203" in svg
    assert draw.GREY not in svg
    black = draw.pixels(FIGURES[name])
    assert black.dtype == torch.uint8
    assert black.shape[1:] == (540, 3)
    assert black[0, 0].tolist() == [255, 255, 255]


def test_each_filter_has_its_own_full_range() -> None:
    components = random(9, 3, 4, 4) * torch.arange(1, 10).view(9, 1, 1, 1) - 5
    shown = pixels(draw.filters(components))
    assert shown.shape == (2 * 4 + 1, 7 * 4 + 6, 4)  # seven a row, gaps of one
    tiles = [shown[y : y + 4, x : x + 4] for y in (0, 5) for x in range(0, 35, 5)]
    for tile, component in zip(tiles, components, strict=False):
        assert tile[..., :3].min() == 0
        assert tile[..., :3].max() == 255
        scaled = (component - component.min()) / (component.max() - component.min())
        np.testing.assert_allclose(tile[..., :3], scaled.permute(1, 2, 0) * 255, atol=0.51)
    assert (shown[4] == 0).all()
    assert not any(tile.any() for tile in tiles[9:])  # the row is filled up with clear ones


@pytest.mark.parametrize(
    ("grid", "rows", "columns"),
    [((7, 7), range(7), range(7)), ((4, 20), range(4), range(0, 20, 3)), ((1, 1), [0], [0])],
)
def test_each_kth_patch_has_a_map_of_all(
    grid: tuple[int, int], rows: list[int], columns: list[int]
) -> None:
    """Each map is brightest at its own patch, and the ticks name its row and column."""
    num = grid[0] * grid[1]
    figure = draw.similarity(torch.eye(num).unflatten(1, grid))
    axes: Any = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [str(y + 1) for y in rows]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(x + 1) for x in columns]
    shown, gap = pixels(figure), max(1, max(grid) // 8)
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            top, left = i * (grid[0] + gap), j * (grid[1] + gap)
            tile = shown[top : top + grid[0], left : left + grid[1], :3].sum(2).astype(int)
            assert divmod(int(tile.argmax()), grid[1]) == (y, x)


def test_there_is_a_dot_for_each_head() -> None:
    values = random(3, 4)
    axes: Any = draw.distances(values).axes[0]
    x, y = axes.lines[0].get_data()
    assert x.tolist() == [1] * 4 + [2] * 4 + [3] * 4
    assert y.tolist() == values.flatten().tolist()
    assert axes.get_ylabel() == "mean attention distance (pixels)"
    assert axes.get_xlabel() == "depth (block)"


def test_rollout_darkens_what_does_not_reach_the_output() -> None:
    images = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    masks = torch.zeros(1, 2, 2)
    masks[0, 0, 1] = 0.3  # the largest: shown as it is
    figure: Any = draw.rollout(images, masks)
    shown = pixels(figure)
    assert (shown[:, :8, :3] == 200).all()
    assert shown[0, -1, :3].tolist() == [200] * 3
    assert shown[-1, -1, :3].tolist() == [0] * 3
    names = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert names == ["input", "attention"]


def test_clear_ground_is_white_for_a_screen() -> None:
    picture = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    picture.putpixel((0, 0), (10, 20, 30, 255))
    content = BytesIO()
    picture.save(content, "PNG")
    found = draw.on_white(content.getvalue())
    assert found.shape == (2, 3, 3)
    assert found[0, 0].tolist() == [10, 20, 30]
    assert (found[1] == 255).all()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    draw.require_matplotlib()
    monkeypatch.setattr(draw, "is_possible", lambda: False)
    with pytest.raises(UserError, match=r"matplotlib, .* pip install -e '\.\[report\]' here"):
        draw.require_matplotlib()
