"""What a training maximises: bounds on log p(x) in nats per image, with all their constants.

The evidence lower bound is ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ N(0, I)), for z = mu + sigma·eps (Kingma and Welling,
"Auto-Encoding Variational Bayes", 2014, equation 10). Densities are over pixels in [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vaekit.training.config import Config, ObjectiveName, PixelLikelihood
from vaekit.training.networks import VAENetwork, reparameterise

VARIANCE_FLOOR = 1e-6
"""The least variance of the Gaussian likelihood: below it lies only the rounding of 8-bit pixels (1.3e-6)."""

Mean = Callable[[Tensor], Tensor]
"""The mean of a tensor over the processes that share a batch, without a gradient."""

_EM_STEPS = 10  # towards the variance that IWAE's bound is highest at; with hundreds of pixels two or three suffice


@dataclass(frozen=True)
class TrainingLikelihood:
    """p(x|z), with the decoder's image as its mean."""

    name: PixelLikelihood
    pixels: int
    """D = C·H·W, the numbers in an image."""
    variance: Tensor | float | None = None
    """Of the Gaussian, shared over pixels; None until it is fitted (``Objective.fitted``), and for Bernoulli."""

    def log_density(self, reconstruction_error: Tensor) -> Tensor:
        """Return log p(x|z) in nats from ``Draws.reconstruction_error``, same shape; a Gaussian needs its variance."""
        if self.name == "bernoulli":
            return -reconstruction_error
        assert self.variance is not None
        return gaussian_log_likelihood(reconstruction_error, self.pixels, self.variance)

    def float_variance(self) -> float | None:
        """Return the variance as a number, or None if there is none."""
        return None if self.variance is None else float(self.variance)


class Draws(NamedTuple):
    """S draws of z from q(z|x) for each of B images, and how well the decoder's images fit them."""

    mu: Tensor
    """(B, d)."""
    logvar: Tensor
    """(B, d)."""
    z: Tensor
    """(S, B, d)."""
    log_ratio: Tensor
    """log p(z) − log q(z|x) in nats, (S, B)."""
    reconstruction_error: Tensor
    """(S, B): the squared error ‖x − mean‖² of a Gaussian likelihood, the negative log-likelihood of Bernoulli."""

    @classmethod
    def joined(cls, parts: Sequence[Draws]) -> Draws:
        """Join the draws of several batches of images, with equal S, into one."""
        mu, logvar, z, log_ratio, error = zip(*parts, strict=True)
        return cls(torch.cat(mu), torch.cat(logvar), torch.cat(z, 1), torch.cat(log_ratio, 1), torch.cat(error, 1))

    def to_float64(self) -> Draws:
        """Return the same as float64 on the CPU."""
        return Draws(*(part.cpu().double() for part in self))


class BatchTerms(NamedTuple):
    """The two terms of the ELBO, each (B,) in nats."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """reconstruction − kl, (B,)."""
        return self.reconstruction - self.kl


@dataclass(frozen=True)
class Objective:
    """What is maximised, averaged over a batch of images."""

    name: ObjectiveName = "elbo"
    """``elbo``: reconstruction − beta·KL. ``iwae``: the importance-weighted bound. ``autoencoder``: the reconstruction
    alone, still at z = mu + sigma·eps: the ELBO without its KL. ``prior-only``: −KL alone."""
    samples: int = 1
    """Draws of z an image: L of the Monte Carlo average, or K of IWAE's bound."""
    beta: float = 1.0
    """Weight of the ELBO's KL (Higgins et al., "beta-VAE", 2017)."""
    free_bits: float = 0.0
    """Nats that each dimension's KL, averaged over the batch, counts at least (Kingma et al., "Improved Variational
    Inference with Inverse Autoregressive Flow", 2016, equation 15)."""

    mean: Mean = lambda tensor: tensor
    """Over the processes that share a batch equally. What is no sum over images is then that of the whole batch: the
    fitted variance and the free bits; so the mean of the processes' gradients is the whole batch's gradient."""

    def fitted(self, likelihood: TrainingLikelihood, draws: Draws) -> TrainingLikelihood:
        """The likelihood with the variance that these draws make most likely, where it has none of its own.

        That is the E_q‖x − mean‖² / D that the ELBO is highest at or, for ``iwae``, the variance that its bound is. It
        carries no gradient, and needs none: at its maximum the bound's derivative by the variance is zero.
        """
        if likelihood.name == "bernoulli" or likelihood.variance is not None:
            return likelihood
        error, log_ratio = draws.reconstruction_error.detach(), draws.log_ratio.detach()
        if self.name == "iwae":
            variance = iwae_variance(error, log_ratio, likelihood.pixels, self.mean)
        else:
            variance = optimal_variance(error, likelihood.pixels, self.mean)
        return dataclasses.replace(likelihood, variance=variance)

    def value(self, draws: Draws, likelihood: TrainingLikelihood, kl_weight: float = 1.0) -> Tensor:
        """Return the mean over the batch in nats, a scalar; ``kl_weight`` in [0, 1] is the share of beta in force."""
        if self.name == "iwae":
            return iwae_bound(draws, likelihood).mean()
        kl = kl_standard_normal(draws.mu, draws.logvar).mean(0)  # (d,)
        if self.free_bits:
            whole = kl + (self.mean(kl.detach()) - kl.detach())  # its value, with the gradient of this process's share
            kl = whole.clamp_min(self.free_bits)
        if self.name == "prior-only":
            return -kl.sum()
        reconstruction = likelihood.log_density(draws.reconstruction_error).mean()
        if self.name == "autoencoder":
            return reconstruction
        return reconstruction - kl_weight * self.beta * kl.sum()


