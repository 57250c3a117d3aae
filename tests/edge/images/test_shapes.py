from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vaekit.images.shapes import FACTOR_NAMES, SHAPE_NAMES, Shapes, draw_shapes

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)

SIDE = 96


@pytest.fixture(scope="module")
def drawn() -> Shapes:
    return draw_shapes(300, (SIDE, SIDE))


def column(drawn: Shapes, name: str) -> NDArray[np.float64]:
    return drawn.factors[:, FACTOR_NAMES.index(name)]


def ink(drawn: Shapes, number: int) -> NDArray[np.bool_]:
    """The pixels that are nearer to the shape's colour than to the background's."""
    pixels = drawn.images[number].astype(float)
    paper = pixels[:, 0, 0]
    distance = np.abs(pixels - paper[:, None, None]).sum(axis=0)
    return np.asarray(distance > distance.max() / 2)


def test_shapes_have_the_form_that_is_promised() -> None:
    drawn = draw_shapes(7, (12, 20))
    assert drawn.images.shape == (7, 3, 12, 20)
    assert drawn.images.dtype == np.uint8
    assert drawn.factors.shape == (7, len(FACTOR_NAMES))
    assert drawn.factors.dtype == np.float64
    assert draw_shapes(1).images.shape == (1, 3, 32, 32)
    assert draw_shapes(0).images.shape == (0, 3, 32, 32)


@quick
@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.integers(1, 20), st.data())
def test_a_shape_does_not_depend_on_those_drawn_with_it(seed: int, start: int, count: int, data: st.DataObject) -> None:
    together = draw_shapes(count, (8, 8), start=start, seed=seed)
    k = data.draw(st.integers(0, count - 1))
    alone = draw_shapes(1, (8, 8), start=start + k, seed=seed)
    assert alone.factors.tobytes() == together.factors[k : k + 1].tobytes()
    # NumPy's float32 sine can round differently in vectorised code, which changes a pixel by one.
    assert np.abs(alone.images[0].astype(int) - together.images[k]).max() <= 1


def test_drawing_many_shapes_draws_each_as_drawing_few_does() -> None:
    many = draw_shapes(40_000, (8, 8))
    for start in (0, 31_200, 39_950):
        few = draw_shapes(50, (8, 8), start=start)
        part = slice(start, start + 50)
        assert np.array_equal(many.factors[part], few.factors)
        assert np.abs(many.images[part].astype(int) - few.images).max() <= 1


def test_seeds_differ() -> None:
    assert not np.array_equal(draw_shapes(5).images, draw_shapes(5, seed=1).images)


def test_factors_lie_in_their_ranges_and_fill_them() -> None:
    factors = draw_shapes(3_000, (8, 8)).factors
    ranges = {"size": (0.13, 0.24), "x": (0.3, 0.7), "y": (0.3, 0.7)}
    for name, values in zip(FACTOR_NAMES[1:], factors.T[1:], strict=True):
        low, high = ranges.get(name, (0.0, 1.0))
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high > values.max() > high - 0.01 * (high - low)
    counts = np.bincount(factors[:, 0].astype(int))
    assert len(counts) == len(SHAPE_NAMES)
    assert counts / 3_000 == pytest.approx(1 / 3, abs=0.04)
    correlation = np.corrcoef(factors.T) - np.eye(len(FACTOR_NAMES))
    assert np.abs(correlation).max() < 0.08


def test_a_shape_has_the_area_of_its_circle(drawn: Shapes) -> None:
    sizes = column(drawn, "size")
    for number in range(60):
        assert ink(drawn, number).sum() == pytest.approx(np.pi * (sizes[number] * SIDE) ** 2, rel=0.06)


def test_a_shape_stands_where_its_factors_say(drawn: Shapes) -> None:
    for number in range(60):
        rows, columns = np.nonzero(ink(drawn, number))
        assert (columns.mean() + 0.5) / SIDE == pytest.approx(column(drawn, "x")[number], abs=0.012)
        assert (rows.mean() + 0.5) / SIDE == pytest.approx(column(drawn, "y")[number], abs=0.012)


def test_a_shape_and_its_background_have_their_hues(drawn: Shapes) -> None:
    for number in range(60):
        inked = ink(drawn, number)
        rows, columns = np.nonzero(inked)
        centre = drawn.images[number][:, int(rows.mean()), int(columns.mean())] / 255
        assert centre == pytest.approx(colorsys.hsv_to_rgb(column(drawn, "hue")[number], 0.85, 0.8), abs=0.005)
        paper = colorsys.hsv_to_rgb(column(drawn, "background_hue")[number], 0.22, 0.95)
        assert drawn.images[number][:, 0, 0] / 255 == pytest.approx(paper, abs=0.005)


def test_shapes_are_told_apart_by_how_far_they_reach(drawn: Shapes) -> None:
    reaches = {"circle": 1.0, "square": np.sqrt(np.pi / 2), "triangle": 2 * np.sqrt(np.pi / (3 * np.sqrt(3)))}
    for number in range(60):
        name = SHAPE_NAMES[int(column(drawn, "shape")[number])]
        rows, columns = np.nonzero(ink(drawn, number))
        x, y = column(drawn, "x")[number] * SIDE, column(drawn, "y")[number] * SIDE
        reach = np.hypot(columns + 0.5 - x, rows + 0.5 - y).max() / (column(drawn, "size")[number] * SIDE)
        assert reach == pytest.approx(reaches[name], rel=0.08)
