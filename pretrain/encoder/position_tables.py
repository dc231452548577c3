"""Position embeddings of a grid of patches, learnt or computed.

Source: Dosovitskiy et al. 2021, Table 8 and appendix D.4.
"""

from typing import Any

import torch
from timm.layers import (
    build_sincos2d_pos_embed,
    resample_abs_pos_embed,
    resample_abs_pos_embed_nhwc,
)
from torch import Tensor, nn

from data.settings import require

Grid = tuple[int, int]  # (rows, columns) of patches


class Positions(nn.Module):
    """Position embeddings of a grid, learnt or computed.

    Attributes:
        grid: (rows, columns) of patches.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def reset_parameters(self) -> None:
        """Draw what is learnt afresh, as timm draws its position embeddings."""
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=0.02)

    def resize(self, grid: Grid) -> None:
        """Interpolate to another grid, in float32; nothing changes where it is the same."""
        if grid != self.grid:
            self._resize(grid)
            self.grid = grid

    def _resize(self, grid: Grid) -> None:
        raise NotImplementedError

    def taken_apart(self, table: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the parameters, by name, that give a table (N, D) on this grid; here none."""
        return {}


class Learned1D(Positions):
    """An embedding for each patch, (N, D)."""

    def __init__(self, grid: Grid, width: int, **device_dtype: Any) -> None:
        super().__init__(grid)
        self.table = nn.Parameter(torch.empty(grid[0] * grid[1], width, **device_dtype))
        self.reset_parameters()

    def forward(self) -> Tensor:
        """Return the table, (N, D)."""
        return self.table

    def _resize(self, grid: Grid) -> None:
        self.table = _resample(self.table, self.grid, grid)


class Learned2D(Positions):
    """An embedding for each row and one for each column, of width D/2, concatenated."""

    def __init__(self, grid: Grid, width: int, **device_dtype: Any) -> None:
        super().__init__(grid)
        require(
            width % 2 == 0,
            f"encoder.embed_dim={width} has no two halves for encoder.position=learned_2d; "
            f"try {width + 1}",
        )
        self.rows = nn.Parameter(torch.empty(grid[0], width // 2, **device_dtype))
        self.columns = nn.Parameter(torch.empty(grid[1], width // 2, **device_dtype))
        self.reset_parameters()

    def forward(self) -> Tensor:
        """Return the table, (N, D): the row's half first."""
        rows, columns = self.grid
        halves = (self.rows[:, None].expand(-1, columns, -1), self.columns.expand(rows, -1, -1))
        return torch.cat(halves, dim=-1).flatten(0, 1)

    def _resize(self, grid: Grid) -> None:
        # bicubic is separable: the halves give what the whole table would give in 2-D
        self.rows = _resample(self.rows, (self.grid[0], 1), (grid[0], 1))
        self.columns = _resample(self.columns, (self.grid[1], 1), (grid[1], 1))

    def taken_apart(self, table: Tensor) -> dict[str, Tensor]:
        """Return the first column's row halves and the first row's column halves."""
        rows, columns = table.unflatten(0, self.grid).chunk(2, dim=-1)  # (R, C, D/2) each
        return {"rows": rows[:, 0].clone(), "columns": columns[0].clone()}


class SinCos2D(Positions):
    """Sines and cosines of the column in one half and of the row in the other; not trained.

    Source: He et al. 2022 (MAE), whose order of channels this is.
    """

    table: Tensor

    def __init__(self, grid: Grid, width: int, **device_dtype: Any) -> None:
        super().__init__(grid)
        require(
            width % 4 == 0,
            f"encoder.embed_dim={width} is not a multiple of 4, which encoder.position=sincos_2d "
            f"needs; try {max(1, round(width / 4)) * 4}",
        )
        self.register_buffer("table", _sincos(grid, width, **device_dtype), persistent=False)

    def forward(self) -> Tensor:
        """Return the table, (N, D)."""
        return self.table

    def reset_parameters(self) -> None:
        """Compute the table afresh, such as after `to_empty`."""
        width = self.table.shape[1]
        self.table = _sincos(self.grid, width, device=self.table.device, dtype=self.table.dtype)

    def _resize(self, grid: Grid) -> None:
        self.grid = grid
        self.reset_parameters()


class Offsets(Positions):
    """An embedding of a head's width d for each offset between two patches, (2R-1, 2C-1, d).

    The paper's offsets are those of patches in raster order, in 1-D; these are in rows and columns,
    so that they can be interpolated to another grid.

    The embeddings are gathered for all pairs, N * N * d numbers whatever the batch, and multiplied
    query by query: as many operations as queries times keys. Multiplying by all offsets first and
    gathering then would take 4 times those, and 4 * N * N numbers for each image and head.
    """

    def __init__(self, grid: Grid, width: int, **device_dtype: Any) -> None:
        super().__init__(grid)
        self.table = nn.Parameter(torch.empty(*_num_offsets(grid), width, **device_dtype))
        self.reset_parameters()

    def forward(self, queries: Tensor, places: Tensor | None = None) -> Tensor:
        """Multiply queries by the embeddings of their offsets to all keys.

        With `places`, the product is computed for all N patches and then picked from.

        Args:
            queries: (B, heads, V, d) of patches.
            places: int64 (B, V), which patches they are; None: all N.

        Returns:
            (B, heads, V, V).
        """
        if places is None:
            return torch.einsum("bhqd,qkd->bhqk", queries, self._pairs(queries.dtype))
        _, heads, num_visible, width = queries.shape
        num_patches = self.grid[0] * self.grid[1]
        down, across = places[:, None, :, None], places[:, None, None, :]
        everywhere = queries.new_zeros(queries.shape[0], heads, num_patches, width)
        logits = self(everywhere.scatter(2, down.expand(-1, heads, -1, width), queries))
        logits = logits.gather(2, down.expand(-1, heads, -1, num_patches))  # (B, heads, V, N)
        return logits.gather(3, across.expand(-1, heads, num_visible, -1))

    def _pairs(self, dtype: torch.dtype) -> Tensor:
        """Return the embedding of each query's offset to each key: (N, N, d)."""
        rows, columns = (_offsets(side, self.table.device) for side in self.grid)
        table = self.table.to(dtype)
        pairs = table[rows[:, None, :, None], columns[None, :, None, :]]  # (R, C, R, C, d)
        return pairs.flatten(2, 3).flatten(0, 1)

    def _resize(self, grid: Grid) -> None:
        table = resample_abs_pos_embed_nhwc(
            self.table.detach()[None], list(_num_offsets(grid)), interpolation="bilinear"
        )
        self.table = nn.Parameter(table[0], requires_grad=self.table.requires_grad)


def _resample(table: nn.Parameter, old: Grid, new: Grid) -> nn.Parameter:
    """Interpolate (N, D) as timm does its `pos_embed`."""
    resized = resample_abs_pos_embed(table.detach()[None], list(new), list(old), 0)[0]
    return nn.Parameter(resized, requires_grad=table.requires_grad)


def _sincos(grid: Grid, width: int, **device_dtype: Any) -> Tensor:
    table = build_sincos2d_pos_embed(list(grid), width, interleave_sin_cos=True, **device_dtype)
    return table.roll(width // 2, dims=1)  # timm has the rows first


def _num_offsets(grid: Grid) -> Grid:
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def _offsets(side: int, device: torch.device) -> Tensor:
    """Return query minus key along one side, from 0 on: int64 (side, side)."""
    place = torch.arange(side, device=device)
    return place[:, None] - place + side - 1
