"""Tiles: a local computation gives the result of the whole, and any other is blended."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaekit.maths.tiles import Tiling, count_tiles, run_in_tiles, windows
from vaekit.types import Array

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)

BEFORE, AFTER, REACH = 2, 3, 2  # positions in a cell of the input and of the result; cells on which a result depends


def local(rows: Array) -> Array:
    """Sum the input over all cells within ``REACH``, and repeat the sum at each position of the result."""
    n, channels, height, width = rows.shape
    cells = rows.reshape(n, channels, height // BEFORE, BEFORE, width // BEFORE, BEFORE).sum(axis=(1, 3, 5))
    padded = np.pad(cells, ((0, 0), (REACH, REACH), (REACH, REACH)))
    sums = np.lib.stride_tricks.sliding_window_view(padded, (2 * REACH + 1, 2 * REACH + 1), axis=(1, 2)).sum((3, 4))
    return np.kron(sums, np.ones((AFTER, AFTER)))[:, None].astype(np.float32)


@quick
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    tile=st.integers(2 * REACH + 1, 14),
    ramp=st.integers(0, 3),
)
def test_a_local_computation_gives_the_result_of_the_whole(height: int, width: int, tile: int, ramp: int) -> None:
    tiling = Tiling(max(tile, 2 * REACH + ramp + 1), REACH, ramp)
    rows = np.random.default_rng(0).random((2, 3, BEFORE * height, BEFORE * width), np.float32)
    done: list[int] = []
    cells = (height, width)
    found = run_in_tiles(local, rows, cells, tiling, 1, (BEFORE, AFTER), lambda: done.append(1))
    np.testing.assert_allclose(found, local(rows), rtol=1e-5)
    assert len(done) == 2 * count_tiles(cells, tiling)


@quick
@given(cells=st.integers(1, 60), tile=st.integers(7, 20), margin=st.integers(0, 2), ramp=st.integers(0, 2))
def test_weights_add_up_to_one_and_tiles_have_one_size(cells: int, tile: int, margin: int, ramp: int) -> None:
    made = windows(cells, Tiling(tile, margin, ramp), 4)
    total = np.zeros(4 * cells)
    for window in made:
        total[window.at(4)] += window.weights
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert {window.end - window.start for window in made} == {min(tile, cells)}
    assert (made[0].start, made[-1].end) == (0, cells)


def test_tiles_that_disagree_are_blended_without_a_seam() -> None:
    """Each tile gives another number; the result goes from one to the next in small steps."""
    numbers = iter(range(100))

    def run(part: Array) -> Array:
        return np.full_like(part, next(numbers))

    found = run_in_tiles(run, np.zeros((1, 1, 8, 64), np.float32), (8, 64), Tiling(16, 0, 8), 1, (1, 1))[0, 0, 0]
    assert (found[0], found[-1]) == (0, 6)
    assert np.abs(np.diff(found)).max() == pytest.approx(1 / 8, rel=0.01)
