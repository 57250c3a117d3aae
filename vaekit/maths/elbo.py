"""Compute the ELBO and its terms with NumPy, in nats per image.

All arithmetic is float64 and all constants are kept (Kingma and Welling, "Auto-Encoding Variational Bayes", 2014). The
training objective computes the same quantities with PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaekit.maths import noise
from vaekit.types import LIKELIHOODS, Array, LikelihoodName, one_of


@dataclass(frozen=True)
class Likelihood:
    """p(x|z): ``gaussian`` or ``laplace`` with one standard deviation sigma for all pixels, or ``bernoulli``.

    The others have no sigma. ``none`` means that p(x|z) is not known.
    """

    name: LikelihoodName
    sigma: float | None

    def __post_init__(self) -> None:
        one_of(LIKELIHOODS, self.name, "likelihood")
        scaled = self.name in ("gaussian", "laplace")
        if scaled and not (self.sigma is not None and 0 < self.sigma < math.inf):
            raise ValueError(f"the sigma of a {self.name} likelihood must be a positive number, not {self.sigma}")
        if not scaled and self.sigma is not None:
            raise ValueError(f"the likelihood {self.name} has no sigma")


class Terms(NamedTuple):
    """Terms of the ELBO, float64 (N,) each, in nats."""

    reconstruction: NDArray[np.float64]
    kl: NDArray[np.float64]

    @property
    def elbo(self) -> NDArray[np.float64]:
        """Return reconstruction − kl, (N,)."""
        return self.reconstruction - self.kl


def posterior_sample(mu: Array, logvar: Array, *, seed: int = 0) -> Array:
    """Draw one z from each q(z|x) with a shared eps: (N, …) → float32 (N, …).

    eps is sample 0 of the seed. Because all images share it, an image's score does not depend on its position in a
    list.
    """
    shape = mu.shape[1:]
    eps = noise.standard_normal(seed, 0, 1, math.prod(shape)).reshape(shape)
    return (mu + np.exp(0.5 * logvar.astype(np.float64)) * eps).astype(np.float32)


def elbo_terms(images: Array, mu: Array, logvar: Array, decoded: Array, likelihood: Likelihood) -> Terms:
    """Compute the ELBO's terms with one Monte Carlo sample per image (N, C, H, W).

    mu and logvar are the encoder's outputs for the images, (N, d) or (N, c, h, w). ``decoded`` is the decoder's output
    (N, C, H, W) for ``posterior_sample(mu, logvar)``.
    """
    kl = kl_standard_normal(mu, logvar).reshape(len(mu), -1).sum(axis=1)
    return Terms(log_likelihood(images, decoded, likelihood), kl)


def kl_standard_normal(mu: Array, logvar: Array) -> NDArray[np.float64]:
    """Compute KL(N(mu, exp(logvar)) ‖ N(0, 1)) per dimension, in nats: (N, …) → float64 (N, …)."""
    mean, log_variance = mu.astype(np.float64), logvar.astype(np.float64)
    return 0.5 * (np.exp(log_variance) + mean**2 - 1.0 - log_variance)


def log_likelihood(images: Array, means: Array, likelihood: Likelihood) -> NDArray[np.float64]:
    """Compute log p(x|z) in nats, float64 (N,).

    ``images`` and ``means``, the decoder's output, are (N, C, H, W). The likelihood is not ``none``.
    """
    x = images.reshape(len(images), -1).astype(np.float64)
    mean = means.reshape(len(means), -1).astype(np.float64)
    if likelihood.sigma is None:
        mean = np.clip(mean, 1e-7, 1.0 - 1e-7)  # a float32 sigmoid can round to 0 or 1
        cross_entropy: NDArray[np.float64] = (x * np.log(mean) + (1.0 - x) * np.log1p(-mean)).sum(axis=1)
        return cross_entropy
    if likelihood.name == "laplace":
        scale = likelihood.sigma / math.sqrt(2)
        absolute_error: NDArray[np.float64] = np.abs(x - mean).sum(axis=1)
        return -x.shape[1] * math.log(2 * scale) - absolute_error / scale
    variance = likelihood.sigma**2
    squared_error: NDArray[np.float64] = ((x - mean) ** 2).sum(axis=1)
    return -0.5 * (x.shape[1] * math.log(2 * math.pi * variance) + squared_error / variance)
