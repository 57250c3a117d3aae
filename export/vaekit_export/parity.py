"""The parity gate: PyTorch against ONNX Runtime, in the same session as on the edge."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vaekit.defaults import ATOL, RTOL
from vaekit.errors import ExportError, ParityError, UsageError
from vaekit.ort.providers import Selection
from vaekit.ort.session import GraphSession, open_graph, open_on_cpu
from vaekit.types import Array
from vaekit_export.onnx_export import ExportedGraph

BATCH_SIZES = (1, 2, 7, 64)
_AGAIN = 7  # rows that ONNX Runtime runs again, and on one thread
_ROUNDING = 3.0  # times the tolerances: PyTorch rounds a row alone and among others differently; verify allows as much

Outputs = tuple[Array, ...]
Runner = Callable[[Array], Outputs]
"""Runs a graph or module on a batch of rows."""


class BatchDependenceError(ParityError):
    """A row's result depends on the other rows of its batch."""


class MismatchError(ParityError):
    """ONNX Runtime's result for a row differs from PyTorch's."""

    def __init__(self, message: str, inputs: str, row: int) -> None:
        super().__init__(message)
        self.inputs, self.row = inputs, row


@dataclass(frozen=True)
class Tolerances:
    """Tolerances: results a and b agree if |a − b| ≤ atol + rtol·|b|, where b is PyTorch's."""

    atol: float = ATOL
    rtol: float = RTOL

    def __post_init__(self) -> None:
        if not (0 <= self.atol < np.inf and 0 <= self.rtol < np.inf):
            raise UsageError(f"tolerances must be finite and not negative, not atol {self.atol}, rtol {self.rtol}")


Part = tuple[int, int, int]
"""A batch size, and the first and last-plus-one row to run at it."""


@dataclass(frozen=True)
class Result:
    """The difference of one output from PyTorch's on one set of inputs, over all batch sizes."""

    graph: str
    output: str
    inputs: str
    count: int
    """Number of input rows."""
    max_abs: float
    """Largest |a − b|."""
    max_ratio: float
    """Largest |a − b| / (atol + rtol·|b|): the output agrees if this is at most 1."""
    worst: Worst


@dataclass(frozen=True)
class Worst:
    """The element with the largest ratio."""

    row: int
    element: tuple[int, ...]
    batch_size: int
    onnxruntime: float
    torch: float


@dataclass(frozen=True)
class Plan:
    """The batches in which ``check_parity`` runs the rows."""

    sizes: tuple[int, ...] = BATCH_SIZES
    """Batch sizes. The first is 1, because a row must give the same result alone and among others."""
    once: bool = False
    """Whether ONNX Runtime runs each row in one batch only, and PyTorch each row alone. Otherwise both run all rows at
    each size, and ONNX Runtime also runs some rows a second time, and on one thread."""
    companions: int = 6
    """Rows of each range in the batch that shows whether rows depend on each other. 0 leaves it out."""
    others: int = 4
    """Number of other ranges in that batch, from 1 to 4."""


def check_parity(
    graph: ExportedGraph,
    inputs: dict[str, Array],
    tolerances: Tolerances,
    plan: Plan = Plan(),
    *,
    run_module: Runner | None = None,
    ran: Callable[[int], object] = lambda rows: None,
) -> list[Result]:
    """Compare a graph with its module on each named set of inputs.

    ``run_module`` runs the module, if it is to be other than ``torch_runner``. ``ran`` is called with the number of
    rows after each run; ``rows_to_run`` returns their sum.

    Raises BatchDependenceError if PyTorch's result for a row depends on the other rows of the batch. Raises ParityError
    with the worst element if any output does not agree.
    """
    run_torch = told(run_module or torch_runner(graph.module, graph.name), ran)
    run_onnx = told(onnx_runner(graph), ran)
    for name, rows in inputs.items():
        _check_companions(graph, name, rows[: plan.companions], plan.others, run_torch, tolerances)
    results = [
        result
        for name, rows in inputs.items()
        for result in _compare(graph, name, rows, run_onnx, run_torch, tolerances, plan)
    ]
    _raise_for_worst(results, tolerances)
    if plan.once:
        return results
    name, rows = next(iter(inputs.items()))
    few = rows[:_AGAIN]
    expected, on_one_thread = run_torch(few), told(_on_one_thread(graph), ran)
    again = [
        result
        for kind, run in ((f"{name} again", run_onnx), (f"{name} on one thread", on_one_thread))
        for result in _results(graph, kind, len(few), run(few), expected, tolerances)
    ]
    _raise_for_worst(again, tolerances)
    return results


