"""A manifest's statistics (latents, scores, tolerances), and the golden vectors."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaekit.bundle.manifest import LatentSpec, ScoreStatistics, Tolerance
from vaekit.bundle.manifest import Tolerances as VerifyTolerances
from vaekit.maths.anomaly import scores_of_maps
from vaekit.maths.elbo import Likelihood, Terms, elbo_terms, kl_standard_normal, posterior_sample
from vaekit.maths.surprise import default_kind, measure, surprise
from vaekit.types import GRAPHS, Array, GraphName, ProviderClass
from vaekit_export.model import Model, rows_of_images
from vaekit_export.onnx_export import ExportedGraph
from vaekit_export.parity import Outputs, Runner, Tolerances, in_batches, onnx_runner

Distance = Callable[[Array], NDArray[np.float64]]
"""mu (N, …) → its Mahalanobis distance from the mean of held-out images, (N,)."""
Pair = tuple[Array, Array]
"""Images and their reconstructions, each (N, C, H, W)."""

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


def terms_of_both(
    modules: Mapping[GraphName, Runner],
    encoder: ExportedGraph,
    decoder: ExportedGraph,
    images: Array,
    likelihood: Likelihood,
    batch: int,
) -> tuple[Terms, Terms]:
    """Compute the terms of the ELBO of images (N, C, H, W) by PyTorch and by ONNX Runtime.

    ``batch`` images are computed at a time. ``modules`` run PyTorch's encoder and decoder.
    """
    # One graph after the other, so that only one session takes memory at a time.
    codes = [in_batches(encode, images, batch) for encode in (modules["encoder"], onnx_runner(encoder))]
    decoders = zip((modules["decoder"], onnx_runner(decoder)), codes, strict=True)
    by_torch, by_onnx = (_terms(decode, images, mu, logvar, likelihood, batch) for decode, (mu, logvar) in decoders)
    return by_torch, by_onnx


def _terms(decode: Runner, images: Array, mu: Array, logvar: Array, likelihood: Likelihood, batch: int) -> Terms:
    (decoded,) = in_batches(decode, posterior_sample(mu, logvar, seed=_SCORE_SEED), batch)
    return elbo_terms(images, mu, logvar, decoded, likelihood)


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


def golden_vectors(
    model: Model,
    modules: Mapping[GraphName, Runner],
    *,
    rows: int,
    batch: int,
    of_samples: bool,
    more: Mapping[str, Array],
) -> bytes:
    """Return golden.npz: ``rows`` images and as many latents with PyTorch's results.

    It has ``image`` with its mu and logvar, and ``z`` with its ``decoded`` images. The images are held-out ones, or
    with ``of_samples`` the model's own samples. ``more`` are further arrays.
    """
    draw = model.draw_latents(2 * rows, model.mixture)
    z, others = draw[:rows], draw[rows:]
    encode, decode = (partial(in_batches, modules[name], size=batch) for name in GRAPHS)
    images = decode(others)[0] if of_samples else model.images[:rows]
    codes = dict(zip(model.encoder_outputs, encode(images), strict=True))
    arrays: dict[str, Any] = {"image": images, **codes, "z": z, "decoded": decode(z)[0], **more}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@dataclass(frozen=True)
class Residuals:
    """What is usual in held-out images: residuals.npz, and percentiles of the scores of maps, by name."""

    file: bytes
    scores: dict[str, ScoreStatistics]
    scores_at_own_size: dict[str, ScoreStatistics]
    """Those of whole pictures, if images are crops."""


def residuals_of(
    model: Model, modules: Mapping[GraphName, Runner], mu: Array, smooth: float, batch: int, distance: Distance
) -> Residuals:
    """Measure the held-out images' residuals at z = ``mu`` (N, …), and those of whole pictures if images are crops.

    Of large images, as many are used as fit the memory of one comparison. Scores come from the statistics of the other
    half of the images, as those of new images do. ``distance`` computes the score ``mahalanobis`` of mu.
    """
    count = rows_of_images(model.image_shape, len(model.images))
    (decoded,) = in_batches(modules["decoder"], mu[:count], batch)
    images = model.images[:count]
    # At other sizes, borders lie elsewhere than in images of the usual size: only whole pictures tell about them.
    pairs, codes = _whole_pairs(model, modules)
    wholes = None if model.multiple_of is None else pairs
    statistics = measure(images, decoded, smooth, wholes)
    by = default_kind(statistics, fixed=model.multiple_of is None)
    found: dict[str, list[NDArray[np.float64]]] = {}
    for own, other in _halves(count):
        usual = measure(images[other], decoded[other], smooth, wholes)
        for name, scores in scores_of_maps(surprise(images[own], decoded[own], usual, by)).items():
            found.setdefault(name, []).append(scores)
    at_own_size: dict[str, list[NDArray[np.float64]]] = {}
    for own, other in _halves(len(pairs)) if pairs else ():
        usual = measure(images, decoded, smooth, pairs[other])
        for (whole, rebuilt), code in zip(pairs[own], codes[own], strict=True):
            of_map = scores_of_maps(surprise(whole, rebuilt, usual, by))
            for name, scores in {**of_map, "mahalanobis": distance(code)}.items():
                at_own_size.setdefault(name, []).append(scores)
    buffer = io.BytesIO()
    arrays = {name: part for name, part in dataclasses.asdict(statistics).items() if part is not None}
    np.savez_compressed(buffer, **arrays)
    return Residuals(buffer.getvalue(), *map(_summaries, (found, at_own_size)))


def _halves(count: int) -> tuple[tuple[slice, slice], ...]:
    """Return each half of some rows and the other half; both are the one row if there is no other."""
    even, odd = (slice(0, None, 2), slice(1, None, 2)) if count > 1 else (slice(None), slice(None))
    return (even, odd), (odd, even)


def _summaries(found: Mapping[str, list[NDArray[np.float64]]]) -> dict[str, ScoreStatistics]:
    return {name: score_statistics(np.concatenate(parts)) for name, parts in found.items()}


def _whole_pairs(model: Model, modules: Mapping[GraphName, Runner]) -> tuple[list[Pair], list[Array]]:
    """Return the model's whole pictures with their reconstructions, each (1, C, h, w), and their mu.

    Pictures are padded as the edge pads them. There are none if the model takes images of one size only.
    """
    pairs, codes = list[Pair](), list[Array]()
    if model.multiple_of is None:
        return pairs, codes
    for picture in model.wholes or ():
        image = picture[None].astype(np.float32) / np.float32(255)
        height, width = picture.shape[1:]
        below, beside = dataclasses.replace(model.image_spec, height=height, width=width).padding
        mu = modules["encoder"](np.pad(image, ((0, 0), (0, 0), (0, below), (0, beside)), "reflect"))[0]
        decoded = modules["decoder"](mu)[0][:, :, :height, :width]
        pairs.append((image, decoded))
        codes.append(mu)
    return pairs, codes


def _numbers(array: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(map(float, array))
