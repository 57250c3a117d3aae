"""What a trained model is worth: the bound, the likelihood, and what each latent dimension carries."""

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
from vaekit.training.device import share_threads, to_device
from vaekit.training.networks import VAENetwork
from vaekit.training.objective import TrainingLikelihood, draw_from, kl_gaussians, kl_standard_normal
from vaekit.training.run import Run

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active where Var_x(E_q[z_j]) is larger (Burda, Grosse and Salakhutdinov, 2016, section 5.2)."""

Read = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""From numbers of images to pixels, uint8 (n, C, H, W)."""

_NOT_IN_JSON = {"json": False}
_LEAST_MSE = 1e-10  # a PSNR of 100 dB, far past what 8-bit pixels hold: keeps perfect reconstructions finite
_STRIDE = 2**40  # the noise's sample number of image i's draw k is k · _STRIDE + i: more images than anyone has


@dataclass(frozen=True)
class Evaluation:
    """Means over the images; all but the last four are in nats per image, with the prior N(0, I)."""

    images: int
    elbo: float
    """reconstruction − kl, a lower bound of log p(x)."""
    reconstruction: float
    """E_q log p(x|z), over ``nll_samples`` draws."""
    kl: float
    """KL(q(z|x) ‖ N(0, I)), in closed form."""
    nll: float
    """−log p̂(x), by importance sampling from q(z|x): in expectation no less than −log p(x)."""
    nll_samples: int
    """Draws per image."""
    active_units: int | None
    """The count of active dimensions; None for a single image, which has no variance."""
    kl_per_dimension: tuple[float, ...]
    aggregate_kl: float = field(metadata=_NOT_IN_JSON)
    """KL of the Gaussian that has the mean and covariance of all codes together, from N(0, I).

    Of all distributions with these moments it lies nearest, so that no less of ``kl`` is spent on the codes as a whole
    not being distributed as the prior (Hoffman and Johnson, "ELBO surgery", 2016).
    """
    mu_variance: tuple[float, ...] = field(metadata=_NOT_IN_JSON)
    """Var_x(E_q[z_j]) of each dimension."""
    psnr: float
    """dB, at z = mu."""
    mse: float
    """A pixel's mean squared error at z = mu."""
    sigma: float | None
    """Of the Gaussian likelihood, as the training froze it; None for Bernoulli."""
    binary: bool = field(metadata=_NOT_IN_JSON)
    """Whether all pixels were 0 or 1."""

    @property
    def dead(self) -> tuple[int, ...]:
        """Numbers of the dimensions that are not active, from 0."""
        return tuple(number for number, variance in enumerate(self.mu_variance) if not is_active(variance))

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return {known.name: getattr(self, known.name) for known in fields(self) if known.metadata != _NOT_IN_JSON}


def is_active(mu_variance: float) -> bool:
    """Whether a latent dimension is active, from the variance over images of its posterior mean."""
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
    """Evaluate a run on the images of those numbers, with ``samples`` importance samples per image.

    At most ``batch_size`` images are in memory and go through a network at a time, whatever their number and that of
    the samples. The figures do not depend on it: every draw of every image has its own noise, which follows the seed.
    ``progress`` is called with the images done and their total. Raises VaekitError where figures are not finite.
    """
    share_threads()
    place = torch.device(device)
    run.network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    likelihood = TrainingLikelihood(run.config.likelihood, run.config.pixels, run.variance)
    sums, binary = _Sums(run.config.latent), True
    for first in range(0, len(indices), batch_size):
        pixels = read(indices[first : first + batch_size])
        binary = binary and bool(np.isin(pixels, (0, 255)).all())
        draws = _noise(seed, first, len(pixels), samples, run.config.latent, batch_size)
        sums.add(run.network, likelihood, to_device(pixels, place), draws)
        progress(first + len(pixels), len(indices))
    return sums.evaluation(len(indices), samples, run.variance, binary)