def rows_to_run(inputs: dict[str, Array], plan: Plan = Plan()) -> int:
    """Return how many rows ``check_parity`` runs through PyTorch and ONNX Runtime together."""
    total = 0 if plan.once else 3 * min(len(next(iter(inputs.values()))), _AGAIN)
    for rows in inputs.values():
        for size, first, end in _parts(len(rows), plan):
            by_torch = size > 1 and not plan.once
            total += (end - first) * (2 if by_torch else 1)
        total += 2 * (1 + plan.others) * min(len(rows), plan.companions) + len(rows)
    return total


def told(run: Runner, ran: Callable[[int], object]) -> Runner:
    """Return a runner that reports its rows."""

    def telling(rows: Array) -> Outputs:
        outputs = run(rows)
        ran(len(rows))
        return outputs

    return telling


def onnx_runner(graph: ExportedGraph) -> Runner:
    """Return a function that runs the graph.

    It opens the same session as the edge.
    """
    return _session_runner(graph, open_on_cpu(graph.name, graph.onnx))


def torch_runner(module: nn.Module, name: str = "module") -> Runner:
    """Return a function that runs the module in evaluation mode.

    The function raises ExportError if the module fails.
    """
    module.eval()

    def run(rows: Array) -> Outputs:
        try:
            with torch.inference_mode():
                outputs = module(torch.from_numpy(rows))
        except Exception as error:  # a module may raise anything at another batch size or image size
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ExportError(f"the {name} fails on an input of shape {rows.shape}: {reason}") from error
        return tuple(output.numpy() for output in ((outputs,) if isinstance(outputs, Tensor) else outputs))

    return run


def remembering(run: Runner) -> Runner:
    """Return a runner that computes each single row only once."""
    known: dict[tuple[tuple[int, ...], bytes], Outputs] = {}

    def remembered(rows: Array) -> Outputs:
        if len(rows) != 1:
            return run(rows)
        key = rows.shape, hashlib.sha256(np.ascontiguousarray(rows).data).digest()
        if key not in known:
            known[key] = run(rows)
        return known[key]

    return remembered


def _session_runner(graph: ExportedGraph, opened: GraphSession) -> Runner:
    return lambda rows: tuple(opened.run(list(graph.output_names), graph.inputs_of(rows)))


def _on_one_thread(graph: ExportedGraph) -> Runner:
    """Return a function that runs the graph on one thread.

    Sums are then not split between threads.
    """
    opened = open_graph(graph.name, graph.onnx, Selection("cpu"), probe={}, threads=1)
    return _session_runner(graph, opened)


def in_batches(run: Runner, rows: Array, size: int) -> Outputs:
    """Run all rows, ``size`` at a time, and return the outputs."""
    parts = [run(rows[first : first + size]) for first in range(0, len(rows), size)]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _compare(
    graph: ExportedGraph,
    inputs: str,
    rows: Array,
    run_onnx: Runner,
    run_torch: Runner,
    tolerances: Tolerances,
    plan: Plan,
) -> list[Result]:
    """Return the worst result of each output over all batch sizes."""
    found: dict[str, Result] = {}
    alone = in_batches(run_torch, rows, 1)
    for size, first, end in _parts(len(rows), plan):
        part, alone_part = rows[first:end], tuple(output[first:end] for output in alone)
        expected = alone_part
        if size > 1 and not plan.once:
            expected = in_batches(run_torch, part, size)
            _check_alone(graph, inputs, size, expected, alone_part, tolerances)
        for result in _results(graph, inputs, size, in_batches(run_onnx, part, size), expected, tolerances):
            if result.output not in found or not result.max_ratio <= found[result.output].max_ratio:
                worst = dataclasses.replace(result.worst, row=result.worst.row + first)
                found[result.output] = dataclasses.replace(result, count=len(rows), worst=worst)
    return list(found.values())


def _parts(count: int, plan: Plan) -> list[Part]:
    """List the batches: all rows at each size, or with ``once`` each row in one batch, in sizes that take turns."""
    if not plan.once:
        return [(size, 0, count) for size in plan.sizes]
    parts: list[Part] = []
    while (first := parts[-1][2] if parts else 0) < count:
        size = plan.sizes[len(parts) % len(plan.sizes)]
        parts.append((size, first, min(first + size, count)))
    return parts


