"""Draw latents from the prior: N(0, I), or a Gaussian mixture fitted to the encoded training images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaekit.maths import noise

_CHUNK = 1 << 18  # normals drawn at a time; this does not affect the result


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture over latents of d dimensions, with K components. All arrays are float64."""

    weights: NDArray[np.float64]
    """(K,), not negative, with sum 1."""
    means: NDArray[np.float64]
    """(K, d)."""
    cholesky: NDArray[np.float64]
    """(K, d, d), the lower triangular Cholesky factors L of the covariances L Lᵀ."""
    labels: NDArray[np.int64] | None = None
    """(K,), the number of each component's label, or -1; None if components have no labels."""

    def __post_init__(self) -> None:
        k, d = self.means.shape
        if self.weights.shape != (k,) or self.cholesky.shape != (k, d, d):
            raise ValueError("the mixture's weights, means and Cholesky factors have inconsistent shapes")
        if not all(np.isfinite(part).all() for part in (self.weights, self.means, self.cholesky)):
            raise ValueError("the mixture contains NaN or infinity")
        if (self.weights < 0).any() or not np.isclose(self.weights.sum(), 1.0):
            raise ValueError("the mixture's weights are negative or do not sum to 1")
        if self.labels is not None and self.labels.shape != (k,):
            raise ValueError("the mixture's labels are not one for each component")

    def of_label(self, label: int) -> Mixture | None:
        """Return the mixture of one label's components, or None if it has none."""
        if self.labels is None or not (mine := self.weights[self.labels == label]).any():
            return None
        weight = mine.cumsum()[-1]  # added in order, as other languages add
        weights = np.where(self.labels == label, self.weights / weight, 0.0)
        return Mixture(weights, self.means, self.cholesky, self.labels)

    @property
    def has_density(self) -> bool:
        """Return whether no covariance is singular."""
        return bool((np.diagonal(self.cholesky, axis1=1, axis2=2) > 0).all())

    def log_density(self, z: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Compute ln p(z) of latents (N, d), float64 (N,), in nats.

        No covariance may be singular.
        """
        each = []
        for weight, mean, factor in zip(self.weights, self.means, self.cholesky, strict=True):
            eps = np.linalg.solve(factor, (z - mean).T)
            scale = np.log(weight) - np.log(np.diag(factor)).sum() if weight else -np.inf
            each.append(scale - 0.5 * np.square(eps).sum(axis=0))
        logs = np.array(each)
        largest = logs.max(axis=0)
        total = largest + np.log(np.exp(logs - largest).sum(axis=0))
        return np.asarray(total - 0.5 * z.shape[1] * np.log(2 * np.pi))


def draw_normal(
    dimensions: int, count: int, *, seed: int = 0, start: int = 0, temperature: float = 1.0
) -> NDArray[np.float32]:
    """Draw samples of a seed from N(0, temperature² I), float32 (count, dimensions).

    These are samples ``start`` to ``start + count - 1``.
    """
    out = np.empty((count, dimensions), np.float32)
    for first, part in _chunks(out):
        with np.errstate(over="ignore"):
            part[:] = temperature * noise.standard_normal(seed, start + first, len(part), dimensions)
    return out


def draw_mixture(
    mixture: Mixture, count: int, *, seed: int = 0, start: int = 0, temperature: float = 1.0
) -> NDArray[np.float32]:
    """Draw samples of a seed from the mixture, float32 (count, d).

    These are samples ``start`` to ``start + count - 1``. Sample k's last uniform chooses a component c in proportion to
    the weights. The sample is mean_c + temperature · L_c eps, with the same eps as ``draw_normal``.
    """
    dimensions = mixture.means.shape[1]
    out = np.empty((count, dimensions), np.float32)
    for first, part in _chunks(out):
        raw = noise.words(seed, start + first, len(part), noise.block_words(dimensions))
        component = _components(mixture.weights, noise.uniforms(raw[:, -1]))
        eps = temperature * noise.normals(raw, dimensions)
        with np.errstate(over="ignore"):
            part[:] = mixture.means[component] + _rows_times(mixture.cholesky, component, eps)
    return out


def draw_numbers(
    weights: NDArray[np.float64], dimensions: int, count: int, *, seed: int = 0, start: int = 0
) -> NDArray[np.int64]:
    """Draw numbers in proportion to weights (K,), for samples whose latents have ``dimensions`` numbers, (count,).

    The uniform that chooses them is the one that chooses a mixture's component, which ``draw_normal`` does not use.
    """
    words = noise.block_words(dimensions)
    step = max(1, _CHUNK // words)
    parts = ((first, min(step, count - first)) for first in range(0, count, step))
    uniforms = (noise.uniforms(noise.words(seed, start + first, rows, words)[:, -1]) for first, rows in parts)
    return np.concatenate([_components(weights, part) for part in uniforms])


def _chunks(rows: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield parts of the rows (N, d) with the number of their first row."""
    step = max(1, _CHUNK // rows.shape[1])
    return ((first, rows[first : first + step]) for first in range(0, len(rows), step))


def _components(weights: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return, for each uniform, the first component whose cumulative weight exceeds it."""
    return np.minimum(np.searchsorted(np.cumsum(weights), uniform, side="right"), len(weights) - 1)


def _rows_times(
    cholesky: NDArray[np.float64], component: NDArray[np.int64], eps: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute L_c eps for each row, adding eps's dimensions in a fixed order.

    The summation order of a matrix product can depend on the batch size, which would change the last bits.
    """
    total = np.zeros_like(eps)
    for column in range(eps.shape[1]):
        total += cholesky[component, :, column] * eps[:, column, None]
    return total
