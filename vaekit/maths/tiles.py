"""Run a network on large images or maps in overlapping tiles.

Positions are counted in cells: the squares of pixels by which a model's image sizes grow. If a network's result in a
cell depends on no more than the cells around it up to some distance, and tiles overlap by twice that distance, then
tiles give the result of the whole image, but for rounding. For other networks, neighbouring tiles are blended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaekit.types import Array

Run = Callable[[Array], Array]
"""Computes a network's results for rows (N, channels, height, width)."""


@dataclass(frozen=True)
class Tiling:
    """The size of tiles and the treatment of their edges, in cells."""

    tile: int
    """Side of a tile."""
    margin: int
    """Cells at a tile's inner edges whose results are dropped, because cells beyond the edge are missing there."""
    ramp: int = 0
    """Cells over which neighbouring tiles are blended."""

    @property
    def overlap(self) -> int:
        """Return how many cells neighbouring tiles share at least."""
        return 2 * self.margin + self.ramp


class Window(NamedTuple):
    """A tile's place on one axis."""

    start: int
    """Its first cell."""
    end: int
    """The cell after its last one."""
    weights: NDArray[np.float32]
    """Its share in the result at each of its positions. The shares of all tiles add up to 1."""

    def at(self, scale: int) -> slice:
        """Return its positions on an axis with ``scale`` positions in a cell."""
        return slice(self.start * scale, self.end * scale)


def windows(cells: int, tiling: Tiling, scale: int) -> list[Window]:
    """Cover an axis with evenly spaced tiles; their weights are for ``scale`` positions in a cell."""
    tile = min(tiling.tile, cells)
    count = 1 if tile == cells else -(-(cells - tiling.overlap) // (tile - tiling.overlap))
    starts = [round(number * (cells - tile) / max(1, count - 1)) for number in range(count)]
    shares = [_shares(start, start + tile, cells, tiling, scale) for start in starts]
    total = np.zeros(cells * scale)
    for start, share in zip(starts, shares, strict=True):
        total[start * scale : (start + tile) * scale] += share
    return [
        Window(start, start + tile, (share / total[start * scale : (start + tile) * scale]).astype(np.float32))
        for start, share in zip(starts, shares, strict=True)
    ]


def count_tiles(cells: tuple[int, int], tiling: Tiling) -> int:
    """Return the number of tiles of an image with these sides in cells."""
    return len(windows(cells[0], tiling, 1)) * len(windows(cells[1], tiling, 1))


def _shares(start: int, end: int, cells: int, tiling: Tiling, scale: int) -> NDArray[np.float64]:
    """Return a tile's weights before they are divided by the sum over all tiles.

    They are 0 in the margin, rise over the ramp, and are 1 further inside. The image's own edges have no margin.
    """
    inside = np.arange(scale * (end - start)) + 0.5
    margin, ramp = scale * tiling.margin, max(scale * tiling.ramp, 1)
    from_left, from_right = (inside - margin) / ramp, (inside[::-1] - margin) / ramp
    rise = from_left if start else np.ones_like(inside)
    fall = from_right if end < cells else np.ones_like(inside)
    return np.clip(np.minimum(rise, fall), 0, 1)


def run_in_tiles(
    run: Run,
    rows: Array,
    cells: tuple[int, int],
    tiling: Tiling,
    channels: int,
    scales: tuple[int, int],
    done: Callable[[], object] = lambda: None,
) -> Array:
    """Compute a network's results for rows (N, …, height, width), tile by tile, one row at a time.

    ``cells`` are the sides in cells. ``scales`` are the positions in a cell of the input and of the result, which has
    ``channels`` channels. ``done`` is called after each tile.
    """
    before, after = scales
    result = np.zeros((len(rows), channels, *(side * after for side in cells)), np.float32)
    down, across = (windows(side, tiling, after) for side in cells)
    for row, place in zip(rows, result, strict=True):
        for high in down:
            for wide in across:
                part = np.ascontiguousarray(row[None, :, high.at(before), wide.at(before)])
                place[:, high.at(after), wide.at(after)] += run(part)[0] * np.outer(high.weights, wide.weights)
                done()
    return result
