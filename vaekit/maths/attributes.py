"""Labels and factors in the latent space: the way towards each, and how to read them from a latent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaekit.types import Array


@dataclass(frozen=True)
class Factor:
    """A known factor of images in a latent space of d dimensions, or of maps with d channels.

    It is described by m numbers: (value - mean) / std, or if it has a period, the cosine and sine of
    2 pi value / period. All arrays are float64.
    """

    name: str
    period: float
    """0 if it has none."""
    mean: float
    std: float
    directions: NDArray[np.float64]
    """(m, d), the change of mu with each of the m numbers."""
    weights: NDArray[np.float64]
    """(m, d), of the read-out: the m numbers of mu are weights mu + biases."""
    biases: NDArray[np.float64]
    """(m,)."""
    r2: float
    """The share of the m numbers' variance that the read-out explains, by cross-validation."""

    def __post_init__(self) -> None:
        m = 2 if self.period else 1
        if self.directions.shape[:1] != (m,) or self.weights.shape != self.directions.shape:
            raise ValueError("a factor's directions and weights have inconsistent shapes")
        numbers = (self.directions, self.weights, self.biases, self.r2, self.mean, self.std, self.period)
        if self.biases.shape != (m,) or not all(np.isfinite(part).all() for part in numbers):
            raise ValueError("a factor's numbers are not finite, or its biases are of another shape")

    def values(self, mu: Array) -> NDArray[np.float64]:
        """Read the factor from mu (N, …), (N,). With a period it is from 0 to below the period."""
        numbers = pooled(mu) @ self.weights.T + self.biases
        if not self.period:
            return np.asarray(self.mean + self.std * numbers[:, 0])
        turns = np.arctan2(numbers[:, 1], numbers[:, 0]) / (2 * np.pi)
        return np.asarray(self.period * (turns % 1))

    def moves(self, mu: Array, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far one latent, (d,) or (d, h, w), moves for each share, (shares, d).

        A share of 1 is one standard deviation of the factor, or its whole period, after which it is back.
        """
        if not self.period:
            return np.asarray(shares[:, None] * self.directions)
        start = 2 * np.pi * self.values(mu[None])[0] / self.period
        angles = start + 2 * np.pi * shares
        turned = np.stack((np.cos(angles) - np.cos(start), np.sin(angles) - np.sin(start)), 1)
        return np.asarray(turned @ self.directions)


@dataclass(frozen=True)
class Attributes:
    """K labels, and known factors, in a latent space of d dimensions, or of maps with d channels.

    All arrays are float64 but ``images``.
    """

    labels: tuple[str, ...]
    images: NDArray[np.int64]
    """(K,), the number of held-out images of each label."""
    means: NDArray[np.float64]
    """(K, d), the mean of mu over these images, and over all positions of maps."""
    weights: NDArray[np.float64]
    """(K, d), of the read-out: the scores of mu are softmax(weights mu + biases)."""
    biases: NDArray[np.float64]
    """(K,)."""
    accuracy: float
    """The share of held-out images whose highest score is that of their label, by cross-validation."""
    factors: tuple[Factor, ...] = ()

    def __post_init__(self) -> None:
        k, d = self.means.shape
        if k != len(self.labels) or not k or len(set(self.names)) < len(self.names) or not all(self.names):
            raise ValueError("the attributes do not have a name each, all of them different")
        if self.images.shape != (k,) or self.weights.shape != (k, d) or self.biases.shape != (k,):
            raise ValueError("the attributes' means, weights and biases have inconsistent shapes")
        if not all(np.isfinite(part).all() for part in (self.means, self.weights, self.biases, self.accuracy)):
            raise ValueError("the attributes contain NaN or infinity")
        if (self.images < 1).any():
            raise ValueError("the attributes have labels without images")
        if any(factor.directions.shape[1] != d for factor in self.factors):
            raise ValueError("the factors have another number of dimensions than the labels")

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the labels and then of the factors."""
        return (*self.labels, *(factor.name for factor in self.factors))

    def of_dimensions(self, kept: Sequence[int]) -> Attributes:
        """Return them in the dimensions ``kept``; those left out count as 0."""
        chosen = list(kept)
        factors = tuple(
            dataclasses.replace(each, directions=each.directions[:, chosen], weights=each.weights[:, chosen])
            for each in self.factors
        )
        return dataclasses.replace(self, means=self.means[:, chosen], weights=self.weights[:, chosen], factors=factors)

    def scores(self, mu: Array) -> Array:
        """Return how likely each label is by the read-out, float32 (N, K) with rows of sum 1.

        mu is (N, d), or (N, d, h, w), whose positions are averaged.
        """
        logits = pooled(mu) @ self.weights.T + self.biases
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)

    def read(self, mu: Array) -> Array:
        """Return the labels' scores and the factors' values, float32 (N, names)."""
        values = [factor.values(mu).astype(np.float32)[:, None] for factor in self.factors]
        return np.concatenate((self.scores(mu), *values), axis=1)

    def moves(self, name: str, mu: Array, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far one latent, (d,) or (d, h, w), moves towards a label or along a factor, (shares, d).

        For a label, a share of 1 is the label's mean minus the means of the labels that the latent has by the read-out,
        weighted by their scores. So the latent keeps what distinguishes it from others of its own label.
        """
        if name not in self.labels:
            return self.factors[self.names.index(name) - len(self.labels)].moves(mu, shares)
        own = self.scores(mu[None])[0].astype(np.float64)
        return np.asarray(shares[:, None] * (self.means[self.labels.index(name)] - own @ self.means))


def pooled(mu: Array) -> NDArray[np.float64]:
    """Average maps (N, d, h, w) over their positions; return vectors (N, d) as they are, float64."""
    return np.asarray(mu.astype(np.float64).mean(axis=tuple(range(2, mu.ndim))))
