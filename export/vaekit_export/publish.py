"""From a model to a bundle: export, check parity, describe, and then publish."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch

import vaekit
from vaekit.bundle.manifest import (
    DECODER,
    ENCODER,
    GOLDEN,
    LAPLACE_FEATURE,
    MANIFEST,
    PRIOR,
    RESIDUALS,
    FileSpec,
    GraphSpec,
    Manifest,
    dump_json,
)
from vaekit.bundle.onnx_file import read_onnx
from vaekit.bundle.writing import check_bundle_target, write_bundle
from vaekit.defaults import OPSET, SMOOTH
from vaekit.errors import ExportError, ParityError, UsageError, VaekitError
from vaekit.maths.anomaly import mahalanobis, scores_of_terms
from vaekit.maths.attributes import Attributes
from vaekit.training.read_out import fit_attributes, fit_factors
from vaekit.training.run import load_run
from vaekit.types import GRAPHS, Array, GraphName, one_of
from vaekit_export.context import context_of
from vaekit_export.effort import Clock, Effort, measure_effort, within
from vaekit_export.explain import Explanation, explain
from vaekit_export.learned_prior import export_flow
from vaekit_export.model import Model, Progress, Say, model_of_run, no_progress, rows_of_images
from vaekit_export.onnx_export import Axes, ExportedGraph, check_fits, check_opset, export_onnx, minimum_onnxruntime
from vaekit_export.parity import (
    MismatchError,
    Outputs,
    Plan,
    Result,
    Runner,
    Tolerances,
    check_parity,
    in_batches,
    remembering,
    rows_to_run,
    told,
    torch_runner,
)
from vaekit_export.passes import apply
from vaekit_export.passes.metadata import describe, set_metadata
from vaekit_export.report import write_report
from vaekit_export.statistics import (
    golden_vectors,
    latent_spec,
    residuals_of,
    score_statistics,
    terms_of_both,
    verify_tolerances,
)
from vaekit_export.undisturbed import undisturbed

_LATENTS = 256  # latents of each kind that the decoder is checked on; fewer if images are large
_LARGE = 100 << 20  # bytes of weights, from which their memory is reported
_MOST_SMOOTH = 50.0  # pixels over which residuals are smoothed
_FAR = 6.0  # each coordinate of a far latent lies in [-6, 6]

Check = tuple[ExportedGraph, dict[str, Array], Plan]
"""A graph, the named sets of inputs, each (N, …), that parity is checked on, and the batches."""
Modules = Mapping[GraphName, Runner]
"""Functions that run PyTorch's encoder and decoder."""


class Meter:
    """Counts the rows that have run through PyTorch and ONNX Runtime."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done = progress, 0
        self._total: int | None = None

    def add(self, rows: int) -> None:
        """Report that ``rows`` more are done."""
        self._done += rows
        self._progress(self._done, self._total)

    def expect(self, rows: int) -> None:
        """Report that ``rows`` remain."""
        self._total = self._done + rows
        self._progress(self._done, self._total)


@dataclass(frozen=True)
class Export:
    """A published bundle and the results of its parity check."""

    path: Path
    manifest: Manifest
    results: list[Result]
    files: dict[str, int]
    """Size of each file in bytes."""
    nodes: dict[str, int]
    """Number of nodes of each graph."""
    report: Path | None
    """Folder of the layer-by-layer report, if it was requested."""
    explanations: list[Explanation]

    @property
    def delta_elbo(self) -> float | None:
        """Return ONNX Runtime's mean ELBO minus PyTorch's, in nats.

        Both are measured on the held-out images. It is None for a model without an ELBO.
        """
        delta: float | None = self.manifest.parity["delta_elbo"]
        return delta

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document of ``vaekit export --json``."""
        return {
            "output": str(self.path),
            "files": self.files,
            "nodes": self.nodes,
            "parity": self.manifest.parity,
            "report": None if self.report is None else str(self.report),
        }


@undisturbed()
def export_run(
    run_path: str | Path,
    bundle_path: str | Path,
    *,
    opset: int = OPSET,
    tolerances: Tolerances | None = None,
    golden: str = "images",
    smooth: float = SMOOTH,
    explained: bool = False,
    say: Say = lambda message: None,
    progress: Progress = no_progress,
) -> Export:
    """Export a run, check it against PyTorch, and write a bundle.

    ``golden`` is ``images`` or ``samples``: golden vectors come from held-out images, or from the model's own samples
    if the images must stay private. ``smooth`` is the standard deviation in pixels of the Gaussian that smooths
    residuals for ``VAE.score_map``. If parity fails, or with ``explained``, a layer-by-layer comparison is written to
    ``BUNDLE.parity/`` (see ``vaekit_export.explain``).

    Raises UsageError for an opset or tolerances out of range, RunError for a run that cannot be read, ExportError for a
    graph that is not as requested, and ParityError if results differ. Nothing is published then.
    """
    target = Path(bundle_path)
    check_request(target, opset, golden, smooth)
    model = model_of_run(load_run(Path(run_path)))
    return publish(model, target, opset, tolerances or Tolerances(), golden, smooth, explained, say, progress)


