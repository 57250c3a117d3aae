"""A model becomes a bundle: export, prove, describe, and only then publish."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
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
from torch import Tensor, nn

import vaekit
from vaekit.bundle.manifest import (
    DECODER,
    ENCODER,
    GOLDEN,
    IMAGE_AXES,
    LATENT_AXES,
    MANIFEST,
    FileSpec,
    GraphSpec,
    ImageSpec,
    LatentSpec,
    Manifest,
    Scaling,
    ScoreStatistics,
    Tolerance,
    dump_json,
)
from vaekit.bundle.onnx_file import read_onnx
from vaekit.bundle.reading import is_bundle, read_bundle
from vaekit.errors import BundleError, ExportError, ParityError, UsageError, VaekitError
from vaekit.images.picture import preprocessing_rule
from vaekit.maths.elbo import Likelihood, elbo_terms, kl_standard_normal, posterior_sample
from vaekit.maths.prior import Mixture, draw_mixture, draw_normal
from vaekit.system.files import check_writable, replacing_folder
from vaekit.training.run import Run, load_holdout, load_run
from vaekit.types import LIKELIHOODS, POSTERIORS, Array, PosteriorName, ProviderClass, one_of
from vaekit_export.explain import Explanation, explain, write_report
from vaekit_export.onnx_export import BATCH_AXIS, Axes, check_opset, export_onnx, minimum_onnxruntime
from vaekit_export.parity import (
    BATCH_SIZES,
    Graph,
    Outputs,
    Result,
    Runner,
    Tolerances,
    check_parity,
    in_batches,
    onnx_runner,
    torch_runner,
)
from vaekit_export.passes.metadata import describe, with_metadata

_LATENTS = 256  # of each kind that the decoder is checked on, where images are small
_PIXELS = 1 << 22  # numbers in all the images that are compared at a time
_FAR = 6.0  # each coordinate of a far latent lies in [-6, 6]
_GOLDEN_ROWS = 8
_BATCH = 64
_SCORE_SEED = 0  # the seed that `vaekit score` takes by default

Say = Callable[[str], None]


@dataclass(frozen=True)
class Model:
    """What becomes a bundle, wherever it was trained."""

    encoder: nn.Module
    """image (B, C, H, W) in [0, 1] → mu and logvar, or mu alone where the posterior is ``deterministic``."""
    decoder: nn.Module
    """z → image (B, C, H, W) in [0, 1]."""
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, ...]
    """(d,) or (c, h, w)."""
    multiple_of: int | None
    """Where height and width are free: what they are multiples of."""
    posterior: PosteriorName
    likelihood: Likelihood
    scaling: Scaling | None
    mixture: Mixture | None
    images: Array
    """Held-out images (N, C, H, W) in [0, 1]: for parity, statistics, scores and golden vectors."""
    provenance: dict[str, Any]
    """Where it comes from, without the versions of the tools."""


@dataclass(frozen=True)
class Export:
    """A published bundle and what was proved of it."""

    path: Path
    manifest: Manifest
    results: list[Result]
    delta_elbo: float | None
    """ONNX Runtime's mean ELBO less PyTorch's on the held-out images, nats per image; None where there is no ELBO."""
    files: dict[str, int]
    """Bytes of each file."""
    nodes: dict[str, int]
    """How many nodes each graph has."""
    report: Path | None
    """The folder of the report that was asked for."""
    explanations: list[Explanation]


def export_run(
    run_path: str | Path,
    bundle_path: str | Path,
    *,
    opset: int = 17,
    tolerances: Tolerances | None = None,
    golden: str = "images",
    explained: bool = False,
    say: Say = lambda message: None,
) -> Export:
    """Export a run's encoder and decoder, check them against PyTorch, and publish the bundle whole or not at all.

    ``golden`` is ``images`` (golden vectors from held-out images) or ``samples`` (from the model's own samples, for
    data that must not travel). Where parity fails, or ``explained`` asks for it, a report that compares layer by layer
    is written to ``BUNDLE.parity/`` (see ``vaekit_export.explain``).

    Raises UsageError for an opset or tolerances out of range, RunError for a run that cannot be read, ExportError for
    graphs that are not what was asked for, ParityError where results differ.
    """
    target = Path(bundle_path)
    check_request(target, opset, golden)
    model = _model_of(load_run(Path(run_path)))
    return publish(model, target, opset, tolerances or Tolerances(), golden, explained, say)


def check_request(target: Path, opset: int, golden: str) -> None:
    """Refuse, before any work, what cannot be exported or written. Raises UsageError or BundleError."""
    if golden not in ("images", "samples"):
        raise UsageError(f"golden vectors are of images or of samples, not of {golden!r}")
    check_opset(opset)
    check_target(target)


def publish(
    model: Model, target: Path, opset: int, tolerances: Tolerances, golden: str, explained: bool, say: Say
) -> Export:
    """Export a model, check it against PyTorch, and publish the bundle whole or not at all.

    Raises ExportError and ParityError as ``export_run`` does.
    """
    say(f"exporting encoder and decoder at opset {opset}")
    encoder, decoder = (_described(graph, model) for graph in _graphs(model, opset))
    say(f"checking parity on {len(model.images)} held-out images, prior samples and far latents")
    codes = in_batches(torch_runner(encoder.module), model.images, _BATCH)
    checked = ((encoder, {"held-out images": model.images}), (decoder, _latents(model, codes[0])))
    at_other_size = () if model.multiple_of is None else _at_other_size(model, encoder, decoder)
    report = Path(f"{os.path.abspath(target)}.parity")
    results = [r for graph, rows in (*checked, *at_other_size) for r in _prove(graph, rows, tolerances, opset, report)]
    explanations = []
    if explained:
        say("comparing layer by layer")
        explanations = [explain(graph, _together(rows), tolerances, opset=opset) for graph, rows in checked]
        write_report(report, explanations, tolerances)
    contents = {
        ENCODER: encoder.onnx,
        DECODER: decoder.onnx,
        GOLDEN: _golden(model, encoder, decoder, model.images if golden == "images" else None),
    }
    manifest = Manifest(
        image=_image_spec(model),
        latent=_latent_spec(model, codes),
        posterior=model.posterior,
        likelihood=model.likelihood,
        mixture=model.mixture,
        graphs={"encoder": _graph_spec(ENCODER, encoder), "decoder": _graph_spec(DECODER, decoder)},
        golden=FileSpec(GOLDEN, hashlib.sha256(contents[GOLDEN]).hexdigest()),
        parity=_parity_record(tolerances, results),
        tolerances={"fp32": _verify_tolerances(tolerances)},
        scores=None,
        minimum_onnxruntime=minimum_onnxruntime(opset),
        provenance={"tools": _tools(), **model.provenance},
    )
    delta_elbo = None
    if manifest.why_no_elbo is None:
        by_torch, by_onnx = _scores(encoder, decoder, model.images, model.likelihood)
        delta_elbo = float((by_torch - by_onnx).mean())
        manifest.parity.update(elbo=-float(by_torch.mean()), delta_elbo=delta_elbo)
        manifest = dataclasses.replace(manifest, scores=_score_statistics(by_onnx))
    try:
        contents[MANIFEST] = dump_json(manifest.to_json()).encode()
    except ValueError as error:  # JSON has neither NaN nor infinity
        raise ExportError(
            "the model's statistics on the images (mu, KL or ELBO) overflow, nothing was published: is logvar the "
            "natural log of the variance?"
        ) from error
    _publish(target, contents)
    sizes = {name: len(data) for name, data in contents.items()}
    nodes = {graph.name: read_onnx(graph.onnx).operators.total() for graph, _ in checked}
    return Export(target, manifest, results, delta_elbo, sizes, nodes, report if explained else None, explanations)


def check_target(target: Path) -> None:
    """Refuse, before any work, to replace what is no bundle."""
    empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not empty and not is_bundle(target):
        raise BundleError(f"{target} exists and is not a bundle: choose another place with -o")
    check_writable(target)


def _model_of(run: Run) -> Model:
    settings = dataclasses.asdict(run.config)
    settings["source"] = Path(run.config.source).resolve().name  # a data set on disk is named by its last part only
    settings["val"] = run.config.val and Path(run.config.val).resolve().name
    return Model(
        encoder=run.network.encoder,
        decoder=run.network.decoder,
        image_shape=run.config.image_shape,
        latent_shape=(run.config.latent,),
        multiple_of=None,
        posterior=one_of(POSTERIORS, run.config.posterior, "posterior"),
        likelihood=Likelihood(
            one_of(LIKELIHOODS, run.config.likelihood, "likelihood"),
            None if run.variance is None else run.variance**0.5,
        ),
        scaling=None,
        mixture=run.mixture,
        images=load_holdout(run).astype(np.float32) / np.float32(255),
        provenance={"dataset": settings["source"], "settings": settings, "training": run.summary},
    )


def _graphs(model: Model, opset: int) -> tuple[Graph, Graph]:
    image = torch.rand(2, *model.image_shape)
    z = torch.randn(2, *model.latent_shape)
    codes = ("mu",) if model.posterior == "deterministic" else ("mu", "logvar")
    image_axes, latent_axes = dict(BATCH_AXIS), dict(BATCH_AXIS)
    if model.multiple_of is not None:
        image_axes.update(enumerate(IMAGE_AXES, 2))
        latent_axes.update(enumerate(LATENT_AXES, 2))

    def graph(
        name: str,
        module: nn.Module,
        example: Tensor,
        input_name: str,
        outputs: tuple[str, ...],
        of_input: Axes,
        of_outputs: Axes,
    ) -> Graph:
        data = export_onnx(
            module,
            example,
            input_name=input_name,
            output_names=outputs,
            opset=opset,
            input_axes=of_input,
            output_axes=of_outputs,
        )
        return Graph(name, module, data, input_name, outputs, of_input)

    return (
        graph("encoder", model.encoder, image, "image", codes, image_axes, latent_axes),
        graph("decoder", model.decoder, z, "z", ("image",), latent_axes, image_axes),
    )


def _image_spec(model: Model) -> ImageSpec:
    return ImageSpec(*model.image_shape, preprocessing_rule(*model.image_shape), model.multiple_of)


def _at_other_size(model: Model, encoder: Graph, decoder: Graph) -> tuple[tuple[Graph, dict[str, Array]], ...]:
    """Rows of a larger and longer size for both graphs, where sizes are free: images repeated beyond their edges."""
    assert model.multiple_of is not None
    _, height, width = model.image_shape
    more = (model.multiple_of, 2 * model.multiple_of)
    rows = rows_of_images((model.image_shape[0], height + more[0], width + more[1]), _LATENTS)
    images = np.pad(model.images[:rows], ((0, 0), (0, 0), (0, more[0]), (0, more[1])), "wrap")
    codes = in_batches(torch_runner(encoder.module), images, _BATCH)
    size = f"at {images.shape[2]}x{images.shape[3]}"
    return (encoder, {f"held-out images {size}": images}), (decoder, {f"their mu {size}": codes[0]})


def _described(graph: Graph, model: Model) -> Graph:
    """A graph that says in its own metadata what it is."""
    metadata = describe(graph.name, "fp32", _image_spec(model), model.latent_shape, model.posterior, model.likelihood)
    return dataclasses.replace(graph, onnx=with_metadata(graph.onnx, metadata))


def _prove(graph: Graph, rows: dict[str, Array], tolerances: Tolerances, opset: int, report: Path) -> list[Result]:
    """Check parity; where it fails, find out where the graph and its module part ways."""
    try:
        return check_parity(graph, rows, tolerances)
    except ParityError as error:
        try:
            explanation = explain(graph, _together(rows), tolerances, opset=opset)
            write_report(report, [explanation], tolerances)
            told = f"{explanation.headline()}; {report} tells more"
        except VaekitError as failure:  # which must not hide what did not hold
            told = f"where that begins could not be told: {failure}"
        raise ParityError(f"{error}. {told}") from error


def _together(rows: dict[str, Array]) -> Array:
    return np.concatenate(list(rows.values()))


def rows_of_images(image_shape: tuple[int, int, int], most: int) -> int:
    """How many images of that shape are enough, and few enough, to compare: ``most`` of small ones, fewer of large."""
    return min(most, max(_GOLDEN_ROWS, _PIXELS // math.prod(image_shape)))


def _latents(model: Model, mu: Array) -> dict[str, Array]:
    """The latents that the decoder is checked on, given mu of the held-out images."""
    rows = rows_of_images(model.image_shape, _LATENTS)
    far = np.random.default_rng(0).uniform(-_FAR, _FAR, (rows, *model.latent_shape)).astype(np.float32)
    latents = {"samples of N(0, I)": _draw(model, None, rows), f"far latents, up to {_FAR:g}": far}
    if model.mixture is not None:
        latents["samples of the mixture prior"] = _draw(model, model.mixture, rows)
    else:  # without which no prior says where the latents of images lie
        latents["mu of the images"] = mu[:rows]
    return latents


def _draw(model: Model, mixture: Mixture | None, count: int) -> Array:
    """Latents of the mixture, or of N(0, I)."""
    if mixture is not None:
        return draw_mixture(mixture, count)
    return draw_normal(math.prod(model.latent_shape), count).reshape(count, *model.latent_shape)


def _scores(
    encoder: Graph, decoder: Graph, images: Array, likelihood: Likelihood
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores (−ELBO in nats) of images (N, C, H, W) by PyTorch and by ONNX Runtime, float64 (N,) each."""
    by_torch = _elbo(torch_runner(encoder.module), torch_runner(decoder.module), images, likelihood)
    by_onnx = _elbo(onnx_runner(encoder), onnx_runner(decoder), images, likelihood)
    return -by_torch, -by_onnx


