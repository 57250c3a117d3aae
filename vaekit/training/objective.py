"""The training objectives: bounds on log p(x) in nats per image, with all constants.

The evidence lower bound is ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ N(0, I)), with z = mu + sigma·eps (Kingma and Welling,
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
"""The smallest variance of the Gaussian likelihood, about that of rounding pixels to 8 bits (1.3e-6)."""

Mean = Callable[[Tensor], Tensor]
"""Averages a tensor over the processes that share a batch, without a gradient."""

_EM_STEPS = 10  # for IWAE's optimal variance; two or three are enough with hundreds of pixels


@dataclass(frozen=True)
class TrainingLikelihood:
    """The likelihood p(x|z), whose mean is the decoder's image."""

    name: PixelLikelihood
    pixels: int
    """D = C·H·W, the count of numbers in an image."""
    variance: Tensor | float | None = None
    """Variance of each pixel, the same for all. None for Bernoulli, and until ``Objective.fitted`` sets it."""

    def log_density(self, reconstruction_error: Tensor) -> Tensor:
        """Return log p(x|z) in nats from ``Draws.reconstruction_error``, same shape.

        All likelihoods but Bernoulli must have a variance.
        """
        if self.name == "bernoulli":
            return -reconstruction_error
        assert self.variance is not None
        return _LOG_LIKELIHOODS[self.name](reconstruction_error, self.pixels, self.variance)

    def float_variance(self) -> float | None:
        """Return the variance as a number, or None."""
        return None if self.variance is None else float(self.variance)


class Draws(NamedTuple):
    """S draws of z from q(z|x) per image, and their reconstruction errors."""

    mu: Tensor
    """(B, d)."""
    logvar: Tensor
    """(B, d)."""
    z: Tensor
    """(S, B, d)."""
    log_ratio: Tensor
    """log p(z) − log q(z|x) in nats, (S, B)."""
    reconstruction_error: Tensor
    """(S, B): ‖x − mean‖² for a Gaussian likelihood, Σ|x − mean| for Laplace, −log p(x|z) for Bernoulli."""

    @classmethod
    def joined(cls, parts: Sequence[Draws]) -> Draws:
        """Concatenate the draws of several batches of images, which have equal S."""
        mu, logvar, z, log_ratio, error = zip(*parts, strict=True)
        return cls(torch.cat(mu), torch.cat(logvar), torch.cat(z, 1), torch.cat(log_ratio, 1), torch.cat(error, 1))

    def to_float64(self) -> Draws:
        """Convert all tensors to float64 on the CPU."""
        return Draws(*(part.cpu().double() for part in self))


class BatchTerms(NamedTuple):
    """The two terms of the ELBO, each (B,) in nats."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """Return reconstruction − kl, (B,)."""
        return self.reconstruction - self.kl


@dataclass(frozen=True)
class Objective:
    """The quantity to maximise, averaged over a batch of images."""

    name: ObjectiveName = "elbo"
    """``elbo``: reconstruction − beta·KL. ``iwae``: the importance-weighted bound. ``autoencoder``: the reconstruction
    at z = mu + sigma·eps, without the KL. ``prior-only``: −KL, without the reconstruction."""
    samples: int = 1
    """Draws of z per image: L of the Monte Carlo average, or K of IWAE's bound."""
    beta: float = 1.0
    """Weight of the ELBO's KL (Higgins et al., "beta-VAE", 2017)."""
    free_bits: float = 0.0
    """A floor, in nats, on each dimension's KL averaged over the batch (Kingma et al., "Improved Variational Inference
    with Inverse Autoregressive Flow", 2016, equation 15)."""

    mean: Mean = lambda tensor: tensor
    """Averages over the processes that share a batch equally. The fitted variance and the free bits are not sums over
    images, so they use this to see the whole batch. The mean of the processes' gradients then equals the whole batch's
    gradient."""

    def fitted(self, likelihood: TrainingLikelihood, draws: Draws) -> TrainingLikelihood:
        """Return the likelihood with its optimal variance for these draws.

        A Bernoulli likelihood, or one that already has a variance, is returned unchanged. The optimal variance
        maximises the bound: ``optimal_variance`` does for the ELBO, ``iwae_variance`` for ``iwae``. It has no gradient
        and needs none, because the bound's derivative with respect to the variance is zero at the maximum.
        """
        if likelihood.name == "bernoulli" or likelihood.variance is not None:
            return likelihood
        error, log_ratio = draws.reconstruction_error.detach(), draws.log_ratio.detach()
        if self.name == "iwae":
            variance = iwae_variance(error, log_ratio, likelihood.pixels, self.mean, likelihood.name)
        else:
            variance = optimal_variance(error, likelihood.pixels, self.mean, likelihood.name)
        return dataclasses.replace(likelihood, variance=variance)

    def value(self, draws: Draws, likelihood: TrainingLikelihood, kl_weight: Tensor | float = 1.0) -> Tensor:
        """Return the mean over the batch in nats, a scalar.

        ``kl_weight`` in [0, 1], a scalar, multiplies beta.
        """
        if self.name == "iwae":
            return iwae_bound(draws, likelihood).mean()
        kl = kl_standard_normal(draws.mu, draws.logvar).mean(0)  # (d,)
        if self.free_bits:
            # This has the whole batch's value, and the gradient of this process's share.
            whole = kl + (self.mean(kl.detach()) - kl.detach())
            kl = whole.clamp_min(self.free_bits)
        if self.name == "prior-only":
            return -kl.sum()
        reconstruction = likelihood.log_density(draws.reconstruction_error).mean()
        if self.name == "autoencoder":
            return reconstruction
        return reconstruction - kl_weight * self.beta * kl.sum()


