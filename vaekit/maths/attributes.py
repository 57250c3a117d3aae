"""Labels in the latent space: the direction towards each, and how to read them from a latent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaekit.types import Array


@dataclass(frozen=True)
class Attributes:
    """K labels in a latent space of d dimensions, or of maps with d channels. All arrays are float64 but ``images``."""

    names: tuple[str, ...]
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

    def __post_init__(self) -> None:
        k, d = self.means.shape
        if not self.names or k != len(self.names) or len(set(self.names)) < k or not all(self.names):
            raise ValueError("the attributes do not have a name each, all of them different")
        if self.images.shape != (k,) or self.weights.shape != (k, d) or self.biases.shape != (k,):
            raise ValueError("the attributes' means, weights and biases have inconsistent shapes")
        if not all(np.isfinite(part).all() for part in (self.means, self.weights, self.biases, self.accuracy)):
            raise ValueError("the attributes contain NaN or infinity")
        if (self.images < 1).any():
            raise ValueError("the attributes have labels without images")

    def of_dimensions(self, kept: Sequence[int]) -> Attributes:
        """Return the labels in the dimensions ``kept``; those left out count as 0."""
        chosen = list(kept)
        return dataclasses.replace(self, means=self.means[:, chosen], weights=self.weights[:, chosen])

    def scores(self, mu: Array) -> Array:
        """Return how likely each label is by the read-out, float32 (N, K) with rows of sum 1.

        mu is (N, d), or (N, d, h, w), whose positions are averaged.
        """
        pooled = _pooled(mu.astype(np.float64))
        logits = pooled @ self.weights.T + self.biases
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)

    def direction(self, name: str, mu: Array) -> NDArray[np.float64]:
        """Return the way of one latent, (d,) or (d, h, w), to a label: (d,).

        It is the label's mean minus the means of the labels that the latent has by the read-out, weighted by their
        scores. So the latent keeps what distinguishes it from others of its own label.
        """
        own = self.scores(mu[None])[0].astype(np.float64)
        return np.asarray(self.means[self.names.index(name)] - own @ self.means)


def _pooled(mu: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average maps (N, d, h, w) over their positions; return vectors (N, d) unchanged."""
    return np.asarray(mu.mean(axis=tuple(range(2, mu.ndim))))
