"""A run becomes a bundle: export, prove, describe, and only then publish."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch
from numpy.typing import NDArray

import vaekit
from vaekit.bundle import (
    DECODER,
    ENCODER,
    GOLDEN,
    MANIFEST,
    FileSpec,
    GraphSpec,
    ImageSpec,
    LatentSpec,
    Likelihood,
    Manifest,
    ScoreStatistics,
    Tolerance,
    dump_json,
    is_bundle,
    read_bundle,
)
from vaekit.errors import BundleError, UsageError, VaekitError
from vaekit.files import check_writable, replacing_folder
from vaekit.images import preprocessing_rule
from vaekit.onnx_file import read_onnx
from vaekit.prior import draw_mixture, draw_normal
from vaekit.scoring import Decode, Encode, elbo_terms, kl_standard_normal
from vaekit.training.run import Run, load_holdout, load_run
from vaekit_export.onnx_export import check_opset, export_onnx, minimum_onnxruntime
from vaekit_export.parity import (
    BATCH_SIZES,
    Graph,
    Result,
    Runner,
    Tolerances,
    check_parity,
    in_batches,
    onnx_runner,
    torch_runner,
)

_PRIOR_SAMPLES = 256
_FAR_LATENTS = 256
_FAR = 6.0  # each coordinate of a far latent lies in [-6, 6]
_GOLDEN_ROWS = 8
_BATCH = 64
_SCORE_SEED = 0  # the seed that `vaekit score` takes by default

Array = NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Export:
    """A published bundle and what was proved of it."""

    path: Path
    manifest: Manifest
    results: list[Result]
    delta_elbo: float
    """ONNX Runtime's mean ELBO less PyTorch's on the held-out images, nats per image."""
    files: dict[str, int]
    """Bytes of each file."""


def export_run(
    run_path: str | Path,
    bundle_path: str | Path,
    *,
    opset: int = 17,
    tolerances: Tolerances | None = None,
    golden: str = "images",
    say: Say = lambda message: None,
) -> Export:
    """Export a run's encoder and decoder, check them against PyTorch, and publish the bundle whole or not at all.

    ``golden`` is ``images`` (golden vectors from held-out images) or ``samples`` (from the model's own samples, for
    data that must not travel). Raises UsageError for an opset or tolerances out of range, RunError for a run that
    cannot be read, ExportError for graphs that are not what was asked for, ParityError where results differ.
    """
    tolerances = tolerances or Tolerances()
    if golden not in ("images", "samples"):
        raise UsageError(f"golden vectors are of images or of samples, not of {golden!r}")
    check_opset(opset)
    target = Path(bundle_path)
    _check_target(target)
    run = load_run(Path(run_path))
    images = load_holdout(run).astype(np.float32) / np.float32(255)

    say(f"exporting encoder and decoder at opset {opset}")
    encoder, decoder = _graphs(run, opset)
    say(f"checking parity on {len(images)} held-out images, prior samples and far latents")
    results = [
        *check_parity(encoder, {"held-out images": images}, tolerances),
        *check_parity(decoder, _latents(run), tolerances),
    ]
    likelihood = Likelihood(run.config.likelihood, None if run.variance is None else run.variance**0.5)
    by_torch, by_onnx = _scores(encoder, decoder, images, likelihood)
    elbo, delta_elbo = -float(by_torch.mean()), float((by_torch - by_onnx).mean())
    contents = {
        ENCODER: encoder.onnx,
        DECODER: decoder.onnx,
        GOLDEN: _golden(run, encoder, decoder, images if golden == "images" else None),
    }
    manifest = Manifest(
        image=_image_spec(run),
        latent=_latent_spec(run, encoder, images),
        posterior=run.config.posterior,
        likelihood=likelihood,
        mixture=run.mixture,
        graphs={"encoder": _graph_spec(ENCODER, encoder), "decoder": _graph_spec(DECODER, decoder)},
        golden=FileSpec(GOLDEN, hashlib.sha256(contents[GOLDEN]).hexdigest()),
        parity=_parity_record(tolerances, results, elbo, delta_elbo),
        tolerances={"fp32": _verify_tolerances(tolerances)},
        scores=_score_statistics(by_onnx),
        minimum_onnxruntime=minimum_onnxruntime(opset),
        provenance=_provenance(run),
    )
    contents[MANIFEST] = dump_json(manifest.to_json()).encode()
    _publish(target, contents)
    return Export(target, manifest, results, delta_elbo, {name: len(data) for name, data in contents.items()})


def _check_target(target: Path) -> None:
    """Refuse, before any work, to replace what is no bundle."""
    empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not empty and not is_bundle(target):
        raise BundleError(f"{target} exists and is not a bundle: choose another place with -o")
    check_writable(target)


def _graphs(run: Run, opset: int) -> tuple[Graph, Graph]:
    image = torch.rand(2, *run.config.image_shape)
    z = torch.randn(2, run.config.latent)
    encoder_outputs, decoder_outputs = ("mu", "logvar"), ("image",)
    encoder, decoder = run.network.encoder, run.network.decoder
    return (
        Graph(
            "encoder",
            encoder,
            export_onnx(encoder, image, input_name="image", output_names=encoder_outputs, opset=opset),
            "image",
            encoder_outputs,
        ),
        Graph(
            "decoder",
            decoder,
            export_onnx(decoder, z, input_name="z", output_names=decoder_outputs, opset=opset),
            "z",
            decoder_outputs,
        ),
    )


def _latents(run: Run) -> dict[str, Array]:
    """The latents that the decoder is checked on."""
    d = run.config.latent
    far = np.random.default_rng(0).uniform(-_FAR, _FAR, (_FAR_LATENTS, d)).astype(np.float32)
    latents = {"samples of N(0, I)": draw_normal(d, _PRIOR_SAMPLES), f"far latents, up to {_FAR:g}": far}
    if run.mixture is not None:
        latents["samples of the mixture prior"] = draw_mixture(run.mixture, _PRIOR_SAMPLES)
    return latents


def _scores(
    encoder: Graph, decoder: Graph, images: Array, likelihood: Likelihood
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores (−ELBO in nats) of images (N, C, H, W) by PyTorch and by ONNX Runtime, float64 (N,) each."""
    by_torch = elbo_terms(
        images, *_halves(torch_runner(encoder.module), torch_runner(decoder.module)), likelihood, seed=_SCORE_SEED
    )
    by_onnx = elbo_terms(images, *_halves(onnx_runner(encoder), onnx_runner(decoder)), likelihood, seed=_SCORE_SEED)
    return -by_torch.elbo, -by_onnx.elbo


