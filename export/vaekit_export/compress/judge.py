"""Quality of a compressed model compared with its bundle, in the same sessions as on the edge."""

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
_IMAGE_BYTES, _FEWEST_IMAGES = 1 << 28, 8  # for the images in memory, and again for the parent's decoded ones


@dataclass(frozen=True)
class Graphs:
    """An encoder, a decoder, and the parent's latent dimensions that they keep."""

    encoder: bytes
    decoder: bytes
    kept: tuple[int, ...]

    def get(self, name: GraphName) -> bytes:
        """Return one of the graphs."""
        return self.encoder if name == "encoder" else self.decoder

    def replace(self, name: GraphName, data: bytes) -> Graphs:
        """Return a copy with one of the graphs replaced."""
        return Graphs(data, self.decoder, self.kept) if name == "encoder" else Graphs(self.encoder, data, self.kept)


@dataclass(frozen=True)
class Limits:
    """Limits of a compressed model's loss of quality."""

    psnr: float
    """Lowest allowed PSNR in dB between its prior samples and the parent's; −infinity for no limit."""
    delta_elbo: float
    """Largest allowed fall of the mean ELBO, in nats."""


@dataclass(frozen=True)
class Delta:
    """Change of the mean ELBO over a set of images, in nats, estimated with random noise."""

    nats: float
    standard_error: float
    """The standard error over the noise; the images are fixed."""


