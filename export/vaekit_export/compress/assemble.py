"""Assembly of a compressed bundle: graphs, new golden vectors, tolerances and manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnxruntime

from vaekit.bundle.manifest import (
    DECODER,
    ENCODER,
    GOLDEN,
    MANIFEST,
    FileSpec,
    GraphSpec,
    Manifest,
    Tolerance,
    Tolerances,
    dump_json,
)
from vaekit.bundle.onnx_file import TensorInfo, read_onnx
from vaekit.bundle.reading import Bundle, flow_arrays, read_golden
from vaekit.types import PROVIDER_CLASSES, Array, GraphName, PrecisionName
from vaekit_export.compress.judge import Graphs, run
from vaekit_export.onnx_export import check_onnx
from vaekit_export.passes import apply
from vaekit_export.passes.metadata import describe, set_metadata
from vaekit_export.passes.prune import marginal

GRAPH_FILES: dict[GraphName, str] = {"encoder": ENCODER, "decoder": DECODER}

# A provider class's tolerance: this many times the difference between kernels on this machine, and at least _LEAST.
_TIMES = dict(zip(PROVIDER_CLASSES, (2, 4, 10), strict=True))
_LEAST = dict(zip(PROVIDER_CLASSES, (0.0, 0.0, 2e-2), strict=True))


@dataclass(frozen=True)
class Change:
    """One graph in lower precision, or unchanged."""

    onnx: bytes
    precision: PrecisionName = "fp32"
    in_float: tuple[str, ...] = ()
    """Layers that stay in float32, or have float16 weights in an ``int8-weights`` graph, the most sensitive first."""
    rewritten: int = 0
    """Number of transposed convolutions rewritten as ordinary ones."""


def assemble(
    parent: Bundle,
    changes: Mapping[GraphName, Change],
    kept: tuple[int, ...],
    rows: Mapping[GraphName, Array],
    record: dict[str, Any],
) -> tuple[dict[str, bytes], Manifest]:
    """Return the new bundle's files by name, and its manifest.

    ``kept`` are the latent dimensions that the graphs keep. ``rows`` are inputs of each graph, on which tolerances are
    measured. ``record`` goes into the manifest's provenance.
    """
    onnx = {name: _described(parent.manifest, name, change, len(kept)) for name, change in changes.items()}
    graphs = Graphs(onnx["encoder"], onnx["decoder"], kept)
    contents = {GRAPH_FILES[name]: data for name, data in onnx.items()} | {GOLDEN: _golden(parent, graphs)}
    if (residuals := parent.manifest.residuals) is not None:
        contents[residuals.file] = parent.files[residuals.file]
    if _keeps_flow(parent, kept):
        file = parent.manifest.graphs["prior"].file
        contents[file] = parent.files[file]
    precisions = {name: change.precision for name, change in changes.items()}
    manifest = _manifest(parent, graphs, precisions, contents)
    manifest = dataclasses.replace(
        manifest,
        tolerances=manifest.tolerances | _tolerances(parent, [(onnx[n], precisions[n], rows[n]) for n in onnx]),
        provenance=manifest.provenance | {"compression": record},
    )
    return contents | {MANIFEST: dump_json(manifest.to_json()).encode()}, manifest


def _keeps_flow(parent: Bundle, kept: tuple[int, ...]) -> bool:
    """Return whether the learned prior stays, unchanged: it knows codes of all dimensions only."""
    return parent.manifest.flow is not None and len(kept) == parent.manifest.latent.shape[0]


def _described(manifest: Manifest, name: GraphName, change: Change, dimensions: int) -> bytes:
    """Return a graph with the metadata of its new precision and latent."""
    latent = (dimensions, *manifest.latent.shape[1:])
    metadata = describe(name, change.precision, manifest.image, latent, manifest.posterior, manifest.likelihood)
    return apply(change.onnx, partial(set_metadata, metadata=metadata))


def _golden(parent: Bundle, graphs: Graphs) -> bytes:
    """Return golden.npz: the parent's inputs with these graphs' outputs on this machine.

    With PyTorch's outputs, tolerances would have to be as wide as the compression error, which would mask device error.
    """
    arrays = read_golden(parent)
    learned = flow_arrays(parent.manifest) if _keeps_flow(parent, graphs.kept) else ()
    golden: dict[str, Any] = {name: arrays[name] for name in ("image", "z", *learned)}
    golden["z"] = _kept_of(golden["z"], graphs.kept)
    encoded = run(graphs.encoder, golden["image"])
    names = [output.name for output in parent.manifest.graphs["encoder"].outputs]
    golden |= dict(zip(names, encoded, strict=True)) | {"decoded": run(graphs.decoder, golden["z"])[0]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **golden)
    return buffer.getvalue()


def _manifest(
    parent: Bundle, graphs: Graphs, precisions: dict[GraphName, PrecisionName], contents: dict[str, bytes]
) -> Manifest:
    """Return the parent's manifest with new graphs, golden vectors and latent.

    The parity gate's measurements and the scores' quantiles stay the parent's.
    """
    old = parent.manifest
    specs: dict[str, GraphSpec] = {}
    for name, file in GRAPH_FILES.items():
        inputs, outputs = (
            tuple(_with_latent(tensor, old, len(graphs.kept)) for tensor in tensors)
            for tensors in (old.graphs[name].inputs, old.graphs[name].outputs)
        )
        check_onnx(contents[file], inputs=inputs, outputs=outputs, opset=old.graphs[name].opset)
        specs[name] = dataclasses.replace(
            old.graphs[name],
            sha256=hashlib.sha256(contents[file]).hexdigest(),
            ir_version=read_onnx(contents[file]).ir_version,
            precision=precisions[name],
            inputs=inputs,
            outputs=outputs,
        )
    latent = old.latent
    if len(graphs.kept) < latent.shape[0]:
        mean, std, kl = (tuple(numbers[j] for j in graphs.kept) for numbers in (latent.mean, latent.std, latent.kl))
        latent = dataclasses.replace(latent, shape=(len(graphs.kept), *latent.shape[1:]), mean=mean, std=std, kl=kl)
    keeps_flow = _keeps_flow(parent, graphs.kept)
    requires = old.requires
    if keeps_flow:
        specs["prior"] = old.graphs["prior"]
    else:
        requires = tuple(name for name in requires if old.flow is None or name not in old.flow.features)
    return dataclasses.replace(
        old,
        latent=latent,
        requires=requires,
        attributes=old.attributes if old.attributes is None else old.attributes.of_dimensions(graphs.kept),
        flow=old.flow if keeps_flow else None,
        mixture=old.mixture if old.mixture is None or latent is old.latent else marginal(old.mixture, graphs.kept),
        graphs=specs,
        golden=FileSpec(GOLDEN, hashlib.sha256(contents[GOLDEN]).hexdigest()),
    )


def _with_latent(tensor: TensorInfo, manifest: Manifest, dimensions: int) -> TensorInfo:
    if tensor.name == "image" or dimensions == manifest.latent.shape[0]:
        return tensor
    return dataclasses.replace(tensor, shape=(tensor.shape[0], dimensions, *tensor.shape[2:]))


def _tolerances(parent: Bundle, graphs: Iterable[tuple[bytes, PrecisionName, Array]]) -> Tolerances:
    """Return how far a device may differ from this machine, by precision.

    Another kernel may round a value the other way, which moves a result by a step of the precision. The size of that
    effect is measured on each graph's rows. Its optimised results are compared with those of the unoptimised graph, and
    with those for inputs that are changed by about float32's rounding error.
    """
    spread: dict[PrecisionName, float] = {}
    for data, precision, rows in graphs:
        if precision != "fp32":
            here = run(data, rows)
            others = (*_unoptimised(data, rows), run(data, rows * np.float32(1 + 1e-6)))
            furthest = max(float(np.abs(a - b).max()) for other in others for a, b in zip(here, other, strict=True))
            spread[precision] = max(spread.get(precision, 0.0), furthest)
    floor = parent.manifest.tolerances["fp32"]
    return {
        precision: {
            kind: Tolerance(max(floor[kind].atol, _LEAST[kind], float(f"{_TIMES[kind] * off:.2g}")), floor[kind].rtol)
            for kind in PROVIDER_CLASSES
        }
        for precision, off in spread.items()
    }


def _unoptimised(data: bytes, rows: Array) -> list[list[Array]]:
    """Return the unoptimised graph's results as a list of one item.

    The list is empty if ONNX Runtime has no kernel for one of the operators in the file.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        outputs: list[Array] = session.run(None, {session.get_inputs()[0].name: rows})
    except Exception:  # noqa: BLE001 — ONNX Runtime's exceptions have no common base class
        return []
    return [outputs]


def _kept_of(z: Array, kept: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(z[:, kept]) if len(kept) < z.shape[1] else z