def _check_companions(
    graph: ExportedGraph, inputs: str, few: Array, others: int, run_torch: Runner, tolerances: Tolerances
) -> None:
    """Check that rows give the same result alone and among rows of ``others`` other ranges.

    The order changes too. Held-out images alone could be too similar: a statistic
    over the batch, such as the largest pixel, may be the same for every batch of them.
    """
    if not len(few) or not np.isfinite(few).all():
        return
    low, high = float(few.min()), float(few.max())
    noise = np.random.default_rng(0).uniform(low, high, few.shape) if low < high else few
    middle = (low + high) / 2
    # The first has other extremes, another mean and another contrast than ``few``.
    ranges = [low + (noise - low) / 4 + (middle - low) / 8, low + (few - low) / 4, high - (high - few) / 4, noise]
    mixed = np.ascontiguousarray(np.concatenate([few, *ranges[:others]])[::-1], np.float32)
    alone, among = in_batches(run_torch, mixed, 1), run_torch(mixed)
    kind = f"{inputs} among rows of other ranges"
    _check_alone(graph, kind, len(mixed), among, alone, tolerances)


def _check_alone(
    graph: ExportedGraph, inputs: str, size: int, among: Outputs, alone: Outputs, tolerances: Tolerances
) -> None:
    """Raise BatchDependenceError if PyTorch's results alone and in a batch differ."""
    for output, actual, expected in zip(graph.output_names, among, alone, strict=True):
        if actual.shape != expected.shape:
            raise BatchDependenceError(
                f"parity failed, nothing was published: {graph.name}, output {output}: PyTorch's result has the shape "
                f"{actual.shape} at batch size {size} and {expected.shape} one row at a time"
            )
        result = _measure(graph.name, output, inputs, size, actual, expected, tolerances)
        if not (result.max_ratio <= _ROUNDING or _is_not_finite(result)):
            worst = result.worst
            raise BatchDependenceError(
                "parity failed, nothing was published: a row's result depends on the other rows of its batch: "
                f"{graph.name}, output {output}{list(worst.element)} for {inputs}, number {worst.row}, is "
                f"{worst.torch:.7g} alone and {worst.onnxruntime:.7g} at batch size {size}, in PyTorch itself "
                f"({result.max_ratio:.3g} times the allowed difference). Does a layer compute statistics over the "
                "batch, such as batch normalisation without running statistics?"
            )


def _is_not_finite(result: Result) -> bool:
    """Return whether the worst element is NaN or infinite.

    The comparison with ONNX Runtime reports these.
    """
    return not (np.isfinite(result.worst.onnxruntime) and np.isfinite(result.worst.torch))


def _results(
    graph: ExportedGraph, inputs: str, size: int, actual: Outputs, expected: Outputs, tolerances: Tolerances
) -> list[Result]:
    return [
        _measure(graph.name, output, inputs, size, a, b, tolerances)
        for output, a, b in zip(graph.output_names, actual, expected, strict=True)
    ]


def _measure(
    graph: str, output: str, inputs: str, size: int, actual: Array, expected: Array, tolerances: Tolerances
) -> Result:
    if actual.shape != expected.shape:
        raise MismatchError(
            f"{graph}, output {output}: ONNX Runtime's result has the shape {actual.shape}, PyTorch's "
            f"{expected.shape}; nothing was published",
            inputs,
            0,
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


def _raise_for_worst(results: Sequence[Result], tolerances: Tolerances) -> None:
    worst = max(results, key=lambda result: result.max_ratio)
    if not worst.max_ratio <= 1.0:
        raise MismatchError(_complaint(worst, tolerances), worst.inputs, worst.worst.row)


def _complaint(result: Result, tolerances: Tolerances) -> str:
    worst = result.worst
    return (
        f"parity failed, nothing was published: {result.graph}, output {result.output}{list(worst.element)} is "
        f"{worst.onnxruntime:.7g} in ONNX Runtime and {worst.torch:.7g} in PyTorch for {result.inputs}, number "
        f"{worst.row}, at batch size {worst.batch_size}: {result.max_ratio:.3g} times the allowed difference "
        f"(atol {tolerances.atol:g}, rtol {tolerances.rtol:g})"
    )