def check_request(target: Path, opset: int, golden: str, smooth: float) -> None:
    """Raise UsageError or BundleError for a request that cannot succeed.

    This is called before any work.
    """
    if golden not in ("images", "samples"):
        raise UsageError(f"golden must be images or samples, not {golden!r}")
    if not 0 <= smooth <= _MOST_SMOOTH:
        raise UsageError(f"residuals can be smoothed over 0 to {_MOST_SMOOTH:g} pixels, not {smooth:g}")
    check_opset(opset)
    check_bundle_target(target)


def publish(
    model: Model,
    target: Path,
    opset: int,
    tolerances: Tolerances,
    golden: str,
    smooth: float,
    explained: bool,
    say: Say,
    progress: Progress = no_progress,
    clock: Clock = time.perf_counter,
) -> Export:
    """Export a model, check it against PyTorch, and write a bundle.

    ``progress`` follows the parity check. Raises ExportError and ParityError as ``export_run`` does.
    """
    report = Path(f"{os.path.abspath(target)}.parity")
    for name, module, shape in (
        ("encoder", model.encoder, model.image_shape),
        ("decoder", model.decoder, model.latent_shape),
    ):
        check_fits(one_of(GRAPHS, name, "graph"), module, torch.zeros(1, *shape))
    say(f"exporting encoder and decoder at opset {opset}")
    encoder, decoder = _exported(model, opset)
    _say_memory([encoder, decoder], say)
    effort = measure_effort(model, clock)
    model = dataclasses.replace(within(model, effort), context=context_of(model, effort))
    if effort.rows is not None:
        say(
            f"an image takes {effort.seconds:.2g} s in PyTorch, so {effort.rows} images and latents of each kind are "
            "checked"
        )
    say(f"checking parity on {len(model.images)} held-out images, prior samples and far latents")
    modules = _modules(encoder, decoder, effort)
    meter = Meter(progress)
    codes = in_batches(told(modules["encoder"], meter.add), model.images, effort.batch)
    checks: list[Check] = [
        (encoder, {"held-out images": model.images}, effort.plan),
        (decoder, _latents(model, codes[0], effort), effort.plan),
    ]
    others = _at_other_size(model, modules, encoder, decoder, effort, meter)
    results = _proved([*checks, *others], modules, tolerances, opset, report, effort, say, meter)
    explanations = []
    if explained:
        say("comparing layer by layer")
        explanations = [explain(graph, _to_explain(rows, effort), tolerances, opset=opset) for graph, rows, _ in checks]
        write_report(report, explanations, tolerances)
    learned = None
    if model.flow is not None:
        learned = export_flow(model.flow, model, opset, tolerances, effort.golden_rows)
        results += learned.results
    vectors = golden_vectors(
        model,
        modules,
        rows=effort.golden_rows,
        batch=effort.golden_batch,
        of_samples=golden == "samples",
        more={} if learned is None else learned.golden,
    )
    manifest = _manifest(model, modules, encoder, decoder, codes, vectors, tolerances, results, opset, effort)
    files = {ENCODER: encoder.onnx, DECODER: decoder.onnx, GOLDEN: vectors}
    if learned is not None:
        files[PRIOR] = learned.graph.onnx
        graphs = manifest.graphs | {"prior": _graph_spec(PRIOR, learned.graph)}
        requires = (*manifest.requires, *learned.spec.features)
        manifest = dataclasses.replace(manifest, graphs=graphs, flow=learned.spec, requires=requires)
    if not effort.once:  # the few images of a costly model say little about what is usual
        distance = partial(mahalanobis, mean=np.array(manifest.latent.mean), std=np.array(manifest.latent.std))
        residuals = residuals_of(model, modules, codes[0], smooth, effort.batch, distance)
        files[RESIDUALS] = residuals.file
        manifest = dataclasses.replace(
            manifest,
            residuals=FileSpec(RESIDUALS, hashlib.sha256(files[RESIDUALS]).hexdigest()),
            scores_by=manifest.scores_by | residuals.scores,
            scores_at_own_size=residuals.scores_at_own_size,
        )
    files[MANIFEST] = _as_json(manifest)
    write_bundle(target, files)
    return Export(
        target,
        manifest,
        results,
        files={name: len(data) for name, data in files.items()},
        nodes={name: read_onnx(files[graph.file]).operators.total() for name, graph in manifest.graphs.items()},
        report=report if explained else None,
        explanations=explanations,
    )