class Judge:
    """A comparison of graphs with those of a bundle, the parent.

    The decoders are compared on prior samples, the ELBO on images (N, C, H, W) in [0, 1].
    """

    def __init__(self, vae: VAE, images: Array, limits: Limits, trial: Trial | None = None) -> None:
        self.limits = limits
        self._trial = trial or Trial()
        self.z = vae.sample_latents(rows_in_memory(vae.image_shape, PRIOR_SAMPLES))
        self._vae, self._images = vae, images
        self._decoded = vae.decode(self.z)
        self._has_elbo = vae.manifest.why_no_elbo is None
        # The ELBO of maps is many thousands of nats, so only their pruning is held to a limit in nats.
        self._limits_elbo = self._has_elbo and (len(vae.latent_shape) == 1 or limits.psnr == -math.inf)
        files, graphs = vae.bundle.files, vae.manifest.graphs
        encoder, decoder = (files[graphs[name].file] for name in ("encoder", "decoder"))
        self.parent = Graphs(encoder, decoder, tuple(range(vae.latent_shape[0])))
        self._parent_elbos: list[float] = []
        self._further_parent_elbos = self._elbos(self.parent)

    def psnr(self, graphs: Graphs) -> float:
        """Return the PSNR of the decoded prior samples in dB.

        They are compared with the parent's. It is infinite if they are equal.
        """
        return array_psnr(run(graphs.decoder, self.z[:, graphs.kept])[0], self._decoded, 1.0)

    def delta_elbo(self, graphs: Graphs, limit: float, *, exactly: bool = False) -> Delta | None:
        """Return the mean ELBO minus the parent's, or None without an ELBO.

        Both use the same noise. Noise is drawn until the change differs from −``limit`` by more than two standard
        errors, or with ``exactly`` until the standard error is a tenth of ``limit``; at most 64 pairs are drawn.
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
        """Measure how far a changed graph stays within the limits, in dB.

        ``name`` says which of the graphs was changed. The result is negative if a limit is exceeded. Raises
        ExportError for a graph that ONNX Runtime cannot run on this machine, or that would crash this process.
        """
        rows = self._images if name == "encoder" else np.ascontiguousarray(self.z[:, graphs.kept])
        if failure := self._trial.failure(graphs.get(name), rows):
            raise ExportError(failure)
        return self._encoder_headroom(graphs) if name == "encoder" else self._decoder_headroom(graphs)

    def check(self, graphs: Graphs) -> tuple[float, Delta | None]:
        """Return the PSNR and the change of the ELBO.

        Raises CheckError if a limit is exceeded.
        """
        psnr = self.psnr(graphs)
        delta = self.delta_elbo(graphs, self.limits.delta_elbo, exactly=True) if self._limits_elbo else None
        if not psnr >= self.limits.psnr:
            raise CheckError(
                f"prior samples have a PSNR of {psnr:.1f} dB, and at least {self.limits.psnr:g} are required: nothing "
                "was published. Lower --min-psnr to allow less."
            )
        if delta is not None and not delta.nats >= -self.limits.delta_elbo:
            raise CheckError(
                f"the ELBO fell by {-delta.nats:.3g} nats, and at most {self.limits.delta_elbo:g} are allowed: nothing "
                "was published. Raise --max-delta-elbo to allow more."
            )
        return psnr, delta

    def _decoder_headroom(self, graphs: Graphs) -> float:
        """Return the decoder's distance from the limits, in dB."""
        return min(self.psnr(graphs) - self.limits.psnr, self._nats_left(graphs))

    def _encoder_headroom(self, graphs: Graphs) -> float:
        """Return the encoder's distance from the limits, in dB.

        Without an ELBO, the PSNR of mu is compared with the limit; its peak is the range of the parent's mu.
        """
        if self._limits_elbo:
            return self._nats_left(graphs)
        expected = run(self.parent.encoder, self._images)[0]
        mu = run(graphs.encoder, self._images)[0]
        return array_psnr(mu, expected[:, graphs.kept], float(np.ptp(expected)) or 1.0) - self.limits.psnr

    def _nats_left(self, graphs: Graphs) -> float:
        """Return the distance from half the limit of the ELBO, in dB.

        Each graph may use half of the limit. dB are used because the ELBO changes with the mean squared error.
        """
        half = self.limits.delta_elbo / 2
        delta = self.delta_elbo(graphs, half) if self._limits_elbo else None
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
        """Yield estimates of the images' mean ELBO in nats.

        Each estimate uses new noise and its negative (antithetic variates, Hammersley and Morton 1956). The part that
        is linear in the noise, most of the variance, cancels. Each image has its own noise, because shared noise would
        not average out over the images.

        Pruned dimensions take part as the prior: they have no KL, and the decoder does not see their noise. So all
        models are measured with the same noise.
        """
        count, shape = len(self._images), self._vae.latent_shape
        mu, logvar = np.zeros((2, count, *shape), np.float32)
        mu[:, graphs.kept], logvar[:, graphs.kept] = run(graphs.encoder, self._images)
        kl = float(kl_standard_normal(mu, logvar).reshape(count, -1).sum(axis=1).mean())
        sigma = np.exp(0.5 * logvar.astype(np.float64))
        likelihood, decode = self._vae.manifest.likelihood, runner(graphs.decoder)
        for pair in range(_MOST_PAIRS):
            shift = sigma * noise.standard_normal(0, pair * count, count, math.prod(shape)).reshape(sigma.shape)
            decoded = (decode((mu + s).astype(np.float32)[:, graphs.kept])[0] for s in (shift, -shift))
            yield float(np.mean([log_likelihood(self._images, means, likelihood).mean() for means in decoded])) - kl


def rows_in_memory(image_shape: tuple[int, int, int], most: int) -> int:
    """Return how many float32 images to hold in memory.

    This is ``most``, or fewer for large images: as many as fit in _IMAGE_BYTES, but at least 8.
    """
    return min(most, max(_FEWEST_IMAGES, _IMAGE_BYTES // (4 * math.prod(image_shape))))


def runner(data: bytes) -> Callable[[Array], list[Array]]:
    """Return a function that runs a graph with one input on rows.

    It runs a batch at a time.
    """
    session = open_on_cpu("graph", data).session
    name = session.get_inputs()[0].name

    def call(rows: Array) -> list[Array]:
        parts = [session.run(None, {name: rows[first : first + _BATCH]}) for first in range(0, len(rows), _BATCH)]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    return call


def run(data: bytes, rows: Array) -> list[Array]:
    """Run a graph with one input on rows."""
    return runner(data)(np.ascontiguousarray(rows))


def array_psnr(actual: Array, expected: Array, peak: float) -> float:
    """Compute the PSNR of an array in dB.

    It is infinite for equal arrays, and −infinity if ``actual`` is not finite.
    """
    return psnr(float(((actual.astype(np.float64) - expected) ** 2).mean()), peak)
