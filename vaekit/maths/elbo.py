"""The ELBO and its terms in NumPy, in nats per image: what the objective is, without PyTorch.

All arithmetic is float64; all constants are kept (Kingma and Welling, "Auto-Encoding Variational Bayes", 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaekit.maths import noise
from vaekit.types import LIKELIHOODS, Array

Encode = Callable[[Array], tuple[Array, Array]]
Decode = Callable[[Array], Array]


@dataclass(frozen=True)
class Likelihood:
    """p(x|z): ``gaussian`` with a variance sigma² shared over pixels, ``bernoulli``, or ``none`` where none is known.

    The last two have no sigma.
    """

    name: str
    sigma: float | None

    def __post_init__(self) -> None:
        if self.name not in LIKELIHOODS:
            raise ValueError(f"there is no likelihood {self.name!r}: it is one of {', '.join(LIKELIHOODS)}")
        if self.name == "gaussian" and not (self.sigma is not None and 0 < self.sigma < math.inf):
            raise ValueError(f"the sigma of a gaussian likelihood is a positive number, not {self.sigma}")
        if self.name != "gaussian" and self.sigma is not None:
            raise ValueError(f"the likelihood {self.name} has no sigma")


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
