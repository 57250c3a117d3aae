"""The directions and the read-out of labels, fitted to codes."""

from __future__ import annotations

import numpy as np
import pytest

from vaekit.images.factors import Factors
from vaekit.training.read_out import fit_attributes, fit_factors
from vaekit.types import Array

NAMES = ("red", "green", "blue")


def codes(labels: np.ndarray, *positions: int) -> Array:
    """Return codes of which the first dimension has the mean 4 · label, and the second none."""
    random = np.random.default_rng(0)
    means = np.stack((4.0 * labels, np.zeros(len(labels))), 1).reshape(len(labels), 2, *[1] * len(positions))
    return (means + random.standard_normal((len(labels), 2, *positions))).astype(np.float32)


@pytest.mark.parametrize("positions", [(), (3, 2)])
@pytest.mark.parametrize("count", [2, 3])
def test_labels_are_read_from_the_dimension_that_tells_them(count: int, positions: tuple[int, ...]) -> None:
    labels = np.random.default_rng(1).integers(0, count, 600)
    mu = codes(labels, *positions)
    found = fit_attributes(mu, labels, NAMES[:count])
    assert found is not None
    assert found.labels == NAMES[:count]
    assert found.images.tolist() == np.bincount(labels).tolist()
    np.testing.assert_allclose(found.means[:, 0], 4 * np.arange(count), atol=0.25)
    np.testing.assert_allclose(found.means[:, 1], 0, atol=0.25)
    assert found.accuracy > 0.9
    assert np.mean(found.scores(mu).argmax(axis=1) == labels) == pytest.approx(found.accuracy, abs=0.02)


def test_images_of_no_label_and_labels_of_few_images_are_left_out() -> None:
    labels = np.repeat([0, 1, 2, -1], (40, 4, 40, 30))
    found = fit_attributes(codes(labels), labels, NAMES)
    assert found is not None
    assert found.labels == ("red", "blue")
    assert found.images.tolist() == [40, 40]
    for few in (np.repeat([0, 1], (40, 4)), np.full(30, -1)):
        assert fit_attributes(codes(few), few, NAMES) is None


def test_labels_that_cannot_be_told_have_the_accuracy_of_guessing() -> None:
    random = np.random.default_rng(0)
    found = fit_attributes(random.standard_normal((600, 2)).astype(np.float32), random.integers(0, 3, 600), NAMES)
    assert found is not None
    assert 0.25 < found.accuracy < 0.42


def test_factors_are_read_from_the_dimensions_that_they_move() -> None:
    random = np.random.default_rng(0)
    size, hue = random.uniform(5, 9, 500), random.uniform(0, 0.25, 500)
    angle = 2 * np.pi * hue / 0.25
    mu = np.stack((2 * size, np.cos(angle), 3 * np.sin(angle), random.standard_normal(500)), 1)
    mu = (mu + 0.05 * random.standard_normal(mu.shape)).astype(np.float32)
    partly = np.where(np.arange(500) < 9, size, np.nan)
    factors = Factors(("size", "hue", "rare"), (0.0, 0.25, 0.0), np.stack((size, hue, partly), 1))
    found = {factor.name: factor for factor in fit_factors(mu, factors)}
    assert list(found) == ["size", "hue"]  # nine images are too few
    np.testing.assert_allclose(found["size"].directions, [[2 * size.std(), 0, 0, 0]], atol=0.5)
    np.testing.assert_allclose(found["hue"].directions, [[0, 1, 0, 0], [0, 0, 3, 0]], atol=0.5)
    assert min(factor.r2 for factor in found.values()) > 0.95
    np.testing.assert_allclose(found["size"].values(mu), size, atol=0.2)
    off = np.abs(found["hue"].values(mu) - hue)
    assert np.minimum(off, 0.25 - off).max() < 0.02


def test_a_factor_that_never_varies_does_no_harm() -> None:
    mu = np.random.default_rng(0).standard_normal((60, 2)).astype(np.float32)
    (found,) = fit_factors(mu, Factors(("size",), (0.0,), np.full((60, 1), 3.0)))
    np.testing.assert_allclose(found.values(mu), 3, atol=1e-6)
    np.testing.assert_allclose(found.moves(mu[0], np.array([1.0])), 0, atol=1e-6)
