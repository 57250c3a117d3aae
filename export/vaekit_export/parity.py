"""The parity gate: PyTorch against ONNX Runtime, on the session that the edge itself opens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vaekit.errors import ParityError, UsageError
from vaekit.ort.session import open_on_cpu
from vaekit.types import Array
from vaekit_export.onnx_export import ExportedGraph

BATCH_SIZES = (1, 2, 7, 64)

Outputs = tuple[Array, ...]
Runner = Callable[[Array], Outputs]
"""Runs a graph or module on a batch of rows."""


@dataclass(frozen=True)
class Tolerances:
    """Results a and b agree where |a − b| ≤ atol + rtol·|b|, b being PyTorch's."""

    atol: float = 1e-5
    rtol: float = 1e-4

    def __post_init__(self) -> None:
        if not (0 <= self.atol < np.inf and 0 <= self.rtol < np.inf):
            raise UsageError(f"tolerances must be finite and not negative, not atol {self.atol}, rtol {self.rtol}")


@dataclass(frozen=True)
class Result:
    """How far one output of one graph lay from PyTorch's on one set of inputs, over all batch sizes."""

    graph: str
    output: str
    inputs: str
    count: int
    """Rows of input."""
    max_abs: float
    """Largest |a − b|."""
    max_ratio: float
    """Largest |a − b| / (atol + rtol·|b|): the output agrees where this is at most 1."""
    worst: Worst


@dataclass(frozen=True)
class Worst:
    """The element with the largest ratio."""

    row: int
    element: tuple[int, ...]
    batch_size: int
    onnxruntime: float
    torch: float


def check_parity(graph: ExportedGraph, inputs: dict[str, Array], tolerances: Tolerances) -> list[Result]:
    """Run both on each named set of inputs, at each of BATCH_SIZES.

    Raises ParityError with the worst element of all where any output does not agree.
    """
    run_onnx, run_torch = onnx_runner(graph), torch_runner(graph.module)
    results = [
        result
        for name, rows in inputs.items()
        for result in _compare(graph, name, rows, run_onnx, run_torch, tolerances)
    ]
    worst = max(results, key=lambda result: result.max_ratio)
    if not worst.max_ratio <= 1.0:
        raise ParityError(_complaint(worst, tolerances))
    return results


def onnx_runner(graph: ExportedGraph) -> Runner:
    """The graph's outputs for a batch, through the session that the edge opens."""
    opened = open_on_cpu(graph.name, graph.onnx)
    return lambda rows: tuple(opened.run(list(graph.output_names), {graph.input_name: rows}))


def torch_runner(module: nn.Module) -> Runner:
    """The module's outputs for a batch, in evaluation mode."""
    module.eval()

    def run(rows: Array) -> Outputs:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(rows))
        return tuple(output.numpy() for output in ((outputs,) if isinstance(outputs, Tensor) else outputs))

    return run


def in_batches(run: Runner, rows: Array, size: int) -> Outputs:
    """Outputs for all rows, run ``size`` at a time."""
    parts = [run(rows[first : first + size]) for first in range(0, len(rows), size)]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _compare(
    graph: ExportedGraph,
    inputs: str,
    rows: Array,
    run_onnx: Runner,
    run_torch: Runner,
    tolerances: Tolerances,
) -> Sequence[Result]:
    found: dict[str, Result] = {}
    for size in BATCH_SIZES:
        pairs = zip(in_batches(run_onnx, rows, size), in_batches(run_torch, rows, size), strict=True)
        for output, (actual, expected) in zip(graph.output_names, pairs, strict=True):
            result = _measure(graph.name, output, inputs, size, actual, expected, tolerances)
            if output not in found or not result.max_ratio <= found[output].max_ratio:
                found[output] = result
    return list(found.values())


def _measure(
    graph: str, output: str, inputs: str, size: int, actual: Array, expected: Array, tolerances: Tolerances
) -> Result:
    if actual.shape != expected.shape:
        raise ParityError(
            f"{graph}, output {output}: ONNX Runtime gives the shape {actual.shape}, PyTorch {expected.shape}; "
            "nothing was published"
        )
    allowed = tolerances.atol + tolerances.rtol * np.abs(expected.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.abs(actual.astype(np.float64) - expected)
        ratio = np.where(difference == 0, 0.0, difference / allowed)
    ratio[~(np.isfinite(actual) & np.isfinite(expected))] = np.inf  # NaN and infinity never agree
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    row, *element = (int(index) for index in at)
    return Result(
        graph=graph,
        output=output,
        inputs=inputs,
        count=len(actual),
        max_abs=float(difference.max()),
        max_ratio=float(ratio[at]),
        worst=Worst(row, tuple(element), size, float(actual[at]), float(expected[at])),
    )


def _complaint(result: Result, tolerances: Tolerances) -> str:
    worst = result.worst
    return (
        f"parity failed, nothing was published: {result.graph}, output {result.output}{list(worst.element)} is "
        f"{worst.onnxruntime:.7g} in ONNX Runtime and {worst.torch:.7g} in PyTorch for {result.inputs}, number "
        f"{worst.row}, at batch size {worst.batch_size}: {result.max_ratio:.3g} times the allowed difference "
        f"(atol {tolerances.atol:g}, rtol {tolerances.rtol:g})"
    )
