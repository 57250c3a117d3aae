"""Scores that rank images, and their p-values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaekit.maths.anomaly import MAP_SCORES, least_calibration, mahalanobis, p_values, scores_of_maps, top_mean

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)

CHANCE = np.random.default_rng(0)


def test_a_small_defect_counts_fully_in_the_top_mean() -> None:
    maps = np.zeros((2, 100, 100), np.float32)
    maps[1, 40:50, 40:50] = 8
    assert top_mean(maps).tolist() == [0, 8]
    assert top_mean(maps, 0.02).tolist() == [0, 4]
    assert top_mean(np.array([[[1.0, 5.0]]], np.float32)).tolist() == [5]  # one pixel at least


def test_the_scores_of_maps_are_the_top_mean_and_the_highest_number() -> None:
    maps = CHANCE.normal(size=(4, 20, 30)).astype(np.float32)
    found = scores_of_maps(maps)
    assert tuple(found) == MAP_SCORES
    np.testing.assert_array_equal(found["map"], top_mean(maps))
    np.testing.assert_array_equal(found["peak"], maps.reshape(4, -1).max(axis=1))


@quick
@given(share=st.floats(0.001, 1), height=st.integers(1, 9), width=st.integers(1, 9))
def test_a_top_mean_lies_between_the_mean_and_the_maximum(share: float, height: int, width: int) -> None:
    maps = CHANCE.normal(size=(3, height, width)).astype(np.float32)
    found = top_mean(maps, share)
    assert found.shape == (3,)
    assert (found <= maps.max(axis=(1, 2)) + 1e-6).all()
    assert (found >= maps.mean(axis=(1, 2)) - 1e-6).all()


def test_mahalanobis_is_the_distance_in_standard_deviations() -> None:
    mean, std = np.array([1.0, -1.0, 0.0]), np.array([2.0, 0.5, 0.0])
    mu = np.array([[1, -1, 0], [7, 1, 0], [1, -1, 99]], np.float32)
    assert mahalanobis(mu, mean, std).tolist() == [0, 5, 0]  # √(3² + 4²); what never varies is left out
    maps = np.broadcast_to(mu[:, :, None, None], (3, 3, 4, 6))
    np.testing.assert_allclose(mahalanobis(maps, mean, std), [0, 5, 0])  # at any size


@pytest.mark.parametrize(
    ("score", "p"), [(0.0, 1.0), (1.0, 1.0), (1.5, 0.8), (2.0, 0.8), (4.0, 0.4), (4.1, 0.2), (9.0, 0.2)]
)
def test_a_p_value_counts_the_usual_images_that_score_as_high(score: float, p: float) -> None:
    assert p_values(np.array([score]), np.array([3.0, 1.0, 4.0, 2.0])).tolist() == pytest.approx([p])


def test_usual_images_are_flagged_as_often_as_the_rate_says() -> None:
    rates = np.array([0.01, 0.05, 0.2])
    flagged = [p_values(CHANCE.normal(size=50), CHANCE.normal(size=99))[:, None] <= rates for _ in range(2000)]
    assert np.mean(flagged, axis=(0, 1)) == pytest.approx(rates, abs=0.004)


@quick
@given(count=st.integers(1, 3000))
def test_the_least_calibration_is_exact(count: int) -> None:
    least = least_calibration(1 / (count + 1))
    assert least == count
    lowest = p_values(np.array([1.0]), np.zeros(count))[0]
    assert lowest <= 1 / (count + 1) + 1e-15
    assert least_calibration(1.5 / (count + 1)) <= count
