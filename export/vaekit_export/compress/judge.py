"""How far a compressed model lies from its bundle, on the sessions that the edge opens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from vaekit.errors import CheckError, ExportError
from vaekit.maths import noise
from vaekit.maths.elbo import kl_standard_normal, log_likelihood
from vaekit.maths.psnr import psnr
from vaekit.ort.session import open_on_cpu
from vaekit.ort.trial import Trial
from vaekit.types import Array, GraphName
from vaekit.vae import VAE

PRIOR_SAMPLES = 256

_FEWEST_PAIRS, _MOST_PAIRS = 4, 64
_BATCH = 64
_IMAGE_BYTES, _FEWEST_IMAGES = 1 << 28, 8  # of images held at a time, and of the parent's decoded ones


@dataclass(frozen=True)
class Graphs:
    """An encoder and a decoder, and which of the parent's latent dimensions they have."""

    encoder: bytes
    decoder: bytes
    kept: tuple[int, ...]

    def get(self, name: GraphName) -> bytes:
        """Return the graph of that name."""
        return self.encoder if name == "encoder" else self.decoder

    def replace(self, name: GraphName, data: bytes) -> Graphs:
        """Return both with another graph in the place of the one of that name."""
        return Graphs(data, self.decoder, self.kept) if name == "encoder" else Graphs(self.encoder, data, self.kept)


@dataclass(frozen=True)
class Limits:
    """What a compressed model may lose."""

    psnr: float
    """dB that decoded prior samples must reach against the parent's; −infinity where that is not asked."""
    delta_elbo: float
    """Nats by which the mean ELBO may lie under the parent's."""


@dataclass(frozen=True)
class Delta:
    """Change of the mean ELBO over a set of images, in nats, estimated with random noise."""

    nats: float
    standard_error: float
    """Of the noise, the images being given."""


