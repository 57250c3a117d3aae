"""The evidence lower bound (ELBO) in nats per image, with all its constants.

ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ N(0, I)), for z = mu + sigma·eps (Kingma and Welling, "Auto-Encoding Variational
Bayes", 2014, equation 10). Densities are over pixels in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vaekit.training.networks import VAENetwork, reparameterise

VARIANCE_FLOOR = 1e-6
"""The least variance of the Gaussian likelihood: below it lies only the rounding of 8-bit pixels (1.3e-6)."""


@dataclass(frozen=True)
class Likelihood:
    """p(x|z), with the decoder's image as its mean."""

    name: str
    """``gaussian`` or ``bernoulli``."""
    variance: float | None = None
    """Of the Gaussian, shared over pixels; None takes the batch's own maximum-likelihood value."""


class Terms(NamedTuple):
    """The two terms of the ELBO, each (B,) in nats, and the squared error ‖x − mean‖², (B,)."""

    reconstruction: Tensor
    kl: Tensor
    squared_error: Tensor

    @property
    def elbo(self) -> Tensor:
        """reconstruction − kl, (B,)."""
        return self.reconstruction - self.kl


def elbo_terms(network: VAENetwork, likelihood: Likelihood, image: Tensor, eps: Tensor) -> Terms:
    """One Monte Carlo sample of the ELBO's terms for images (B, C, H, W) in [0, 1] and eps (B, d) ~ N(0, I)."""
    mu, logvar = network.encoder(image)
    logits = network.decoder.logits(reparameterise(mu, logvar, eps))
    error = (torch.sigmoid(logits) - image).square().flatten(1).sum(1)
    if likelihood.name == "bernoulli":
        reconstruction = bernoulli_log_likelihood(image, logits)
    else:
        pixels = image[0].numel()
        variance = optimal_variance(error.detach(), pixels) if likelihood.variance is None else likelihood.variance
        reconstruction = gaussian_log_likelihood(error, pixels, variance)
    return Terms(reconstruction, kl_standard_normal(mu, logvar), error)


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, diag exp(logvar)) ‖ N(0, I)) in nats, (B, d) → (B,): ½ Σ (sigma² + mu² − 1 − ln sigma²)."""
    return 0.5 * (logvar.exp() + mu.square() - 1.0 - logvar).sum(1)


def gaussian_log_likelihood(squared_error: Tensor, pixels: int, variance: Tensor | float) -> Tensor:
    """log N(x | mean, variance·I) in nats, (B,), from ‖x − mean‖² (B,) over D = ``pixels`` dimensions."""
    log_variance = torch.log(torch.as_tensor(variance))
    return -0.5 * (pixels * (math.log(2 * math.pi) + log_variance) + squared_error / variance)


def bernoulli_log_likelihood(image: Tensor, logits: Tensor) -> Tensor:
    """Σ x ln p + (1 − x) ln(1 − p) with p = sigmoid(logits), in nats, (B, C, H, W) → (B,).

    A log probability for pixels of 0 and 1; for grey ones in between it is the usual cross-entropy, but no density.
    """
    return -F.binary_cross_entropy_with_logits(logits, image, reduction="none").flatten(1).sum(1)


def optimal_variance(squared_error: Tensor, pixels: int) -> Tensor:
    """The maximum-likelihood variance E‖x − mean‖² / D of a batch's errors (B,), a scalar.

    (Rybkin, Daniilidis and Levine, "Simple and Effective VAE Training with Calibrated Decoders", 2021, equation 5.)
    The gradient of the likelihood with this variance held constant is that with it put in: D/2 · d ln variance.
    """
    return (squared_error.mean() / pixels).clamp_min(VARIANCE_FLOOR)