def objective_of(config: Config) -> Objective:
    """Return what a training with these settings maximises."""
    return Objective(config.objective, config.iwae_samples or config.mc_samples, config.beta, config.free_bits)


def likelihood_of(config: Config, variance: float | None = None) -> TrainingLikelihood:
    """Return p(x|z) under these settings, with the fitted ``variance`` where the settings do not fix one."""
    if config.likelihood == "bernoulli":
        variance = None
    elif config.sigma is not None:
        variance = config.sigma**2
    return TrainingLikelihood(config.likelihood, config.pixels, variance)


def draw(network: VAENetwork, likelihood: TrainingLikelihood, image: Tensor, eps: Tensor) -> Draws:
    """Draw z for images (B, C, H, W) in [0, 1] from noise eps (S, B, d) ~ N(0, I), and decode it."""
    mu, logvar = map(_full_precision, network.encoder(image))
    return draw_from(network, likelihood, image, mu, logvar, eps)


def draw_from(
    network: VAENetwork, likelihood: TrainingLikelihood, image: Tensor, mu: Tensor, logvar: Tensor, eps: Tensor
) -> Draws:
    """As ``draw``, for images that are encoded already, to mu and logvar (B, d)."""
    z = reparameterise(mu, logvar, eps)
    logits = _full_precision(network.decoder.logits(z.flatten(0, 1)))
    logits = logits.reshape(*z.shape[:2], *image.shape[1:])  # (S, B, C, H, W)
    # log N(z | 0, I) − log N(z | mu, sigma²), whose constants cancel.
    log_ratio = 0.5 * (eps.square() + logvar - z.square()).sum(2)
    return Draws(mu, logvar, z, log_ratio, reconstruction_error(likelihood, image, logits))


def _full_precision(tensor: Tensor) -> Tensor:
    """What a network computed in 16 bits as float32: sums over pixels need its digits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def reconstruction_error(likelihood: TrainingLikelihood, image: Tensor, logits: Tensor) -> Tensor:
    """Return ``Draws.reconstruction_error`` (S, B) of images (B, C, H, W) and logits (S, B, C, H, W)."""
    if likelihood.name == "bernoulli":
        return -bernoulli_log_likelihood(image.expand_as(logits), logits)
    return (torch.sigmoid(logits) - image).square().flatten(2).sum(2)


def terms_of(draws: Draws, likelihood: TrainingLikelihood) -> BatchTerms:
    """Return the ELBO's terms, the reconstruction averaged over the draws and the KL in closed form."""
    reconstruction = likelihood.log_density(draws.reconstruction_error).mean(0)
    return BatchTerms(reconstruction, kl_standard_normal(draws.mu, draws.logvar).sum(1))


