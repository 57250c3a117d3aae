"""How far a compressed model lies from its bundle, on the sessions that the edge opens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import CheckError
from vaekit.providers import open_on_cpu
from vaekit.runtime import VAE
from vaekit.scoring import elbo_terms

PRIOR_SAMPLES = 256

_ELBO_SEEDS = range(4)
_BATCH = 64

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Graphs:
    """Two halves, and which of the parent's latent dimensions they have."""

    encoder: bytes
    decoder: bytes
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """What a compressed model may lose."""

    psnr: float
    """dB that decoded prior samples must reach against the parent's; −infinity where that is not asked."""
    delta_elbo: float
    """Nats by which the mean ELBO may differ from the parent's."""


class Judge:
    """Measures halves against those of a bundle, on prior samples and on images (N, C, H, W) in [0, 1]."""

    def __init__(self, vae: VAE, images: Array, limits: Limits) -> None:
        self.limits = limits
        self.z = vae.sample_latents(PRIOR_SAMPLES)
        self._vae, self._images = vae, images
        self._decoded = vae.decode(self.z)
        self._has_elbo = vae.manifest.why_no_elbo is None and len(vae.latent_shape) == 1
        files, graphs = vae.bundle.files, vae.manifest.graphs
        encoder, decoder = (files[graphs[name].file] for name in ("encoder", "decoder"))
        self.parent = Graphs(encoder, decoder, tuple(range(vae.latent_shape[0])))
        self._elbo = self._mean_elbo(self.parent) if self._has_elbo else math.nan

    def psnr(self, graphs: Graphs) -> float:
        """dB of decoded prior samples against the parent's; infinite where they are equal."""
        return decibels(run(graphs.decoder, self.z[:, graphs.kept])[0], self._decoded, 1.0)

    def delta_elbo(self, graphs: Graphs) -> float | None:
        """Mean ELBO less the parent's in nats, at the same noise; None where the model has no ELBO."""
        return self._mean_elbo(graphs) - self._elbo if self._has_elbo else None

    def decoder_headroom(self, graphs: Graphs) -> float:
        """dB that are left to the limits, half of the nats being the encoder's; under zero where one is passed."""
        return min(self.psnr(graphs) - self.limits.psnr, self._nats_left(graphs))

    def encoder_headroom(self, graphs: Graphs) -> float:
        """The same for the encoder. Without an ELBO its mu must reach the PSNR, the peak being the range of mu."""
        if self._has_elbo:
            return self._nats_left(graphs)
        expected = run(self.parent.encoder, self._images)[0]
        mu = run(graphs.encoder, self._images)[0]
        return decibels(mu, expected[:, graphs.kept], float(np.ptp(expected)) or 1.0) - self.limits.psnr

    def check(self, graphs: Graphs) -> tuple[float, float | None]:
        """PSNR and change of the ELBO. Raises CheckError where a limit is passed."""
        psnr, delta = self.psnr(graphs), self.delta_elbo(graphs)
        if not psnr >= self.limits.psnr:
            raise CheckError(
                f"prior samples reach {psnr:.1f} dB where {self.limits.psnr:g} are asked for, nothing was published; "
                "--min-psnr asks for less"
            )
        if delta is not None and not abs(delta) <= self.limits.delta_elbo:
            raise CheckError(
                f"the ELBO changes by {delta:+.3g} nats where {self.limits.delta_elbo:g} are allowed, nothing was "
                "published; --max-delta-elbo allows more"
            )
        return psnr, delta

    def _nats_left(self, graphs: Graphs) -> float:
        """In dB, as the ELBO changes with the mean squared error."""
        delta = self.delta_elbo(graphs)
        if delta is None or delta == 0:
            return math.inf
        if not math.isfinite(delta):
            return -math.inf
        return 10 * math.log10(max(self.limits.delta_elbo / 2, 1e-12) / abs(delta))

    def _mean_elbo(self, graphs: Graphs) -> float:
        """Over the images and a few noise vectors, in nats.

        Dimensions that are gone are put back as the prior: of no KL, and with noise that the decoder does not see.
        Every model is so measured with the same noise.
        """
        mu, logvar = np.zeros((2, len(self._images), len(self.parent.kept)), np.float32)
        mu[:, graphs.kept], logvar[:, graphs.kept] = run(graphs.encoder, self._images)
        decode = runner(graphs.decoder)
        elbos = [
            elbo_terms(
                self._images,
                lambda images: (mu, logvar),
                lambda z: decode(z[:, graphs.kept])[0],
                self._vae.manifest.likelihood,
                seed=seed,
            ).elbo.mean()
            for seed in _ELBO_SEEDS
        ]
        return float(np.mean(elbos))


def runner(data: bytes) -> Callable[[Array], list[Array]]:
    """A function that runs a graph of one input on rows, a batch at a time."""
    session = open_on_cpu("graph", data).session
    name = session.get_inputs()[0].name

    def call(rows: Array) -> list[Array]:
        parts = [session.run(None, {name: rows[first : first + _BATCH]}) for first in range(0, len(rows), _BATCH)]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    return call


def run(data: bytes, rows: Array) -> list[Array]:
    """A graph's outputs for rows of its one input."""
    return runner(data)(np.ascontiguousarray(rows))


def decibels(actual: Array, expected: Array, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal arrays, −infinity where ``actual`` is not finite."""
    error = float(((actual.astype(np.float64) - expected) ** 2).mean())
    if not math.isfinite(error):
        return -math.inf
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)