def objective_of(config: Config) -> Objective:
    """Return the objective for these settings."""
    return Objective(config.objective, config.iwae_samples or config.mc_samples, config.beta, config.free_bits)


def likelihood_of(config: Config, variance: float | None = None) -> TrainingLikelihood:
    """Return p(x|z) for these settings.

    ``variance`` is a fitted variance, which is used if the settings do not fix one.
    """
    if config.likelihood == "bernoulli":
        variance = None
    elif config.sigma is not None:
        variance = config.sigma**2
    return TrainingLikelihood(config.likelihood, config.pixels, variance)


def draw(network: VAENetwork, likelihood: TrainingLikelihood, image: Tensor, eps: Tensor) -> Draws:
    """Encode images (B, C, H, W) in [0, 1], draw z, and decode.

    The noise eps (S, B, d) comes from N(0, I).
    """
    mu, logvar = map(_full_precision, network.encode(image))
    return draw_from(network, likelihood, image, mu, logvar, eps)


def draw_from(
    network: VAENetwork, likelihood: TrainingLikelihood, image: Tensor, mu: Tensor, logvar: Tensor, eps: Tensor
) -> Draws:
    """Draw z and decode, as ``draw`` does, from given mu and logvar (B, d)."""
    z = reparameterise(mu, logvar, eps)
    logits = _full_precision(network.logits(z.flatten(0, 1)))
    logits = logits.reshape(*z.shape[:2], *image.shape[1:])  # (S, B, C, H, W)
    # log N(z | 0, I) − log N(z | mu, sigma²); the constants cancel.
    log_ratio = 0.5 * (eps.square() + logvar - z.square()).sum(2)
    return Draws(mu, logvar, z, log_ratio, reconstruction_error(likelihood, image, logits))


def _full_precision(tensor: Tensor) -> Tensor:
    """Convert 16-bit results to float32, because sums over pixels need the precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def reconstruction_error(likelihood: TrainingLikelihood, image: Tensor, logits: Tensor) -> Tensor:
    """Return ``Draws.reconstruction_error`` (S, B).

    The images are (B, C, H, W), the logits (S, B, C, H, W).
    """
    if likelihood.name == "bernoulli":
        return -bernoulli_log_likelihood(image.expand_as(logits), logits)
    difference = torch.sigmoid(logits) - image
    return (difference.abs() if likelihood.name == "laplace" else difference.square()).flatten(2).sum(2)


def terms_of(draws: Draws, likelihood: TrainingLikelihood) -> BatchTerms:
    """Return the ELBO's terms: reconstruction averaged over draws, KL in closed form."""
    reconstruction = likelihood.log_density(draws.reconstruction_error).mean(0)
    return BatchTerms(reconstruction, kl_standard_normal(draws.mu, draws.logvar).sum(1))


def iwae_bound(draws: Draws, likelihood: TrainingLikelihood) -> Tensor:
    """Compute IWAE's bound from K draws, in nats, (B,).

    The bound is E[log 1/K Σ_k p(x, z_k) / q(z_k|x)] ≤ log p(x) (Burda, Grosse and Salakhutdinov, "Importance Weighted
    Autoencoders", 2016, equation 8). The gradient through the log-sum-exp weights the draws as in their equation 14.
    The bound rises with K; for K = 1 its expectation is the ELBO.
    """
    log_weights = likelihood.log_density(draws.reconstruction_error) + draws.log_ratio
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """Compute KL(N(mu, exp(logvar)) ‖ N(0, 1)) per dimension, in nats: (B, d) → (B, d).

    The formula is ½ (sigma² + mu² − 1 − ln sigma²). The sum over dimensions is the KL of a diagonal Gaussian. With
    equal logvars it is the KL of an isotropic Gaussian, ½ (d·sigma² + ‖mu‖² − d − d·ln sigma²). Both equal
    ``kl_gaussians`` against N(0, I).
    """
    return 0.5 * (logvar.exp() + mu.square() - 1.0 - logvar)


