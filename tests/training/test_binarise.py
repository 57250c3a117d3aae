"""Binary images: what each kind of draw preserves, and what it depends on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from vaekit.training.binarise import binarise_dynamic, binarise_fixed

Pixels = NDArray[np.uint8]
images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.just(8), st.just(9)))


def draw_dynamic(pixels: Pixels, seed: int = 0) -> Pixels:
    return binarise_dynamic(pixels, np.random.default_rng(seed))


def draw_fixed(pixels: Pixels) -> Pixels:
    return binarise_fixed(pixels, np.arange(len(pixels)))


@given(pixels=images)
def test_pixels_become_black_or_white_and_those_that_are_stay(pixels: Pixels) -> None:
    for drawn in (draw_fixed(pixels), draw_dynamic(pixels)):
        assert drawn.dtype == np.uint8
        assert drawn.shape == pixels.shape
        assert np.isin(drawn, (0, 255)).all()
        extreme = np.isin(pixels, (0, 255))
        assert np.array_equal(drawn[extreme], pixels[extreme])
        assert np.array_equal(draw_fixed(drawn), drawn)


@pytest.mark.parametrize("draw", [draw_fixed, draw_dynamic])
@pytest.mark.parametrize("grey", [1, 64, 128, 254])
def test_the_grey_value_is_the_probability_of_white(draw: Any, grey: int) -> None:
    pixels = np.full((40, 1, 50, 50), grey, np.uint8)
    p = grey / 255
    assert (draw(pixels) == 255).mean() == pytest.approx(p, abs=5 * (p * (1 - p) / pixels.size) ** 0.5)


@given(indices=st.lists(st.integers(0, 10**9), min_size=1, max_size=5, unique=True))
def test_a_fixed_draw_follows_from_the_image_and_its_number_alone(indices: list[int]) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (len(indices), 1, 8, 8), np.uint8)
    together = binarise_fixed(pixels, np.array(indices))
    for row, index in enumerate(indices):
        assert np.array_equal(binarise_fixed(pixels[row : row + 1], np.array([index]))[0], together[row])


def test_draws_of_different_images_differ() -> None:
    pixels = np.full((3, 1, 8, 8), 128, np.uint8)
    drawn = draw_fixed(pixels)
    assert len({row.tobytes() for row in drawn}) == 3


def test_a_dynamic_draw_is_another_each_time() -> None:
    pixels, generator = np.full((3, 1, 8, 8), 128, np.uint8), np.random.default_rng(0)
    assert not np.array_equal(binarise_dynamic(pixels, generator), binarise_dynamic(pixels, generator))
    assert np.array_equal(draw_dynamic(pixels, 5), draw_dynamic(pixels, 5))