class Judge:
    """Measures graphs against those of a bundle, on prior samples and on images (N, C, H, W) in [0, 1]."""

    def __init__(self, vae: VAE, images: Array, limits: Limits, trial: Trial | None = None) -> None:
        self.limits = limits
        self._trial = trial or Trial()
        self.z = vae.sample_latents(rows_in_memory(vae.image_shape, PRIOR_SAMPLES))
        self._vae, self._images = vae, images
        self._decoded = vae.decode(self.z)
        self._has_elbo = vae.manifest.why_no_elbo is None and len(vae.latent_shape) == 1
        files, graphs = vae.bundle.files, vae.manifest.graphs
        encoder, decoder = (files[graphs[name].file] for name in ("encoder", "decoder"))
        self.parent = Graphs(encoder, decoder, tuple(range(vae.latent_shape[0])))
        self._parent_elbos: list[float] = []
        self._further_parent_elbos = self._elbos(self.parent)

    def psnr(self, graphs: Graphs) -> float:
        """dB of decoded prior samples against the parent's; infinite where they are equal."""
        return array_psnr(run(graphs.decoder, self.z[:, graphs.kept])[0], self._decoded, 1.0)

    def delta_elbo(self, graphs: Graphs, limit: float, *, exactly: bool = False) -> Delta | None:
        """Mean ELBO less the parent's at the same noise, with a sign; None where the model has no ELBO.

        Noise is drawn until the change lies two standard errors to one side of −``limit``, or ``exactly`` until the
        standard error is a tenth of that, but not without end.
        """
        if not self._has_elbo:
            return None
        differences: list[float] = []
        delta = Delta(math.nan, math.inf)
        for elbo in self._elbos(graphs):
            differences.append(elbo - self._parent_elbo(len(differences)))
            if len(differences) < _FEWEST_PAIRS:
                continue
            error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
            delta = Delta(float(np.mean(differences)), error)
            enough = error <= limit / 10 if exactly else abs(delta.nats + limit) > 2 * error
            if enough or not math.isfinite(delta.nats):
                break
        return delta

    def headroom(self, name: GraphName, graphs: Graphs) -> float:
        """Measure what a changed graph of that name leaves to the limits, in dB; under zero where one is passed.

        Raises ExportError for a graph that ONNX Runtime does not run here, or that would end this process.
        """
        rows = self._images if name == "encoder" else np.ascontiguousarray(self.z[:, graphs.kept])
        if failure := self._trial.failure(graphs.get(name), rows):
            raise ExportError(failure)
        return self._encoder_headroom(graphs) if name == "encoder" else self._decoder_headroom(graphs)

    def check(self, graphs: Graphs) -> tuple[float, Delta | None]:
        """PSNR and change of the ELBO. Raises CheckError where a limit is passed."""
        psnr, delta = self.psnr(graphs), self.delta_elbo(graphs, self.limits.delta_elbo, exactly=True)
        if not psnr >= self.limits.psnr:
            raise CheckError(
                f"prior samples reach {psnr:.1f} dB where {self.limits.psnr:g} are asked for, nothing was published; "
                "--min-psnr asks for less"
            )
        if delta is not None and not delta.nats >= -self.limits.delta_elbo:
            raise CheckError(
                f"the ELBO changes by {delta.nats:+.3g} nats where it may fall by {self.limits.delta_elbo:g}, nothing "
                "was published; --max-delta-elbo allows more"
            )
        return psnr, delta

    def _decoder_headroom(self, graphs: Graphs) -> float:
        """dB left to the limits, half of the nats being for each graph; under zero where one is passed."""
        return min(self.psnr(graphs) - self.limits.psnr, self._nats_left(graphs))

    def _encoder_headroom(self, graphs: Graphs) -> float:
        """The same for the encoder. Without an ELBO its mu must reach the PSNR, the peak being the range of mu."""
        if self._has_elbo:
            return self._nats_left(graphs)
        expected = run(self.parent.encoder, self._images)[0]
        mu = run(graphs.encoder, self._images)[0]
        return array_psnr(mu, expected[:, graphs.kept], float(np.ptp(expected)) or 1.0) - self.limits.psnr

    def _nats_left(self, graphs: Graphs) -> float:
        """In dB, as the ELBO changes with the mean squared error."""
        half = self.limits.delta_elbo / 2
        delta = self.delta_elbo(graphs, half)
        if delta is None or delta.nats >= 0:
            return math.inf
        if not math.isfinite(delta.nats):
            return -math.inf
        return 10 * math.log10(max(half, 1e-12) / -delta.nats)

    def _parent_elbo(self, pair: int) -> float:
        while len(self._parent_elbos) <= pair:
            self._parent_elbos.append(next(self._further_parent_elbos))
        return self._parent_elbos[pair]

    def _elbos(self, graphs: Graphs) -> Iterator[float]:
        """The mean ELBO of the images in nats, for one noise and its negative after the other.

        Each image has noise of its own, as one noise for all would not average out over them; with its negative, what
        is linear in it, most of the variance, does (antithetic variates, Hammersley and Morton 1956). Dimensions that
        are gone are put back as the prior: of no KL, and with noise that the decoder does not see. Every model is so
        measured with the same noise.
        """
        count, dimensions = len(self._images), len(self.parent.kept)
        mu, logvar = np.zeros((2, count, dimensions), np.float32)
        mu[:, graphs.kept], logvar[:, graphs.kept] = run(graphs.encoder, self._images)
        kl = float(kl_standard_normal(mu, logvar).sum(axis=1).mean())
        sigma = np.exp(0.5 * logvar.astype(np.float64))
        likelihood, decode = self._vae.manifest.likelihood, runner(graphs.decoder)
        for pair in range(_MOST_PAIRS):
            shift = sigma * noise.standard_normal(0, pair * count, count, dimensions)
            decoded = (decode((mu + s).astype(np.float32)[:, graphs.kept])[0] for s in (shift, -shift))
            yield float(np.mean([log_likelihood(self._images, means, likelihood).mean() for means in decoded])) - kl


def rows_in_memory(image_shape: tuple[int, int, int], most: int) -> int:
    """Return how many images of a shape to hold as float32: ``most``, or what _IMAGE_BYTES take of large ones."""
    return min(most, max(_FEWEST_IMAGES, _IMAGE_BYTES // (4 * math.prod(image_shape))))


def runner(data: bytes) -> Callable[[Array], list[Array]]:
    """Open a graph of one input as a function of rows, run a batch at a time."""
    session = open_on_cpu("graph", data).session
    name = session.get_inputs()[0].name

    def call(rows: Array) -> list[Array]:
        parts = [session.run(None, {name: rows[first : first + _BATCH]}) for first in range(0, len(rows), _BATCH)]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    return call


def run(data: bytes, rows: Array) -> list[Array]:
    """Run a graph of one input on rows."""
    return runner(data)(np.ascontiguousarray(rows))


def array_psnr(actual: Array, expected: Array, peak: float) -> float:
    """Compute the PSNR of an array in dB; infinite for equal arrays, −infinity where ``actual`` is not finite."""
    return psnr(float(((actual.astype(np.float64) - expected) ** 2).mean()), peak)
