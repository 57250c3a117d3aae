"""Starting points of a flow's lines: draws from the mixture, each near the code that the line leads to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vaekit.maths.prior import Mixture
from vaekit.types import Array


class MixtureStart:
    """A mixture over standardised codes, from which a flow starts.

    A line to a code starts in a component that is drawn from p(component | code), among those of the code's label. So
    all starting points together are distributed as the mixture, and the lines are short, because the mixture is already
    close to the codes.
    """

    def __init__(self, mixture: Mixture, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        """Standardise a mixture over codes that have the given mean and standard deviation, each (d,)."""
        self._labels = mixture.labels
        means, cholesky = (mixture.means - mean) / std, mixture.cholesky / std[:, None]
        inverse = np.linalg.inv(cholesky)  # (K, d, d)
        self._means, self._cholesky = means.astype(np.float32), cholesky.astype(np.float32)
        # One product of matrices gives L^-1 (x - mean) for all components.
        self._factors = inverse.reshape(-1, inverse.shape[2]).T.astype(np.float32)  # (d, K · d)
        self._shift = np.einsum("kij,kj->ki", inverse, means).astype(np.float32)
        with np.errstate(divide="ignore"):
            weights = np.log(mixture.weights)
        self._logs = (weights - np.log(np.einsum("kii->ki", cholesky)).sum(axis=1)).astype(np.float32)

    def draw(self, random: np.random.Generator, codes: Array, labels: NDArray[np.int64] | None) -> Array:
        """Draw starting points for standardised codes (N, d) with label numbers (N,), (N, d)."""
        count, (components, d) = len(codes), self._means.shape
        logs = (
            self._logs - np.square((codes @ self._factors).reshape(count, components, d) - self._shift).sum(axis=2) / 2
        )
        if labels is not None and self._labels is not None:
            own = labels[:, None] == self._labels
            own |= ~own.any(axis=1, keepdims=True)  # a label without components may start anywhere
            logs = np.where(own, logs, -np.inf)
        chosen = (logs + random.gumbel(size=logs.shape)).argmax(axis=1)  # a draw in proportion to exp(logs)
        eps = random.standard_normal((count, d, 1), np.float32)
        return np.asarray(self._means[chosen] + (self._cholesky[chosen] @ eps)[:, :, 0])