def kl_gaussians(mean_0: Tensor, covariance_0: Tensor, mean_1: Tensor, covariance_1: Tensor) -> Tensor:
    """Compute KL(N(mean_0, covariance_0) ‖ N(mean_1, covariance_1)) in nats.

    Means are (…, d), covariances (…, d, d) and the result (…). The formula is
    ½ (tr(Σ₁⁻¹ Σ₀) − d + (μ₁ − μ₀)ᵀ Σ₁⁻¹ (μ₁ − μ₀) + ln det Σ₁ / det Σ₀), evaluated with Cholesky factors. Raises
    torch.linalg.LinAlgError if a covariance is not positive definite.
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
    """Compute log N(x | mean, variance·I) in nats from ‖x − mean‖².

    x has D = ``pixels`` dimensions. The result has the shape of ``squared_error``.
    """
    log_variance = torch.log(torch.as_tensor(variance))
    return -0.5 * (pixels * (math.log(2 * math.pi) + log_variance) + squared_error / variance)


def laplace_log_likelihood(absolute_error: Tensor, pixels: int, variance: Tensor | float) -> Tensor:
    """Compute Σ log Laplace(x | mean, scale) in nats from Σ|x − mean|.

    The scale, √(variance / 2), is the same for all D = ``pixels`` dimensions. The density of one is
    exp(−|x − mean| / scale) / (2·scale). The result has the shape of ``absolute_error``.
    """
    scale = torch.sqrt(torch.as_tensor(variance) / 2)
    return -pixels * torch.log(2 * scale) - absolute_error / scale


_LOG_LIKELIHOODS: dict[str, Callable[[Tensor, int, Tensor | float], Tensor]] = {
    "gaussian": gaussian_log_likelihood,
    "laplace": laplace_log_likelihood,
}


def bernoulli_log_likelihood(image: Tensor, logits: Tensor) -> Tensor:
    """Compute Σ x ln p + (1 − x) ln(1 − p) with p = sigmoid(logits).

    Shapes are (…, C, H, W) → (…), in nats. For pixels of 0 and 1 this is a log probability. For grey pixels it is the
    usual cross-entropy, which is not a log density.
    """
    return -F.binary_cross_entropy_with_logits(logits, image, reduction="none").flatten(-3).sum(-1)


def optimal_variance(
    error: Tensor, pixels: int, mean: Mean = lambda tensor: tensor, likelihood: PixelLikelihood = "gaussian"
) -> Tensor:
    """Return the maximum-likelihood variance, a scalar.

    ``error`` is ``Draws.reconstruction_error`` in any shape. A Gaussian's is E‖x − mean‖² / D (Rybkin, Daniilidis and
    Levine, "Simple and Effective VAE Training with Calibrated Decoders", 2021, equation 5). A Laplace's most likely
    scale is E Σ|x − mean| / D, and its variance is 2·scale². Holding the variance constant gives the same gradient of
    the likelihood as differentiating through it: −D/2 · d ln variance.
    """
    of_each = mean(error.mean()) / pixels
    return (2 * of_each.square() if likelihood == "laplace" else of_each).clamp_min(VARIANCE_FLOOR)


def iwae_variance(
    error: Tensor,
    log_ratio: Tensor,
    pixels: int,
    mean: Mean = lambda tensor: tensor,
    likelihood: PixelLikelihood = "gaussian",
) -> Tensor:
    """Return the variance that maximises the mean IWAE bound, a scalar.

    ``error``, ``Draws.reconstruction_error``, and ``log_ratio`` are (K, B). At the maximum, the variance is that of
    ``optimal_variance`` for errors weighted by the normalised importance weights, which depend on the variance. The EM
    algorithm finds this fixed point, starting from the unweighted mean.
    """
    variance = optimal_variance(error, pixels, mean, likelihood)
    for _ in range(_EM_STEPS):
        weights = torch.softmax(_LOG_LIKELIHOODS[likelihood](error, pixels, variance) + log_ratio, 0)
        variance = optimal_variance((weights * error).sum(0), pixels, mean, likelihood)
    return variance