def _exported(model: Model, opset: int) -> tuple[ExportedGraph, ExportedGraph]:
    """Export both graphs and set their metadata."""
    image, z = torch.rand(2, *model.image_shape), torch.randn(2, *model.latent_shape)

    def export(
        name: GraphName,
        example: torch.Tensor,
        input_name: str,
        output_names: tuple[str, ...],
        input_axes: Axes,
        output_axes: Axes,
    ) -> ExportedGraph:
        module = model.encoder if name == "encoder" else model.decoder
        data = export_onnx(
            module,
            example,
            input_name=input_name,
            output_names=output_names,
            opset=opset,
            input_axes=input_axes,
            output_axes=output_axes,
        )
        metadata = describe(name, "fp32", model.image_spec, model.latent_shape, model.posterior, model.likelihood)
        described = apply(data, partial(set_metadata, metadata=metadata))
        return ExportedGraph(name, module, described, input_name, output_names, input_axes)

    return (
        export("encoder", image, "image", model.encoder_outputs, model.image_axes, model.latent_axes),
        export("decoder", z, "z", ("image",), model.latent_axes, model.image_axes),
    )


def _latents(model: Model, mu: Array, effort: Effort) -> dict[str, Array]:
    """Return the latents that the decoder is checked on, by kind.

    ``mu`` are the encoder's means for the held-out images.
    """
    rows = effort.most(rows_of_images(model.image_shape, _LATENTS))
    far = np.random.default_rng(0).uniform(-_FAR, _FAR, (rows, *model.latent_shape)).astype(np.float32)
    latents = {"samples of N(0, I)": model.draw_latents(rows, None), f"far latents, up to {_FAR:g}": far}
    if model.mixture is not None:
        latents["samples of the mixture prior"] = model.draw_latents(rows, model.mixture)
    else:  # N(0, I) may lie far from the latents of images
        latents["mu of the images"] = mu[:rows]
    if not effort.once:
        return latents
    each = -(-rows // len(latents))  # for costly rows: all kinds together have about ``rows`` rows
    return {", ".join(latents): np.concatenate([kind[:each] for kind in latents.values()])}


def _say_memory(graphs: Sequence[ExportedGraph], say: Say) -> None:
    """Tell the memory that the weights of a large model take."""
    sizes = [len(graph.onnx) for graph in graphs]
    if sum(sizes) >= _LARGE:
        say(
            f"the weights take {sum(sizes) / 1e6:,.0f} MB of memory in PyTorch, as much as ONNX files, and for ONNX "
            f"Runtime, which opens one file at a time, about {2 * max(sizes) / 1e6:,.0f} MB"
        )


def _modules(encoder: ExportedGraph, decoder: ExportedGraph, effort: Effort) -> Modules:
    """Return functions that run the modules; those of costly ones compute each row only once."""
    runners = {graph.name: torch_runner(graph.module, graph.name) for graph in (encoder, decoder)}
    return {name: remembering(run) for name, run in runners.items()} if effort.once else runners


def _at_other_size(
    model: Model, modules: Modules, encoder: ExportedGraph, decoder: ExportedGraph, effort: Effort, meter: Meter
) -> list[Check]:
    """Return inputs of a larger size for both graphs, if sizes are free.

    The images are repeated beyond their edges, further in width than in height.
    """
    if model.multiple_of is None:
        return []
    channels, height, width = model.image_shape
    more = (model.multiple_of, 2 * model.multiple_of)
    rows = effort.most(rows_of_images((channels, height + more[0], width + more[1]), _LATENTS))
    rows = 2 if effort.once else rows
    images = np.pad(model.images[:rows], ((0, 0), (0, 0), (0, more[0]), (0, more[1])), "wrap")
    codes = in_batches(told(modules["encoder"], meter.add), images, effort.batch)
    plan = dataclasses.replace(effort.plan, companions=0) if effort.once else effort.plan
    size = f"at {images.shape[2]}x{images.shape[3]}"
    return [(encoder, {f"held-out images {size}": images}, plan), (decoder, {f"their mu {size}": codes[0]}, plan)]


def _proved(
    checks: Sequence[Check],
    modules: Modules,
    tolerances: Tolerances,
    opset: int,
    report: Path,
    effort: Effort,
    say: Say,
    meter: Meter,
) -> list[Result]:
    """Check parity; if it fails, add the first layer that differs.

    Raises ParityError.
    """
    results: list[Result] = []
    meter.expect(sum(rows_to_run(rows, plan) for _, rows, plan in checks))
    for number, (graph, rows, plan) in enumerate(checks, start=1):
        if effort.rows is not None:
            say(f"parity, {number} of {len(checks)}: the {graph.name} on {', '.join(rows)}")
        try:
            results += check_parity(graph, rows, tolerances, plan, run_module=modules[graph.name], ran=meter.add)
        except MismatchError as error:
            try:
                explanation = explain(graph, _to_explain(rows, effort, error), tolerances, opset=opset)
                write_report(report, [explanation], tolerances)
                details = f"{explanation.headline()}; see {report}"
            except VaekitError as failure:  # must not hide the parity error
                details = f"the first layer that differs could not be found: {failure}"
            raise ParityError(f"{error}. {details}") from error
    return results


def _to_explain(rows: dict[str, Array], effort: Effort, mismatch: MismatchError | None = None) -> Array:
    """Return the rows to compare layer by layer: all, or of costly ones the one that differs, else one of each kind."""
    if effort.rows is None:
        return np.concatenate(list(rows.values()))
    if mismatch is not None and mismatch.inputs in rows:
        return rows[mismatch.inputs][mismatch.row : mismatch.row + 1]
    return np.concatenate([kind[:1] for kind in rows.values()])


def _manifest(
    model: Model,
    modules: Modules,
    encoder: ExportedGraph,
    decoder: ExportedGraph,
    codes: Outputs,
    vectors: bytes,
    tolerances: Tolerances,
    results: list[Result],
    opset: int,
    effort: Effort,
) -> Manifest:
    manifest = Manifest(
        image=model.image_spec,
        latent=latent_spec(model, codes),
        posterior=model.posterior,
        likelihood=model.likelihood,
        mixture=model.mixture,
        labels=model.labels,
        graphs={"encoder": _graph_spec(ENCODER, encoder), "decoder": _graph_spec(DECODER, decoder)},
        golden=FileSpec(GOLDEN, hashlib.sha256(vectors).hexdigest()),
        parity=_parity_record(tolerances, results, effort),
        tolerances=verify_tolerances(tolerances),
        scores=None,
        minimum_onnxruntime=minimum_onnxruntime(opset),
        provenance={"tools": _tools(), **model.provenance},
        requires=(LAPLACE_FEATURE,) if model.likelihood.name == "laplace" else (),
    )
    scores_of_mu = {"mahalanobis": mahalanobis(codes[0], np.array(manifest.latent.mean), np.array(manifest.latent.std))}
    if model.mixture is not None:
        scores_of_mu["density"] = -model.mixture.log_density(codes[0])
    manifest = dataclasses.replace(
        manifest,
        scores_by={name: score_statistics(scores) for name, scores in scores_of_mu.items()},
        attributes=_attributes(model, codes[0]),
    )
    if manifest.why_no_elbo is not None:
        return manifest
    by_torch, by_onnx = terms_of_both(
        modules, encoder, decoder, model.images[: effort.scored_images], model.likelihood, effort.batch
    )
    statistics = {name: score_statistics(found) for name, found in scores_of_terms(by_onnx).items()}
    return dataclasses.replace(
        manifest,
        parity=manifest.parity
        | {"elbo": float(by_torch.elbo.mean()), "delta_elbo": float((by_onnx.elbo - by_torch.elbo).mean())},
        scores=statistics.pop("elbo"),
        scores_by=manifest.scores_by | statistics,
    )


def _attributes(model: Model, mu: Array) -> Attributes | None:
    """Fit the classes and known factors of the held-out images, whose means are mu."""
    if model.classes is None:
        return None
    names, numbers = model.classes
    fitted = fit_attributes(mu, numbers[: len(mu)], names)
    if fitted is None or model.factors is None:
        return fitted
    return dataclasses.replace(fitted, factors=fit_factors(mu, model.factors.of(np.arange(len(mu)))))


def _graph_spec(file: str, graph: ExportedGraph) -> GraphSpec:
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


def _parity_record(tolerances: Tolerances, results: list[Result], effort: Effort) -> dict[str, Any]:
    return {
        "passed": True,
        "atol": tolerances.atol,
        "rtol": tolerances.rtol,
        "batch_sizes": list(effort.plan.sizes),
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


def _as_json(manifest: Manifest) -> bytes:
    try:
        return dump_json(manifest.to_json()).encode()
    except ValueError as error:  # JSON has neither NaN nor infinity
        raise ExportError(
            "the model's statistics on the images (mu, KL or ELBO) overflow: nothing was published. Is logvar the "
            "natural logarithm of the variance?"
        ) from error
