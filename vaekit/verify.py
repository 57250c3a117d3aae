"""Checks a device: runs a bundle's golden vectors on this machine's provider and compares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaekit.bundle.manifest import Manifest, Tolerance
from vaekit.images.pixels import to_uint8
from vaekit.maths.psnr import psnr
from vaekit.ort.providers import CPU, display_name, provider_class
from vaekit.ort.session import GraphSession
from vaekit.system.machine import has_fast_int8, processor_flags
from vaekit.types import PROVIDER_CLASSES, Array

_LARGEST_FLOAT16 = 65504.0
_NO_VNNI = (
    "this processor has no VNNI or dot product: sums of 8-bit products saturate in 16 bits, unless the graph was "
    "quantised with reduce_range"
)


@dataclass(frozen=True)
class OutputCheck:
    """How far one output of one graph lies from PyTorch's on the golden vectors, at batch sizes of one and of many."""

    graph: str
    output: str
    passed: bool
    """Whether |a − b| ≤ atol + rtol·|b| for every element, and all are finite."""
    finite: bool
    max_abs: float
    """Largest |a − b|; infinite where a result is not finite."""
    max_rel: float
    """Largest |a − b| / |b| over elements that are not zero; large where one only crosses zero."""
    psnr: float | None
    """Peak signal-to-noise ratio in dB, the peak being 1 for images and else the range of PyTorch's values; None where
    the results are equal."""
    differing_pixels: int | None
    """For images: pixels that differ once rounded to 8 bits."""
    tolerance: Tolerance

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object: atol and rtol beside the rest, null for infinity, which JSON does not have."""
        document = dataclasses.asdict(self)
        document |= document.pop("tolerance")
        infinite = [key for key, value in document.items() if isinstance(value, float) and not math.isfinite(value)]
        return document | dict.fromkeys(infinite)


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found."""

    passed: bool
    provider: str
    """The provider that ran the graphs, by vaekit's name where it has one."""
    outputs: tuple[OutputCheck, ...]
    placement: dict[str, dict[str, int]]
    """By graph, nodes by ONNX Runtime's name of the provider that they ran on."""
    fell_back: tuple[str, ...]
    """Why other providers were not taken, and what the one taken left to the CPU."""
    causes: tuple[str, ...]
    """Likely causes, where it did not pass and one is known."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that ``vaekit verify --json`` prints."""
        return dataclasses.asdict(self) | {"outputs": [check.to_json() for check in self.outputs]}


@dataclass(frozen=True)
class Replay:
    """A graph on this machine's provider, and a function that runs it."""

    graph: GraphSession
    run: Callable[[Array], tuple[Array, ...]]
    """From rows of the graph's input to its outputs."""


def verify(golden: Mapping[str, Array], manifest: Manifest, *, encoder: Replay, decoder: Replay) -> Verification:
    """Run the golden vectors through both graphs and compare with what PyTorch computed.

    Those of a compressed bundle are what its own graphs computed where they were made: against PyTorch's vectors,
    compression error would mask device error.

    The tolerances are the manifest's, for the precision of the graph and the class of the provider that runs it. Raises
    ProviderError where the provider does not run.
    """
    outputs = (
        *_check(encoder, golden["image"], manifest.encoder_outputs, golden, _tolerance(manifest, encoder.graph)),
        *_check(decoder, golden["z"], ("decoded",), golden, _tolerance(manifest, decoder.graph)),
    )
    passed = all(output.passed for output in outputs)
    graphs = {graph.name: graph for graph in (encoder.graph, decoder.graph)}
    return Verification(
        passed=passed,
        provider=" and ".join(dict.fromkeys(graph.provider for graph in graphs.values())),
        outputs=outputs,
        placement={name: graph.placement for name, graph in graphs.items()},
        fell_back=tuple(dict.fromkeys(reason for graph in graphs.values() for reason in graph.fell_back)),
        causes=() if passed else tuple(_causes(manifest, graphs, outputs)),
    )


def _check(
    replay: Replay, rows: Array, names: tuple[str, ...], golden: Mapping[str, Array], tolerance: Tolerance
) -> list[OutputCheck]:
    """Each output, the whole batch at once and row by row: the worse of the two."""
    singly = [np.concatenate(parts) for parts in zip(*(replay.run(row[None]) for row in rows), strict=True)]
    checks = []
    for name, together, alone in zip(names, replay.run(rows), singly, strict=True):
        output = "image" if name == "decoded" else name
        both = [compare(replay.graph.name, output, actual, golden[name], tolerance) for actual in (together, alone)]
        checks.append(max(both, key=lambda check: (not check.passed, check.max_abs)))
    return checks


def _tolerance(manifest: Manifest, graph: GraphSession) -> Tolerance:
    """The loosest of those for the classes of provider that hold nodes of the graph."""
    classes = {provider_class(name) for name in graph.placement}
    loosest = max(classes, key=PROVIDER_CLASSES.index)
    return manifest.tolerances[manifest.graphs[graph.name].precision][loosest]


def compare(graph: str, output: str, actual: Array, expected: Array, tolerance: Tolerance) -> OutputCheck:
    """Compare an output with PyTorch's, both float32 of one shape; for images both lie in [0, 1]."""
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    finite = bool(np.isfinite(a).all())
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(np.isfinite(a), np.abs(a - b), np.inf)
        relative = difference[b != 0] / np.abs(b[b != 0])
        mse = float((difference**2).mean())
    is_image = output == "image"
    peak = 1.0 if is_image else float(np.ptp(b)) or 1.0
    return OutputCheck(
        graph=graph,
        output=output,
        passed=bool((difference <= tolerance.atol + tolerance.rtol * np.abs(b)).all()),
        finite=finite,
        max_abs=float(difference.max()),
        max_rel=float(relative.max(initial=0.0)),
        psnr=None if mse == 0 else psnr(mse, peak),
        differing_pixels=_differing_pixels(actual, expected) if is_image else None,
        tolerance=tolerance,
    )


def _differing_pixels(actual: Array, expected: Array) -> int:
    """Pixels of images (N, C, H, W) that differ in any channel once rounded to 8 bits; NaN and infinity differ."""
    finite = np.isfinite(actual)
    differ = (to_uint8(np.where(finite, actual, 0.0)) != to_uint8(expected)) | ~finite
    return int(differ.any(axis=1).sum())


def _causes(manifest: Manifest, graphs: Mapping[str, GraphSession], outputs: tuple[OutputCheck, ...]) -> list[str]:
    """Likely causes of failed outputs, in words."""
    causes: dict[str, None] = {}
    for check in outputs:
        if check.passed:
            continue
        precision, graph = manifest.graphs[check.graph].precision, graphs[check.graph]
        flags = processor_flags()
        if precision == "int8" and CPU in graph.placement and flags and not has_fast_int8(flags):
            causes[_NO_VNNI] = None
        if precision == "fp16" and (not check.finite or check.max_abs > _LARGEST_FLOAT16 / 2):
            causes["numbers beyond 65504 overflow in float16: use the fp32 bundle on this device"] = None
        for name in graph.placement:
            if provider_class(name) == "reduced":
                causes[f"{display_name(name)} computes in less than float32"] = None
        if graph.options.get("use_tf32") == "1":
            causes["use_tf32=1 rounds products to 10 bits: leave that option out"] = None
    return list(causes)
