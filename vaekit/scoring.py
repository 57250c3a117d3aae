"""The ELBO and its terms in NumPy, in nats per image: what the objective is, without PyTorch.

All arithmetic is float64; all constants are kept (Kingma and Welling, "Auto-Encoding Variational Bayes", 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaekit import noise
from vaekit.bundle import Likelihood, ScoreStatistics
from vaekit.errors import UsageError

Array = NDArray[np.float32]
Encode = Callable[[Array], tuple[Array, Array]]
Decode = Callable[[Array], Array]


class Terms(NamedTuple):
    """Terms of the ELBO, float64 (N,) each, in nats."""

    reconstruction: NDArray[np.float64]
    kl: NDArray[np.float64]

    @property
    def elbo(self) -> NDArray[np.float64]:
        """reconstruction − kl, (N,)."""
        return self.reconstruction - self.kl


def elbo_terms(images: Array, encode: Encode, decode: Decode, likelihood: Likelihood, *, seed: int = 0) -> Terms:
    """The ELBO's terms of images (N, C, H, W), with one Monte Carlo sample and one eps for every image.

    Latents are (N, d) or (N, c, h, w).

    The same eps for all makes a score independent of an image's place in a list; it is sample 0 of the seed.
    """
    mu, logvar = encode(images)
    eps = noise.standard_normal(seed, 0, 1, math.prod(mu.shape[1:])).reshape(mu.shape[1:])
    z = (mu + np.exp(0.5 * logvar.astype(np.float64)) * eps).astype(np.float32)
    return Terms(
        log_likelihood(images, decode(z), likelihood), kl_standard_normal(mu, logvar).reshape(len(mu), -1).sum(axis=1)
    )


def threshold(text: str, statistics: ScoreStatistics | None) -> float:
    """The score in nats above which ``--flag-above`` flags: ``p99``, a percentile of held-out scores, or a number.

    Percentiles between those in the bundle are interpolated. Raises UsageError for anything else, or for a percentile
    where the bundle holds no scores.
    """
    try:
        if not text.lower().startswith("p"):
            return _finite(float(text))
        percentile = _finite(float(text[1:]))
    except ValueError:
        percentile = -1.0
    if not 0 <= percentile <= 100:
        raise UsageError(
            f"{text!r} is no threshold: give a percentile of the held-out scores, p0 to p100, such as p99, or nats"
        )
    if statistics is None:
        raise UsageError(
            "this bundle holds no held-out scores of such images to take a percentile of: give a number of nats"
        )
    known = np.array(sorted((float(name[1:]), score) for name, score in statistics.quantiles.items()))
    return float(np.interp(percentile, known[:, 0], known[:, 1]))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError
    return value


def kl_standard_normal(mu: Array, logvar: Array) -> NDArray[np.float64]:
    """KL(N(mu, exp(logvar)) ‖ N(0, 1)) of each dimension in nats: (N, …) → float64 (N, …)."""
    mean, log_variance = mu.astype(np.float64), logvar.astype(np.float64)
    return 0.5 * (np.exp(log_variance) + mean**2 - 1.0 - log_variance)


def log_likelihood(images: Array, means: Array, likelihood: Likelihood) -> NDArray[np.float64]:
    """log p(x|z) in nats, float64 (N,), of images (N, C, H, W) under the decoder's means of the same shape.

    The likelihood is gaussian or bernoulli.
    """
    x = images.reshape(len(images), -1).astype(np.float64)
    mean = means.reshape(len(means), -1).astype(np.float64)
    if likelihood.sigma is None:
        mean = np.clip(mean, 1e-7, 1.0 - 1e-7)  # a float32 sigmoid rounds to 0 and 1
        cross_entropy: NDArray[np.float64] = (x * np.log(mean) + (1.0 - x) * np.log1p(-mean)).sum(axis=1)
        return cross_entropy
    variance = likelihood.sigma**2
    squared_error: NDArray[np.float64] = ((x - mean) ** 2).sum(axis=1)
    return -0.5 * (x.shape[1] * math.log(2 * math.pi * variance) + squared_error / variance)
