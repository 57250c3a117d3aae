"""Check a device: run a bundle's golden vectors on it and compare with PyTorch's results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """The difference of one output from PyTorch's on the golden vectors.

    The graph runs on the whole batch and on single rows; the worse of the two results is kept.
    """

    graph: str
    output: str
    passed: bool
    """Whether |a − b| ≤ atol + rtol·|b| for every element, and all are finite."""
    finite: bool
    max_abs: float
    """Largest |a − b|; infinity if any result is not finite."""
    max_rel: float
    """Largest |a − b| / |b| over elements with b ≠ 0. It can be large for values near zero."""
    psnr: float | None
    """Peak signal-to-noise ratio in dB; None if the results are equal. The peak is 1 for images, and the range of
    PyTorch's values for other outputs."""
    differing_pixels: int | None
    """For images: the number of pixels that differ after rounding to 8 bits."""
    tolerance: Tolerance

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object: atol and rtol as keys, infinity as null."""
        document = dataclasses.asdict(self)
        document |= document.pop("tolerance")
        infinite = [key for key, value in document.items() if isinstance(value, float) and not math.isfinite(value)]
        return document | dict.fromkeys(infinite)


@dataclass(frozen=True)
class Verification:
    """The result of ``verify``."""

    passed: bool
    provider: str
    """The provider that ran the graphs, by vaekit's short name if it has one."""
    outputs: tuple[OutputCheck, ...]
    placement: dict[str, dict[str, int]]
    """For each graph, the number of nodes on each provider, by ONNX Runtime's names."""
    fell_back: tuple[str, ...]
    """Why other providers were not used, and which nodes fell back to the CPU."""
    causes: tuple[str, ...]
    """Known likely causes of a failure."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that ``vaekit verify --json`` prints."""
        return dataclasses.asdict(self) | {"outputs": [check.to_json() for check in self.outputs]}


@dataclass(frozen=True)
class Replay:
    """A graph opened on a provider, and a function that runs it."""

    graph: GraphSession
    run: Callable[[NDArray[Any]], tuple[Array, ...]]
    """Takes rows of the graph's input and returns its outputs."""


def verify(
    golden: Mapping[str, Array],
    manifest: Manifest,
    *,
    encoder: Replay,
    decoder: Replay,
    prior: tuple[GraphSession, Callable[[Mapping[str, Array]], Array]] | None = None,
) -> Verification:
    """Run the golden vectors through the graphs and compare with PyTorch's results.

    ``prior`` is the learned prior's session, if there is one, and a function from its inputs to the velocity.

    A compressed bundle's golden vectors were computed by its own graphs on the machine that compressed it, because
    against PyTorch's vectors, compression error would mask device error.

    The manifest gives the tolerances, by the precision of the graph and the class of the provider. Raises ProviderError
    if the provider fails.
    """
    outputs = (
        *_check(encoder, golden["image"], manifest.encoder_outputs, golden, _tolerance(manifest, encoder.graph)),
        *_check(decoder, golden["z"], ("decoded",), golden, _tolerance(manifest, decoder.graph)),
    )
    opened = [encoder.graph, decoder.graph]
    if prior is not None:
        opened.append(prior[0])
        outputs = (*outputs, *_check_prior(*prior, golden, _tolerance(manifest, prior[0])))
    passed = all(output.passed for output in outputs)
    graphs = {graph.name: graph for graph in opened}
    return Verification(
        passed=passed,
        provider=" and ".join(dict.fromkeys(graph.provider for graph in graphs.values())),
        outputs=outputs,
        placement={name: graph.placement for name, graph in graphs.items()},
        fell_back=tuple(dict.fromkeys(reason for graph in graphs.values() for reason in graph.fell_back)),
        causes=() if passed else tuple(_causes(manifest, graphs, outputs)),
    )


def _check(
    replay: Replay, rows: NDArray[Any], names: tuple[str, ...], golden: Mapping[str, Array], tolerance: Tolerance
) -> list[OutputCheck]:
    """Check each output on the whole batch and row by row; keep the worse."""
    singly = [np.concatenate(parts) for parts in zip(*(replay.run(row[None]) for row in rows), strict=True)]
    checks = []
    for name, together, alone in zip(names, replay.run(rows), singly, strict=True):
        output = "image" if name == "decoded" else name
        both = [compare(replay.graph.name, output, actual, golden[name], tolerance) for actual in (together, alone)]
        checks.append(max(both, key=lambda check: (not check.passed, check.max_abs)))
    return checks


def _check_prior(
    graph: GraphSession,
    velocity: Callable[[Mapping[str, Array]], Array],
    golden: Mapping[str, Array],
    tolerance: Tolerance,
) -> list[OutputCheck]:
    """Check the velocity on the whole batch and row by row, as ``_check`` does."""
    inputs = {name.removeprefix("flow_"): part for name, part in golden.items() if name.startswith("flow_")}
    rows = np.arange(len(inputs["t"]))
    replay = Replay(graph, lambda rows: (velocity({name: part[rows] for name, part in inputs.items()}),))
    return _check(replay, rows, ("velocity",), golden, tolerance)


def _tolerance(manifest: Manifest, graph: GraphSession) -> Tolerance:
    """Return the loosest tolerance among the provider classes that run the graph."""
    classes = {provider_class(name) for name in graph.placement}
    loosest = max(classes, key=PROVIDER_CLASSES.index)
    return manifest.tolerances[manifest.graphs[graph.name].precision][loosest]


def compare(graph: str, output: str, actual: Array, expected: Array, tolerance: Tolerance) -> OutputCheck:
    """Compare an output with PyTorch's.

    Both are float32 with equal shapes; images are in [0, 1].
    """
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
    """Count pixels of images (N, C, H, W) that differ after rounding to 8 bits.

    A pixel differs if any of its channels does. NaN and infinity count as different.
    """
    finite = np.isfinite(actual)
    differ = (to_uint8(np.where(finite, actual, 0.0)) != to_uint8(expected)) | ~finite
    return int(differ.any(axis=1).sum())


def _causes(manifest: Manifest, graphs: Mapping[str, GraphSession], outputs: tuple[OutputCheck, ...]) -> list[str]:
    """Return likely causes of the failed outputs, as text."""
    causes: dict[str, None] = {}
    for check in outputs:
        if check.passed:
            continue
        precision, graph = manifest.graphs[check.graph].precision, graphs[check.graph]
        flags = processor_flags()
        if precision == "int8" and CPU in graph.placement and flags and not has_fast_int8(flags):
            causes[_NO_VNNI] = None
        if precision == "fp16" and (not check.finite or check.max_abs > _LARGEST_FLOAT16 / 2):
            causes["numbers above 65504 overflow in float16: use the fp32 bundle on this device"] = None
        for name in graph.placement:
            if provider_class(name) == "reduced":
                causes[f"{display_name(name)} computes at lower precision than float32"] = None
        if graph.options.get("use_tf32") == "1":
            causes["use_tf32=1 rounds inputs to 10-bit mantissas: remove that option"] = None
    return list(causes)
