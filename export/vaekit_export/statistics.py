"""A manifest's statistics (latents, scores, tolerances), and the golden vectors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaekit.bundle.manifest import LatentSpec, ScoreStatistics, Tolerance
from vaekit.bundle.manifest import Tolerances as VerifyTolerances
from vaekit.maths.elbo import Likelihood, elbo_terms, kl_standard_normal, posterior_sample
from vaekit.types import Array, ProviderClass
from vaekit_export.model import Model
from vaekit_export.onnx_export import ExportedGraph
from vaekit_export.parity import Outputs, Runner, Tolerances, in_batches, onnx_runner, torch_runner

BATCH = 64
"""Number of rows in a batch of a module or graph."""

_GOLDEN_ROWS = 8
_SCORE_SEED = 0  # the default seed of `vaekit score`

_TIMES: dict[ProviderClass, int] = {"cpu": 3, "accelerator": 10, "reduced": 10}
_LEAST: dict[ProviderClass, float] = {"cpu": 0.0, "accelerator": 0.0, "reduced": 2e-2}


def latent_spec(model: Model, codes: Outputs) -> LatentSpec:
    """Describe the latent and its statistics.

    ``codes`` are the encoder's outputs for the held-out images.
    """
    mu = codes[0]
    positions = tuple(range(2, mu.ndim))  # the axes of a map's positions; empty for a vector
    over = (0, *positions)
    with np.errstate(over="ignore"):  # overflow is refused when the manifest is written
        kl = kl_standard_normal(*codes).sum(axis=positions).mean(axis=0) if len(codes) > 1 else np.empty(0)
    mean, std = mu.mean(axis=over, dtype=np.float64), mu.std(axis=over, dtype=np.float64)
    return LatentSpec(model.latent_shape, _numbers(mean), _numbers(std), _numbers(kl), model.scaling)


def scores(
    encoder: ExportedGraph, decoder: ExportedGraph, images: Array, likelihood: Likelihood
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score images (N, C, H, W) by PyTorch and by ONNX Runtime.

    Each result is −ELBO in nats, float64 (N,).
    """
    by_torch = _elbo(torch_runner(encoder.module), torch_runner(decoder.module), images, likelihood)
    by_onnx = _elbo(onnx_runner(encoder), onnx_runner(decoder), images, likelihood)
    return -by_torch, -by_onnx


def score_statistics(found: NDArray[np.float64]) -> ScoreStatistics:
    """Summarise the scores (N,) of held-out images by percentiles."""
    percentiles = sorted({*range(101), 99.5, 99.9})
    values = np.percentile(found, percentiles)
    quantiles = {f"p{percentile:g}": float(value) for percentile, value in zip(percentiles, values, strict=True)}
    return ScoreStatistics(len(found), _SCORE_SEED, quantiles)


def verify_tolerances(gate: Tolerances) -> VerifyTolerances:
    """Derive the tolerances of other devices from the parity gate's.

    Other processors and GPUs sum in another order, so they may differ by a few times the gate's tolerances. Neural
    engines keep only ten or eleven bits of the mantissa.
    """
    return {
        "fp32": {
            kind: Tolerance(*(max(_LEAST[kind], round(factor * part, 12)) for part in (gate.atol, gate.rtol)))
            for kind, factor in _TIMES.items()
        }
    }


def golden_vectors(model: Model, encoder: ExportedGraph, decoder: ExportedGraph, *, of_samples: bool) -> bytes:
    """Return golden.npz: a few images and latents with PyTorch's results.

    It has ``image`` with its mu and logvar, and ``z`` with its ``decoded`` images. The images are held-out ones, or
    with ``of_samples`` the model's own samples.
    """
    draw = model.draw_latents(2 * _GOLDEN_ROWS, model.mixture)
    z, others = draw[:_GOLDEN_ROWS], draw[_GOLDEN_ROWS:]
    encode, decode = torch_runner(encoder.module), torch_runner(decoder.module)
    images = decode(others)[0] if of_samples else model.images[:_GOLDEN_ROWS]
    codes = dict(zip(encoder.output_names, encode(images), strict=True))
    arrays: dict[str, Any] = {"image": images, **codes, "z": z, "decoded": decode(z)[0]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _elbo(run_encoder: Runner, run_decoder: Runner, images: Array, likelihood: Likelihood) -> NDArray[np.float64]:
    mu, logvar = in_batches(run_encoder, images, BATCH)
    (decoded,) = in_batches(run_decoder, posterior_sample(mu, logvar, seed=_SCORE_SEED), BATCH)
    return elbo_terms(images, mu, logvar, decoded, likelihood).elbo


def _numbers(array: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(map(float, array))
