"""Fit the directions and the read-out of labels to the codes of held-out images."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from vaekit.images.factors import Factors
from vaekit.images.labels import UNLABELLED
from vaekit.maths.attributes import Attributes, Factor, pooled
from vaekit.types import Array

FEWEST_IMAGES = 5
"""A label with fewer held-out images is left out."""
FEWEST_FACTORS = 10
"""A factor that fewer held-out images have is left out."""
_FOLDS = 5
_ITERATIONS = 200


def fit_attributes(mu: Array, labels: NDArray[np.int64], names: tuple[str, ...]) -> Attributes | None:
    """Fit the labels' directions and read-out to mu (N, d), or (N, d, h, w) averaged over its positions.

    ``labels`` (N,) are numbers of ``names``, or -1. The read-out is a multinomial logistic regression. Returns None if
    fewer than two labels have enough images.
    """
    counts = np.bincount(labels[labels != UNLABELLED], minlength=len(names))
    kept = np.flatnonzero(counts >= FEWEST_IMAGES)
    if len(kept) < 2:
        return None
    rows = np.isin(labels, kept)
    x, y = pooled(mu[rows]), np.searchsorted(kept, labels[rows])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last iterations change nothing that is seen
        accuracy = cross_val_score(model, x, y, cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=0)).mean()
        scaler, regression = (step for _, step in model.fit(x, y).steps)
    weights, biases = _both_sides(regression.coef_ / scaler.scale_, regression.intercept_)
    return Attributes(
        tuple(names[number] for number in kept),
        counts[kept],
        np.stack([x[y == number].mean(axis=0) for number in range(len(kept))]),
        weights,
        biases - weights @ scaler.mean_,
        float(accuracy),
    )


def fit_factors(mu: Array, factors: Factors) -> tuple[Factor, ...]:
    """Fit the directions and the read-out of known factors to mu, as ``fit_attributes`` does.

    Directions come from linear regression of mu on a factor, or on its cosine and sine if it has a period; the read-out
    is a ridge regression of these on mu. Factors that fewer than FEWEST_FACTORS images have are left out.
    """
    found = []
    for name, period, values in zip(factors.names, factors.periods, factors.values.T, strict=True):
        rows = np.isfinite(values)
        if rows.sum() >= FEWEST_FACTORS:
            found.append(_fit_factor(name, period, values[rows], pooled(mu[rows])))
    return tuple(found)


def _fit_factor(name: str, period: float, values: NDArray[np.float64], mu: NDArray[np.float64]) -> Factor:
    mean, std = (0.0, 1.0) if period else (float(values.mean()), float(values.std()) or 1.0)
    angles = 2 * np.pi * values / (period or 1.0)
    targets = np.stack((np.cos(angles), np.sin(angles)), 1) if period else ((values - mean) / std)[:, None]  # (n, m)
    with threadpool_limits(1):
        directions = LinearRegression().fit(targets, mu).coef_.T  # (m, d)
        model = make_pipeline(StandardScaler(), Ridge())
        folds = KFold(_FOLDS, shuffle=True, random_state=0)
        r2 = float(cross_val_score(model, mu, targets, cv=folds, scoring="r2").mean())
        scaler, ridge = (step for _, step in model.fit(mu, targets).steps)
    weights = np.atleast_2d(ridge.coef_) / scaler.scale_
    biases = np.atleast_1d(ridge.intercept_) - weights @ scaler.mean_
    return Factor(name, period, mean, std, directions, weights, biases, r2)


def _both_sides(
    weights: NDArray[np.float64], biases: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (K, d) and biases (K,) for a softmax; of two labels, scikit-learn has those of the second only."""
    if len(weights) > 1:
        return weights, biases
    return np.concatenate((np.zeros_like(weights), weights)), np.concatenate((np.zeros_like(biases), biases))