def _halves(run_encoder: Runner, run_decoder: Runner) -> tuple[Encode, Decode]:
    def encode(rows: Array) -> tuple[Array, Array]:
        mu, logvar = in_batches(run_encoder, rows, _BATCH)
        return mu, logvar

    def decode(z: Array) -> Array:
        return in_batches(run_decoder, z, _BATCH)[0]

    return encode, decode


def _score_statistics(scores: NDArray[np.float64]) -> ScoreStatistics:
    percentiles = sorted({*range(101), 99.5, 99.9})
    values = np.percentile(scores, percentiles)
    quantiles = {f"p{percentile:g}": float(value) for percentile, value in zip(percentiles, values, strict=True)}
    return ScoreStatistics(len(scores), _SCORE_SEED, quantiles)


def _verify_tolerances(gate: Tolerances) -> dict[str, Tolerance]:
    """What a device may differ by, from what the gate allowed here.

    Another processor sums in another order, and a GPU in yet another: rounding of the size that the gate saw, some
    times over. Neural engines keep ten or eleven bits of a number's mantissa.
    """
    times = {"cpu": 3, "accelerator": 10, "reduced": 10}
    least = {"cpu": 0.0, "accelerator": 0.0, "reduced": 2e-2}
    return {
        kind: Tolerance(*(max(least[kind], round(factor * part, 12)) for part in (gate.atol, gate.rtol)))
        for kind, factor in times.items()
    }


def _golden(run: Run, encoder: Graph, decoder: Graph, images: Array | None) -> bytes:
    """golden.npz: a few images with PyTorch's mu and logvar, a few latents z with PyTorch's ``decoded`` images."""
    draw = draw_normal(run.config.latent, 2 * _GOLDEN_ROWS)
    if run.mixture is not None:
        draw = draw_mixture(run.mixture, 2 * _GOLDEN_ROWS)
    z, others = draw[:_GOLDEN_ROWS], draw[_GOLDEN_ROWS:]
    decode = torch_runner(decoder.module)
    chosen = decode(others)[0] if images is None else images[:_GOLDEN_ROWS]
    mu, logvar = torch_runner(encoder.module)(chosen)
    (decoded,) = decode(z)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, image=chosen, mu=mu, logvar=logvar, z=z, decoded=decoded)
    return buffer.getvalue()


def _image_spec(run: Run) -> ImageSpec:
    shape = run.config.image_shape
    return ImageSpec(*shape, preprocessing=preprocessing_rule(*shape))


def _latent_spec(run: Run, encoder: Graph, images: Array) -> LatentSpec:
    mu, logvar = in_batches(torch_runner(encoder.module), images, _BATCH)
    kl = kl_standard_normal(mu, logvar).mean(axis=0)
    mean, std = mu.mean(axis=0, dtype=np.float64), mu.std(axis=0, dtype=np.float64)
    return LatentSpec((run.config.latent,), *(tuple(map(float, numbers)) for numbers in (mean, std, kl)))


def _graph_spec(file: str, graph: Graph) -> GraphSpec:
    info = read_onnx(graph.onnx)
    return GraphSpec(
        file=file,
        sha256=hashlib.sha256(graph.onnx).hexdigest(),
        opset=info.opsets[""],
        ir_version=info.ir_version,
        precision="fp32",
        inputs=tuple(info.inputs),
        outputs=tuple(info.outputs),
    )


def _parity_record(tolerances: Tolerances, results: list[Result], elbo: float, delta_elbo: float) -> dict[str, Any]:
    return {
        "passed": True,
        "atol": tolerances.atol,
        "rtol": tolerances.rtol,
        "batch_sizes": list(BATCH_SIZES),
        "provider": "CPUExecutionProvider",
        "optimisation": "ORT_ENABLE_ALL",
        "elbo": elbo,
        "delta_elbo": delta_elbo,
        "results": [dataclasses.asdict(result) for result in results],
    }


def _provenance(run: Run) -> dict[str, Any]:
    """Where the bundle comes from; a data set on disk is named by its last part only."""
    settings = dataclasses.asdict(run.config)
    settings["source"] = Path(run.config.source).resolve().name
    settings["val"] = run.config.val and Path(run.config.val).name
    modules = (torch, onnx, onnxscript, onnxruntime, np)
    return {
        "tools": {
            "vaekit": vaekit.__version__,
            "python": platform.python_version(),
            **{module.__name__: str(module.__version__) for module in modules},
        },
        "dataset": settings["source"],
        "settings": settings,
        "training": run.summary,
    }


def _publish(target: Path, contents: dict[str, bytes]) -> None:
    with replacing_folder(target) as folder:
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        try:
            read_bundle(folder)
        except BundleError as error:
            raise VaekitError(f"the bundle does not pass its own checks, nothing was published: {error}") from error
