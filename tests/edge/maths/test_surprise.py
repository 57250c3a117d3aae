"""Maps of surprise: errors compared with those that are usual."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaekit.maths.surprise import (
    BINS,
    MAP_KINDS,
    MapKind,
    blurred,
    distance_classes,
    gradients,
    measure,
    smoothed_errors,
    surprise,
)
from vaekit.types import Array

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)

CHANCE = np.random.default_rng(0)


def held_out(count: int = 60) -> tuple[Array, Array]:
    """Draw images with an edge in the middle, badly reconstructed at the edge and in one noisy corner."""
    decoded = np.full((count, 3, 16, 20), 0.2, np.float32)
    decoded[..., 10:] = 0.9
    noise = CHANCE.normal(0, 0.01, decoded.shape)
    noise[..., 9:11] *= 10
    noise[:, :, :4, :4] *= 10
    return np.clip(decoded + noise, 0, 1).astype(np.float32), decoded


@quick
@given(smooth=st.floats(0, 4), height=st.integers(1, 12), width=st.integers(1, 12))
def test_blurring_keeps_the_mean_of_flat_maps_and_never_overshoots(smooth: float, height: int, width: int) -> None:
    flat = np.full((2, height, width), 0.25, np.float32)
    np.testing.assert_allclose(blurred(flat, smooth), flat, rtol=1e-5)
    dots = CHANCE.random((2, height, width), np.float32)
    found = blurred(dots, smooth)
    assert found.shape == dots.shape
    assert dots.min() - 1e-6 <= found.min() <= found.max() <= dots.max() + 1e-6


def test_blurring_is_a_gaussian() -> None:
    dot = np.zeros((1, 41, 41), np.float32)
    dot[0, 20, 20] = 1
    found = blurred(dot, 3.0)[0]
    assert found.sum() == pytest.approx(1, rel=1e-5)
    away = np.arange(41) - 20
    assert float((found.sum(axis=0) * away**2).sum()) == pytest.approx(9, rel=0.05)
    assert np.array_equal(blurred(dot, 0.0), dot)


def test_errors_and_gradients_are_what_they_are_called() -> None:
    images, decoded = CHANCE.random((2, 2, 3, 5, 6), np.float32)
    np.testing.assert_allclose(smoothed_errors(images, decoded, 0), ((images - decoded) ** 2).mean(axis=1), rtol=1e-5)
    ramp = np.broadcast_to(np.arange(6, dtype=np.float32) / np.float32(10), (1, 3, 5, 6))
    np.testing.assert_allclose(gradients(ramp, 0), 0.1, rtol=1e-5)
    assert gradients(np.ones((1, 1, 1, 1), np.float32), 1.0).shape == (1, 1, 1)


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_held_out_images_are_not_surprising_and_a_scratch_is(kind: MapKind) -> None:
    images, decoded = held_out()
    statistics = measure(images, decoded, 1.0)
    usual = surprise(images, decoded, statistics, kind)
    assert usual.dtype == np.float32
    assert abs(float(usual.mean())) < 0.1
    assert float(np.quantile(usual, 0.99)) < 6
    scratched = images[:1].copy()
    scratched[:, :, 8:10, 14:18] = 0.3
    found = surprise(scratched, decoded[:1], statistics, kind)
    assert found[0, 8:10, 14:18].min() > 10
    assert found.max() == found[0, 6:12, 12:20].max()  # the blur reaches a little further


def test_what_is_always_bad_there_does_not_glow() -> None:
    """The noisy corner is usual for a map by pixel; for the others it is not: it is as flat as the rest."""
    images, decoded = held_out()
    statistics = measure(images, decoded, 1.0)
    corner = {kind: surprise(images, decoded, statistics, kind)[:, 1:3, 1:3].mean() for kind in MAP_KINDS}
    assert abs(float(corner.pop("pixel"))) < 0.2
    assert min(corner.values()) > 1
    edge = surprise(images, decoded, statistics, "gradient")[:, 6:, 9:11]
    assert abs(float(edge.mean())) < 1


def test_statistics_have_one_number_for_each_class_and_pixel() -> None:
    statistics = measure(*held_out(), smooth=1.0)
    assert statistics.pixel_mean.shape == statistics.pixel_std.shape == (16, 20)
    assert statistics.gradient_mean.shape == statistics.gradient_std.shape == (BINS,)
    assert (np.diff(statistics.edges) >= 0).all()
    for change in (
        {"pixel_std": np.zeros((2, 2), np.float32)},
        {"edges": statistics.edges[1:]},
        {"distances": statistics.edges[1:]},
    ):
        with pytest.raises(ValueError, match="the statistics of"):
            dataclasses.replace(statistics, **change)
    for bad in (np.nan, -1.0):
        with pytest.raises(ValueError, match="not finite, or negative"):
            dataclasses.replace(statistics, gradient_mean=np.full(BINS, bad, np.float32))


def test_bright_places_that_are_always_rough_do_not_glow_by_brightness() -> None:
    decoded = np.full((60, 1, 16, 16), 0.2, np.float32)
    decoded[..., 8:] = 0.8
    noise = CHANCE.normal(0, 0.01, decoded.shape)
    noise[..., 8:] *= 10
    images = np.clip(decoded + noise, 0, 1).astype(np.float32)
    statistics = measure(images, decoded, 1.0)
    images[0, :, 2:5, 2:5] -= 0.1
    rough, scratched = np.s_[1:, :, 9:], np.s_[0, 2:5, 2:5]
    found = surprise(images, decoded, statistics, "brightness")
    assert abs(float(found[rough].mean())) < 0.2
    assert found[scratched].min() > 3
    by_gradient = surprise(images, decoded, statistics, "gradient")
    assert by_gradient[scratched].max() < found[scratched].min()


def framed(chance: np.random.Generator, count: int, height: int, width: int) -> tuple[Array, Array]:
    """Draw dark and bright textures, rough in proportion to their brightness, and rougher at their borders."""
    decoded = np.repeat(chance.uniform(0.1, 0.8, (count, 1, 1, width)), height, axis=2).astype(np.float32)
    noise = chance.normal(0, 0.02, decoded.shape)
    noise[..., distance_classes((height, width), np.array([3], np.float32)) == 0] *= 6
    return (decoded * np.exp(noise)).astype(np.float32), decoded


def test_by_contrast_neither_borders_nor_bright_places_glow_and_a_dark_spot_does() -> None:
    images, decoded = framed(np.random.default_rng(1), 80, 24, 30)
    statistics = measure(images, decoded, 1.0)
    found = surprise(images, decoded, statistics, "contrast")
    border, bright = found[:, :2], found[decoded[:, 0] > 0.6]
    assert abs(float(border.mean())) < 0.3
    assert abs(float(bright.mean())) < 0.3
    assert surprise(images, decoded, statistics, "brightness")[:, :2].mean() > 0.8
    spotted = images.copy()
    spotted[:, :, 10:13, 10:13] *= 0.75
    found = surprise(spotted, decoded, statistics, "contrast")
    assert np.mean(found.reshape(80, -1).argmax(axis=1) // 30 - 11 < 3) > 0.95  # the row of the highest number
    assert np.median(found[:, 11, 11]) > 8


def test_whole_pictures_of_several_sizes_say_what_is_usual_by_contrast() -> None:
    chance = np.random.default_rng(2)
    pairs = [framed(chance, 1, 20 + number % 7, 30 + number % 5) for number in range(60)]
    images, decoded = (np.concatenate([pair[side][:, :, 6:18, 6:18] for pair in pairs]) for side in range(2))
    statistics, alone = measure(images, decoded, 1.0, pairs), measure(images, decoded, 1.0)
    assert np.array_equal(statistics.pixel_mean, alone.pixel_mean)  # from the crops
    assert statistics.contrast is not None
    usual = [surprise(*pair, statistics, "contrast")[:, :2].mean() for pair in pairs]
    wrong = [surprise(*pair, alone, "contrast")[:, :2].mean() for pair in pairs]
    assert abs(float(np.mean(usual))) < 0.3
    assert np.mean(wrong) > 3
    assert measure(images, decoded, 1.0, []).contrast is None


def test_distances_count_from_the_nearest_border() -> None:
    found = distance_classes((5, 7), np.array([1, 2], np.float32))
    assert found.tolist() == [[0] * 7, [0, *[1] * 5, 0], [0, 1, 2, 2, 2, 1, 0], [0, *[1] * 5, 0], [0] * 7]


@quick
@given(smooth=st.floats(0, 2), count=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 9))
def test_maps_by_contrast_are_finite_for_any_image(smooth: float, count: int, height: int, width: int) -> None:
    images, decoded = CHANCE.integers(0, 2, (2, count, 3, height, width)).astype(np.float32)  # black and white
    statistics = measure(images, decoded, smooth)
    assert np.isfinite(surprise(images, decoded, statistics, "contrast")).all()
    assert np.isfinite(surprise(decoded, images, statistics, "contrast")).all()


def test_statistics_without_brightness_are_complete_too() -> None:
    images, decoded = held_out()
    older = dataclasses.replace(measure(images, decoded, 1.0), levels=None, brightness_mean=None, brightness_std=None)
    assert list(older.classes) == ["gradient"]
    assert older.kinds == ("pixel", "gradient", "contrast")
    assert np.isfinite(surprise(images, decoded, older, "gradient")).all()


def test_one_image_of_one_colour_has_statistics_too() -> None:
    flat = np.full((1, 1, 8, 8), 0.5, np.float32)
    assert np.isfinite(surprise(flat, flat, measure(flat, flat, 1.5), "pixel")).all()
