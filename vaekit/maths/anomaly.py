"""Scores that rank images from usual to unusual, and how often a usual image would score as high."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vaekit.maths.elbo import Terms
from vaekit.types import Array

ScoreName = Literal["elbo", "reconstruction", "kl", "map", "peak", "mahalanobis", "density"]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
ELBO_SCORES: tuple[ScoreName, ...] = ("elbo", "reconstruction", "kl")
"""The scores that are terms of the ELBO, in nats."""

MAP_SCORES: tuple[ScoreName, ...] = ("map", "peak")
"""The scores that are taken from maps of surprise, in standard deviations."""

TOP_SHARE = 0.01
"""Share of a map's pixels whose mean is the score ``map``."""


def unit_of(score: ScoreName) -> str:
    """Return the unit of a score, in words."""
    return "nats" if score in (*ELBO_SCORES, "density") else "standard deviations"


def scores_of_terms(terms: Terms) -> dict[ScoreName, NDArray[np.float64]]:
    """Return the scores that are terms of the ELBO, by name: float64 (N,) each, in nats."""
    return {"elbo": -terms.elbo, "reconstruction": -terms.reconstruction, "kl": terms.kl}


def top_mean(maps: Array, share: float = TOP_SHARE) -> NDArray[np.float64]:
    """Return the mean of the largest ``share`` of each map's values, one at least: (N, H, W) → float64 (N,).

    A defect of a hundredth of an image counts fully there, while the mean of all pixels would hide it.
    """
    flat = maps.reshape(len(maps), -1)
    count = max(1, round(share * flat.shape[1]))
    return np.asarray(np.partition(flat, -count, axis=1)[:, -count:].mean(axis=1, dtype=np.float64))


def scores_of_maps(maps: Array) -> dict[ScoreName, NDArray[np.float64]]:
    """Return the scores of maps (N, H, W), by name: float64 (N,) each.

    ``map`` is the mean of the highest hundredth, and ``peak`` the highest number.
    """
    return {"map": top_mean(maps), "peak": maps.max(axis=(1, 2)).astype(np.float64)}


def mahalanobis(mu: Array, mean: NDArray[np.float64], std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Mahalanobis distance of each mu from the held-out ones: (N, d) or (N, c, h, w) → float64 (N,).

    The covariance is diagonal: ``mean`` and ``std`` are those of each dimension or channel. For maps, the square is
    averaged over positions, so that sizes can be compared. A dimension that never varies is left out.
    """
    varies = std > 0
    shape = (-1, *[1] * (mu.ndim - 2))
    standard = (mu[:, varies] - mean[varies].reshape(shape)) / std[varies].reshape(shape)
    squares = np.square(standard, dtype=np.float64).sum(axis=1)
    return np.asarray(np.sqrt(squares.reshape(len(mu), -1).mean(axis=1)))


def p_values(scores: NDArray[np.float64], calibration: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each score's conformal p-value: (N,), and n scores of usual images → float64 (N,).

    It is (1 + the number of usual images that score as high) / (n + 1). If a usual image and the n others are
    exchangeable, its p-value is at most r with a probability of at most r (Vovk, Gammerman and Shafer, "Algorithmic
    Learning in a Random World", 2005).
    """
    as_high = len(calibration) - np.searchsorted(np.sort(calibration), scores, side="left")
    return np.asarray((1 + as_high) / (len(calibration) + 1))


def least_calibration(rate: float) -> int:
    """Return the fewest usual images with which a p-value can be as low as ``rate``, which is in (0, 1)."""
    return max(1, math.ceil(1 / rate - 1e-9) - 1)