def _noise(seed: int, first: int, images: int, samples: int, dimensions: int, rows: int) -> Iterator[Tensor]:
    """eps for all draws of some images, float32 (s, images, d), of no more than ``rows`` latents at a time."""
    together = max(1, rows // images)
    for start in range(0, samples, together):
        draws = range(start, min(start + together, samples))
        eps = np.stack([noise.standard_normal(seed, k * _STRIDE + first, images, dimensions) for k in draws])
        yield torch.from_numpy(eps.astype(np.float32))


class _Sums:
    """Sums over images, in float64 on the CPU."""

    def __init__(self, dimensions: int) -> None:
        zeros = torch.zeros(dimensions, dtype=torch.float64)
        self.reconstruction = self.log_evidence = self.mse = zeros.sum()
        self.psnr = 0.0
        self.kl = self.mu = self.variance = zeros
        self.mu_products = torch.outer(zeros, zeros)

    def add(self, network: VAENetwork, likelihood: TrainingLikelihood, image: Tensor, noise: Iterator[Tensor]) -> None:
        """Add images (B, C, H, W), with the noise of all their draws."""
        mu, logvar = network.encoder(image)
        reconstruction, log_evidence = _estimates(network, likelihood, image, mu, logvar, noise)
        mse = (network.decoder(mu) - image).square().flatten(1).mean(1).cpu().double()
        mu, logvar = mu.cpu().double(), logvar.cpu().double()
        self.reconstruction = self.reconstruction + reconstruction.sum()
        self.log_evidence = self.log_evidence + log_evidence.sum()
        self.mse = self.mse + mse.sum()
        self.psnr += sum(map(psnr, mse.clamp_min(_LEAST_MSE).tolist()))
        self.kl = self.kl + kl_standard_normal(mu, logvar).sum(0)
        self.mu = self.mu + mu.sum(0)
        self.variance = self.variance + logvar.exp().sum(0)
        self.mu_products = self.mu_products + mu.T @ mu

    def evaluation(self, images: int, samples: int, variance: float | None, binary: bool) -> Evaluation:
        """The means. Raises VaekitError where they are not finite."""
        reconstruction, nll = self.reconstruction.item() / images, -self.log_evidence.item() / images
        kl, mean = self.kl / images, self.mu / images
        if not math.isfinite(reconstruction + nll + kl.sum().item()):
            raise VaekitError("the model's figures are not finite: its weights are damaged, train it again")
        mu_covariance = self.mu_products / images - torch.outer(mean, mean)
        covariance = mu_covariance + torch.diag(self.variance / images)  # law of total covariance
        mu_variance = tuple(mu_covariance.diag().tolist())
        return Evaluation(
            images=images,
            elbo=reconstruction - kl.sum().item(),
            reconstruction=reconstruction,
            kl=kl.sum().item(),
            nll=nll,
            nll_samples=samples,
            active_units=None if images < 2 else sum(map(is_active, mu_variance)),
            kl_per_dimension=tuple(kl.tolist()),
            aggregate_kl=kl_gaussians(mean, covariance, torch.zeros_like(mean), torch.eye(len(mean)).double()).item(),
            mu_variance=mu_variance,
            psnr=self.psnr / images,
            mse=self.mse.item() / images,
            sigma=None if variance is None else math.sqrt(variance),
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
    """E_q log p(x|z), and log p̂(x) = log 1/K Σ_k p(x, z_k) / q(z_k|x), each float64 (B,), over all draws."""
    total = torch.zeros(len(image), dtype=torch.float64)
    evidence, count = torch.full_like(total, -math.inf), 0
    for eps in noise:
        draws = draw_from(network, likelihood, image, mu, logvar, eps.to(image.device)).to_float64()
        log_density = likelihood.log_density(draws.reconstruction_error)
        total = total + log_density.sum(0)
        evidence = torch.logaddexp(evidence, torch.logsumexp(log_density + draws.log_ratio, 0))
        count += len(eps)
    return total / count, evidence - math.log(count)