def _elbo(run_encoder: Runner, run_decoder: Runner, images: Array, likelihood: Likelihood) -> NDArray[np.float64]:
    mu, logvar = in_batches(run_encoder, images, _BATCH)
    (decoded,) = in_batches(run_decoder, posterior_sample(mu, logvar, seed=_SCORE_SEED), _BATCH)
    return elbo_terms(images, mu, logvar, decoded, likelihood).elbo


def _score_statistics(scores: NDArray[np.float64]) -> ScoreStatistics:
    percentiles = sorted({*range(101), 99.5, 99.9})
    values = np.percentile(scores, percentiles)
    quantiles = {f"p{percentile:g}": float(value) for percentile, value in zip(percentiles, values, strict=True)}
    return ScoreStatistics(len(scores), _SCORE_SEED, quantiles)


def _verify_tolerances(gate: Tolerances) -> dict[ProviderClass, Tolerance]:
    """What a device may differ by, from what the gate allowed here.

    Another processor sums in another order, and a GPU in yet another: rounding of the size that the gate saw, some
    times over. Neural engines keep ten or eleven bits of a number's mantissa.
    """
    times: dict[ProviderClass, int] = {"cpu": 3, "accelerator": 10, "reduced": 10}
    least = {"cpu": 0.0, "accelerator": 0.0, "reduced": 2e-2}
    return {
        kind: Tolerance(*(max(least[kind], round(factor * part, 12)) for part in (gate.atol, gate.rtol)))
        for kind, factor in times.items()
    }


