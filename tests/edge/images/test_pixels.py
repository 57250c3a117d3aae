from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from vaekit.errors import SourceError
from vaekit.images.picture import read_image
from vaekit.images.pixels import array_to_pixels, channels_first, convert_channels, resize, to_uint8

Pixels = NDArray[np.uint8]

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_come_first(channels: int) -> None:
    first = noise(5, channels, 9, 11)
    for images in (first, first.transpose(0, 2, 3, 1), *([first[:, 0]] if channels == 1 else [])):
        assert np.array_equal(channels_first("a.npy", images), first)


def test_an_axis_of_channels_is_looked_for_first() -> None:
    assert channels_first("a.npy", noise(5, 3, 9, 3)).shape == (5, 3, 9, 3)


@pytest.mark.parametrize("shape", [(9, 11), (5, 2, 9, 11), (5, 9, 11, 4), (2, 5, 3, 9, 11), (99,), ()])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SourceError, match=r"a\.npy has the shape"):
        channels_first("a.npy", np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "g"])
def test_every_byte_survives_as_a_float(dtype: str) -> None:
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(array_to_pixels("a.npy", (every / 255).astype(dtype)), every)
    assert np.array_equal(to_uint8((every / 255).astype(dtype)), every)


def test_floats_out_of_range_are_clipped_by_the_one_and_refused_by_the_other() -> None:
    values = np.array([-0.1, 0.5, 1.2])
    assert to_uint8(values).tolist() == [0, 128, 255]
    with pytest.raises(SourceError, match=r"a\.npy has pixels from -0\.1 to 1.2"):
        array_to_pixels("a.npy", values)


@pytest.mark.parametrize("values", [np.zeros(3, np.uint8), np.zeros(0, np.float32), np.zeros(3, bool)])
def test_pixels_are_bytes(values: NDArray[Any]) -> None:
    assert array_to_pixels("a.npy", values).dtype == np.uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_resized_as_files_are(tmp_path: Path, channels: int) -> None:
    pixels = noise(2, 12, 14, channels)
    for number in range(2):
        Image.fromarray(pixels[number].squeeze()).save(tmp_path / f"{number}.png")
    files = [read_image(tmp_path / f"{number}.png", channels, (7, 9)) for number in range(2)]
    assert np.array_equal(resize(np.moveaxis(pixels, 3, 1), (7, 9)), files)
    assert resize(np.moveaxis(pixels, 3, 1)[:0], (7, 9)).shape == (0, channels, 7, 9)


pictures = st.tuples(st.integers(0, 4), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays.arrays(np.uint8, shape)
)


@quick
@given(pictures)
def test_channels_that_are_right_are_kept(pixels: Pixels) -> None:
    assert np.array_equal(convert_channels(pixels, pixels.shape[1]), pixels)


@quick
@given(pictures)
def test_channels_become_three_equal_ones_or_their_luma(pixels: Pixels) -> None:
    colour = convert_channels(pixels, 3)
    assert (colour.shape, colour.dtype) == ((len(pixels), 3, *pixels.shape[2:]), np.dtype(np.uint8))
    grey = convert_channels(pixels, 1)
    assert (grey.shape, grey.dtype) == ((len(pixels), 1, *pixels.shape[2:]), np.dtype(np.uint8))
    if pixels.shape[1] == 1:
        assert (colour == pixels).all()
        assert np.array_equal(convert_channels(colour, 1), pixels)
    else:
        luma = np.einsum("nchw,c->nhw", pixels.astype(np.float64), [0.299, 0.587, 0.114])
        assert np.abs(grey[:, 0] - luma).max(initial=0) <= 1


def test_channels_of_arrays_are_converted_as_those_of_files(tmp_path: Path) -> None:
    Image.fromarray(noise(9, 14, 3)).save(tmp_path / "a.png")
    converted = convert_channels(noise(9, 14, 3).transpose(2, 0, 1)[None], 1)
    assert np.array_equal(converted[0], read_image(tmp_path / "a.png", 1, (9, 14)))
