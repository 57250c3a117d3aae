"""Evaluate a trained model: its ELBO, its likelihood, and the use of each latent dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaekit.errors import VaekitError
from vaekit.maths import noise
from vaekit.maths.psnr import psnr
from vaekit.training.device import exact, share_threads, to_device
from vaekit.training.learner import images_at_once
from vaekit.training.networks import VAENetwork
from vaekit.training.objective import TrainingLikelihood, draw_from, kl_gaussians, kl_standard_normal
from vaekit.training.run import Run

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active if Var_x(E_q[z_j]) exceeds this (Burda, Grosse and Salakhutdinov, 2016, section 5.2)."""

Read = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""Reads images by their numbers: pixels, uint8 (n, C, H, W)."""

_NOT_IN_JSON = {"json": False}
_LEAST_MSE = 1e-10  # a PSNR of 100 dB; keeps the PSNR of perfect reconstructions finite
_STRIDE = 2**40  # draw k of image i uses noise sample k · _STRIDE + i, so there may be 2**40 images


@dataclass(frozen=True)
class Evaluation:
    """Means over the images. Bounds and KLs are in nats per image, with the prior N(0, I)."""

    images: int
    elbo: float
    """reconstruction − kl, a lower bound on log p(x)."""
    reconstruction: float
    """E_q log p(x|z), averaged over ``nll_samples`` draws."""
    kl: float
    """KL(q(z|x) ‖ N(0, I)), in closed form."""
    nll: float
    """−log p̂(x), estimated by importance sampling from q(z|x). Its expectation is at least −log p(x)."""
    nll_samples: int
    """Draws per image."""
    active_units: int | None
    """The number of active dimensions, or of a map's active channels; None for a single image, without a variance."""
    kl_per_dimension: tuple[float, ...]
    """Of maps, the KL of each channel, summed over the positions."""
    aggregate_kl: float | None = field(metadata=_NOT_IN_JSON)
    """KL from the Gaussian with the mean and covariance of the aggregate posterior to N(0, I).

    No distribution with these moments has a smaller KL. So this is a lower bound on the part of ``kl`` that is due to
    the mismatch between the aggregate posterior and the prior (Hoffman and Johnson, "ELBO surgery", 2016). It is None
    for maps.
    """
    mu_variance: tuple[float, ...] = field(metadata=_NOT_IN_JSON)
    """Var_x(E_q[z_j]) of each dimension; of maps, of each channel, averaged over the positions."""
    psnr: float
    """In dB, at z = mu."""
    mse: float
    """Mean squared error per pixel, at z = mu."""
    sigma: float | None
    """The Gaussian likelihood's standard deviation, fixed at the end of training. None for Bernoulli."""
    bits_per_dimension: float | None
    """−ELBO in bits for each of an image's D numbers, as a code for pixels of 8 bits: (D ln 256 − ELBO) / (D ln 2).

    It assumes that the density is the same everywhere within a 256th. None for Bernoulli, which has no density.
    """
    binary: bool = field(metadata=_NOT_IN_JSON)
    """Whether all pixels were 0 or 1."""

    @property
    def dead(self) -> tuple[int, ...]:
        """Return the numbers of the inactive dimensions, from 0."""
        return tuple(number for number, variance in enumerate(self.mu_variance) if not is_active(variance))

    def to_json(self) -> dict[str, Any]:
        """Return the results as a JSON object."""
        return {known.name: getattr(self, known.name) for known in fields(self) if known.metadata != _NOT_IN_JSON}


def is_active(mu_variance: float) -> bool:
    """Return whether a dimension with this variance of mu is active."""
    return mu_variance > ACTIVE_VARIANCE