def _golden(model: Model, encoder: Graph, decoder: Graph, images: Array | None) -> bytes:
    """golden.npz: a few images with the encoder's outputs in PyTorch, a few latents z with the ``decoded`` images."""
    draw = _draw(model, model.mixture, 2 * _GOLDEN_ROWS)
    z, others = draw[:_GOLDEN_ROWS], draw[_GOLDEN_ROWS:]
    decode = torch_runner(decoder.module)
    chosen = decode(others)[0] if images is None else images[:_GOLDEN_ROWS]
    codes = dict(zip(encoder.output_names, torch_runner(encoder.module)(chosen), strict=True))
    (decoded,) = decode(z)
    arrays: dict[str, Any] = {"image": chosen, **codes, "z": z, "decoded": decoded}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _latent_spec(model: Model, codes: Outputs) -> LatentSpec:
    """The latent with its statistics, given the encoder's outputs for the held-out images."""
    mu = codes[0]
    positions = tuple(range(2, mu.ndim))  # of a map; a vector has none
    over = (0, *positions)
    with np.errstate(over="ignore"):  # what overflows is refused as the manifest is written
        kl = kl_standard_normal(*codes).sum(axis=positions).mean(axis=0) if len(codes) > 1 else np.empty(0)
    mean, std = mu.mean(axis=over, dtype=np.float64), mu.std(axis=over, dtype=np.float64)
    return LatentSpec(model.latent_shape, _numbers(mean), _numbers(std), _numbers(kl), model.scaling)


def _numbers(array: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(map(float, array))


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


def _parity_record(tolerances: Tolerances, results: list[Result]) -> dict[str, Any]:
    return {
        "passed": True,
        "atol": tolerances.atol,
        "rtol": tolerances.rtol,
        "batch_sizes": list(BATCH_SIZES),
        "provider": "CPUExecutionProvider",
        "optimisation": "ORT_ENABLE_ALL",
        "elbo": None,
        "delta_elbo": None,
        "results": [dataclasses.asdict(result) for result in results],
    }


def _tools() -> dict[str, str]:
    modules = (torch, onnx, onnxscript, onnxruntime, np)
    return {
        "vaekit": vaekit.__version__,
        "python": platform.python_version(),
        **{module.__name__: str(module.__version__) for module in modules},
    }


def _publish(target: Path, contents: dict[str, bytes]) -> None:
    with replacing_folder(target) as folder:
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        try:
            read_bundle(folder)
        except BundleError as error:
            raise VaekitError(f"the bundle does not pass its own checks, nothing was published: {error}") from error