def iwae_bound(draws: Draws, likelihood: TrainingLikelihood) -> Tensor:
    """The bound E[log 1/K Σ_k p(x, z_k) / q(z_k|x)] ≤ log p(x) of K draws, in nats, (B,).

    (Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016, equation 8. Its gradient, through the
    log-sum-exp, weighs the draws as their equation 14.) It rises with K; at K = 1 its mean is the ELBO's.
    """
    log_weights = likelihood.log_density(draws.reconstruction_error) + draws.log_ratio
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) ‖ N(0, 1)) of each dimension in nats, ½ (sigma² + mu² − 1 − ln sigma²): (B, d) → (B, d).

    Summed over dimensions it is that of the diagonal Gaussian, and with equal logvars that of the isotropic one,
    ½ (d·sigma² + ‖mu‖² − d − d·ln sigma²): both are ``kl_gaussians`` at N(0, I).
    """
    return 0.5 * (logvar.exp() + mu.square() - 1.0 - logvar)


def kl_gaussians(mean_0: Tensor, covariance_0: Tensor, mean_1: Tensor, covariance_1: Tensor) -> Tensor:
    """KL(N(mean_0, covariance_0) ‖ N(mean_1, covariance_1)) in nats: (…, d) and (…, d, d) → (…).

    ½ (tr(Σ₁⁻¹ Σ₀) − d + (μ₁ − μ₀)ᵀ Σ₁⁻¹ (μ₁ − μ₀) + ln det Σ₁ / det Σ₀), by Cholesky factors. Raises
    torch.linalg.LinAlgError for a covariance that is not positive definite.
    """
    factor_0, factor_1 = torch.linalg.cholesky(covariance_0), torch.linalg.cholesky(covariance_1)
    trace = torch.linalg.solve_triangular(factor_1, factor_0, upper=False).square().sum((-2, -1))
    shift = torch.linalg.solve_triangular(factor_1, (mean_1 - mean_0)[..., None], upper=False).square().sum((-2, -1))
    log_determinants = 2.0 * (_log_diagonal(factor_1) - _log_diagonal(factor_0)).sum(-1)
    kl: Tensor = 0.5 * (trace - mean_0.shape[-1] + shift + log_determinants)
    return kl


def _log_diagonal(matrices: Tensor) -> Tensor:
    diagonal: Tensor = torch.diagonal(matrices, dim1=-2, dim2=-1)
    return diagonal.log()


def gaussian_log_likelihood(squared_error: Tensor, pixels: int, variance: Tensor | float) -> Tensor:
    """log N(x | mean, variance·I) in nats from ‖x − mean‖² of any shape, over D = ``pixels`` dimensions."""
    log_variance = torch.log(torch.as_tensor(variance))
    return -0.5 * (pixels * (math.log(2 * math.pi) + log_variance) + squared_error / variance)


def bernoulli_log_likelihood(image: Tensor, logits: Tensor) -> Tensor:
    """Σ x ln p + (1 − x) ln(1 − p) with p = sigmoid(logits), in nats, (…, C, H, W) → (…).

    A log probability for pixels of 0 and 1; for grey ones in between it is the usual cross-entropy, but no density.
    """
    return -F.binary_cross_entropy_with_logits(logits, image, reduction="none").flatten(-3).sum(-1)


def optimal_variance(squared_error: Tensor, pixels: int, mean: Mean = lambda tensor: tensor) -> Tensor:
    """The maximum-likelihood variance E‖x − mean‖² / D of squared errors of any shape, a scalar.

    (Rybkin, Daniilidis and Levine, "Simple and Effective VAE Training with Calibrated Decoders", 2021, equation 5.)
    The gradient of the likelihood with this variance held constant is that with it put in: D/2 · d ln variance.
    """
    return (mean(squared_error.mean()) / pixels).clamp_min(VARIANCE_FLOOR)


def iwae_variance(squared_error: Tensor, log_ratio: Tensor, pixels: int, mean: Mean = lambda tensor: tensor) -> Tensor:
    """The variance at which the mean IWAE bound of draws (K, B) is highest, a scalar.

    There it is the mean squared error weighed by the normalised importance weights, which themselves follow the
    variance: a fixed point, that the EM algorithm climbs to from the unweighted mean.
    """
    variance = optimal_variance(squared_error, pixels, mean)
    for _ in range(_EM_STEPS):
        weights = torch.softmax(gaussian_log_likelihood(squared_error, pixels, variance) + log_ratio, 0)
        variance = optimal_variance((weights * squared_error).sum(0), pixels, mean)
    return variance