@torch.inference_mode()
def evaluate(
    run: Run,
    read: Read,
    indices: NDArray[np.int64],
    *,
    samples: int,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 250,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate a run with ``samples`` importance samples per image.

    ``indices`` are the numbers of the images, which ``read`` reads. A network processes at most ``batch_size`` images
    or latents at a time, or fewer large ones, which limits memory use. The results do not depend on it, because each
    draw of each image has its own noise, given by the seed. ``progress`` is called with the number of images done and
    their total. Raises VaekitError if results are not finite.
    """
    share_threads()
    place = torch.device(device)
    run.network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    likelihood = TrainingLikelihood(run.config.likelihood, run.config.pixels, run.variance)
    batch_size = min(batch_size, images_at_once(*run.config.image_shape[1:]))
    sums, binary = _Sums(run.config.latent_shape), True
    for first in range(0, len(indices), batch_size):
        pixels = read(indices[first : first + batch_size])
        binary = binary and bool(np.isin(pixels, (0, 255)).all())
        draws = _noise(seed, first, len(pixels), samples, run.config.latent_numbers, batch_size)
        with exact(place):
            sums.add(run.network, likelihood, to_device(pixels, place), draws)
        progress(first + len(pixels), len(indices))
    return sums.evaluation(len(indices), samples, run.variance, run.config.pixels, binary)


def _noise(seed: int, first: int, images: int, samples: int, dimensions: int, rows: int) -> Iterator[Tensor]:
    """Yield eps for all draws of some images, float32 (s, images, d).

    Each part contains at most ``rows`` latents.
    """
    together = max(1, rows // images)
    for start in range(0, samples, together):
        draws = range(start, min(start + together, samples))
        eps = np.stack([noise.standard_normal(seed, k * _STRIDE + first, images, dimensions) for k in draws])
        yield torch.from_numpy(eps.astype(np.float32))


class _Sums:
    """Running sums over images, in float64 on the CPU."""

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        self.channels = latent_shape[0] if len(latent_shape) > 1 else None  # of maps
        zeros = torch.zeros(math.prod(latent_shape), dtype=torch.float64)
        self.reconstruction = self.log_evidence = self.mse = zeros.sum()
        self.psnr = 0.0
        self.kl = self.mu = self.variance = zeros
        self.mu_products = zeros if self.channels else torch.outer(zeros, zeros)  # of maps, only the squares

    def add(self, network: VAENetwork, likelihood: TrainingLikelihood, image: Tensor, noise: Iterator[Tensor]) -> None:
        """Add images (B, C, H, W), given the noise of all their draws."""
        mu, logvar = network.encode(image)
        reconstruction, log_evidence = _estimates(network, likelihood, image, mu, logvar, noise)
        mse = (torch.sigmoid(network.logits(mu)) - image).square().flatten(1).mean(1).cpu().double()
        mu, logvar = mu.cpu().double(), logvar.cpu().double()
        self.reconstruction = self.reconstruction + reconstruction.sum()
        self.log_evidence = self.log_evidence + log_evidence.sum()
        self.mse = self.mse + mse.sum()
        self.psnr += sum(map(psnr, mse.clamp_min(_LEAST_MSE).tolist()))
        self.kl = self.kl + kl_standard_normal(mu, logvar).sum(0)
        self.mu = self.mu + mu.sum(0)
        self.variance = self.variance + logvar.exp().sum(0)
        self.mu_products = self.mu_products + (mu.square().sum(0) if self.channels else mu.T @ mu)

    def evaluation(self, images: int, samples: int, variance: float | None, pixels: int, binary: bool) -> Evaluation:
        """Return the means. ``pixels`` is D. Raises VaekitError if they are not finite."""
        reconstruction, nll = self.reconstruction.item() / images, -self.log_evidence.item() / images
        kl, mean = self.kl / images, self.mu / images
        if not math.isfinite(reconstruction + nll + kl.sum().item()):
            raise VaekitError("the model's results are not finite: its weights are damaged, train it again")
        if self.channels:
            kl_of_units = kl.reshape(self.channels, -1).sum(1)
            mu_variance = (self.mu_products / images - mean.square()).reshape(self.channels, -1).mean(1)
            aggregate_kl = None
        else:
            kl_of_units, covariance = kl, self.mu_products / images - torch.outer(mean, mean)
            mu_variance = covariance.diag()
            covariance = covariance + torch.diag(self.variance / images)  # law of total covariance
            standard = torch.zeros_like(mean), torch.eye(len(mean)).double()
            aggregate_kl = kl_gaussians(mean, covariance, *standard).item()
        elbo = reconstruction - kl.sum().item()
        return Evaluation(
            images=images,
            elbo=elbo,
            reconstruction=reconstruction,
            kl=kl.sum().item(),
            nll=nll,
            nll_samples=samples,
            active_units=None if images < 2 else sum(map(is_active, mu_variance.tolist())),
            kl_per_dimension=tuple(kl_of_units.tolist()),
            aggregate_kl=aggregate_kl,
            mu_variance=tuple(mu_variance.tolist()),
            psnr=self.psnr / images,
            mse=self.mse.item() / images,
            sigma=None if variance is None else math.sqrt(variance),
            bits_per_dimension=None if variance is None else 8 - elbo / (pixels * math.log(2)),
            binary=binary,
        )


def _estimates(
    network: VAENetwork,
    likelihood: TrainingLikelihood,
    image: Tensor,
    mu: Tensor,
    logvar: Tensor,
    noise: Iterator[Tensor],
) -> tuple[Tensor, Tensor]:
    """Estimate E_q log p(x|z) and log p̂(x) from all draws, each float64 (B,).

    log p̂(x) = log 1/K Σ_k p(x, z_k) / q(z_k|x), with p(x, z) = p(x|z) p(z).
    """
    total = torch.zeros(len(image), dtype=torch.float64)
    evidence, count = torch.full_like(total, -math.inf), 0
    for eps in noise:
        draws = draw_from(network, likelihood, image, mu, logvar, eps.to(image.device)).to_float64()
        log_density = likelihood.log_density(draws.reconstruction_error)
        total = total + log_density.sum(0)
        evidence = torch.logaddexp(evidence, torch.logsumexp(log_density + draws.log_ratio, 0))
        count += len(eps)
    return total / count, evidence - math.log(count)
