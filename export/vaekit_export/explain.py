"""Layer-by-layer comparison of ONNX Runtime and PyTorch, to find the first node that differs.

The exporter captures a module as a graph of PyTorch's operators, and names the values of the ONNX graph after that
graph's nodes. So PyTorch's graph is interpreted node by node, the ONNX graph runs with the same values as outputs, and
each pair is compared. The graph's outputs are compared with those of the module itself, so that an error of the capture
shows too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from vaekit.ort.session import open_on_cpu
from vaekit.types import Array
from vaekit_export.onnx_export import ExportedGraph, export_program
from vaekit_export.parity import Tolerances, torch_runner
from vaekit_export.passes import apply, read
from vaekit_export.passes.outputs import expose

_BATCH = 32
_MOST_BYTES = 1 << 29  # of the values compared at a time, in each of the two runtimes

_CLOSE = 0.1  # of the allowed difference: layers that differ by more round in another order

_Worst = tuple[float, int, Array, Array]
"""The largest difference of a row, the row's number, and the output of both runtimes."""

DECADES = range(-10, 3)
"""Powers of ten between which absolute differences are counted."""


@dataclass
class Layer:
    """A value that both runtimes compute, and how far their results differ."""

    value: str
    """The value's name in the ONNX graph."""
    node: str
    """The node that computes it."""
    operator: str
    module: str
    """Path of the innermost PyTorch module that computes it, with ``(call 2)`` for its second call and so on. It is ""
    for code outside all inner modules, and for the graph's outputs."""
    is_output: bool
    """True for an output of the graph."""
    between: list[str]
    """Nodes since the previous layer whose values PyTorch's graph does not have, each as ``name (operator)``. If this
    is the first layer that differs, the difference begins at one of them or at this node."""
    max_abs: float = 0.0
    """Largest |a − b|; infinite if a result is not finite."""
    mean_abs: float = 0.0
    max_ratio: float = 0.0
    """Largest |a − b| / (atol · max(1, max|b|) + rtol · |b|): the layer agrees if this is at most 1."""
    histogram: list[int] = field(default_factory=lambda: [0] * (len(DECADES) + 1))
    """Number of elements by |a − b|: below 1e-10, then one bin per decade up to 1e2, then the rest."""

    @property
    def agrees(self) -> bool:
        """Return whether every element agrees with PyTorch's."""
        return self.max_ratio <= 1


@dataclass(frozen=True)
class Explanation:
    """A comparison of one graph with its module, layer by layer in the graph's order."""

    graph: str
    rows: int
    layers: list[Layer]
    nodes: int
    """Number of nodes in the ONNX graph."""
    worst_row: int
    """The row whose outputs differ most."""
    worst_onnx: Array
    """ONNX Runtime's first output for that row."""
    worst_torch: Array
    """PyTorch's first output for that row."""

    @property
    def first(self) -> Layer | None:
        """Return the first layer that differs, or None if all agree."""
        return next((layer for layer in self.layers if not layer.agrees), None)

    def headline(self) -> str:
        """Say in one line where the error begins and how it grows."""
        if self.first is None:
            return (
                f"{self.graph}: every layer agrees if its intermediates are outputs, so the difference comes from an "
                "optimisation of ONNX Runtime"
            )
        layer, last = self.first, self.layers[-1]
        outer = "the graph's own output" if layer.is_output else "between modules"
        module = f"module {layer.module}" if layer.module else outer
        others = f", or at one of {', '.join(layer.between)} before it" if layer.between else ""
        return (
            f"{self.graph}: the first to differ is node {layer.node} ({layer.operator}, {module}), by "
            f"{layer.max_abs:.2g}{others}; the last, {last.node}, by {last.max_abs:.2g}{self._rounding()}"
        )

    def _rounding(self) -> str:
        """Return advice if only outputs differ, and the layers before them came close to it."""
        inner = [layer.max_ratio for layer in self.layers if not layer.is_output]
        largest = max(layer.max_abs for layer in self.layers if layer.is_output)
        if not inner or not _CLOSE <= max(inner) <= 1 or not math.isfinite(largest):
            return ""
        allowed = 10.0 ** math.ceil(math.log10(largest))
        return (
            ". Every layer before it agrees on its own scale, so this is rounding that grew from layer to layer: if it "
            f"is small enough for you, export with --atol {allowed:g}"
        )


def explain(graph: ExportedGraph, rows: Array, tolerances: Tolerances, *, opset: int) -> Explanation:
    """Compare every value that both graphs have, on all rows (N, …)."""
    example = np.resize(rows, (2, *rows.shape[1:]))  # with one row, the exporter would fix the batch size
    captured, modules = _capture(graph, example, opset)
    layers = _layers(graph, modules)
    sizes = _Interpreter(captured, set()).sizes_of(rows[:1])
    run_torch = torch_runner(graph.module)
    worst: _Worst = (-1.0, 0, rows[:0], rows[:0])
    for group in _groups(layers, sizes):
        run_onnx = _with_values(graph, group)
        for first, batch in _batches(rows, sum(sizes.get(layer.value, 0) for layer in group)):
            found, outputs = run_onnx(batch), dict(zip(graph.output_names, run_torch(batch), strict=True))
            expected = _Interpreter(captured, set(found) - set(outputs)).values_of(batch) | outputs
            for layer in group:
                _add(layer, found[layer.value], expected[layer.value], tolerances, share=len(batch) / len(rows))
            if graph.output_names[0] in found:
                worst = max(worst, _worst(first, found, outputs, graph.output_names[0]), key=lambda known: known[0])
    return Explanation(graph.name, len(rows), layers, len(read(graph.onnx).graph), *worst[1:])


def _groups(layers: list[Layer], sizes: Mapping[str, int]) -> list[list[Layer]]:
    """Divide the layers so that the values of each group, for one row, take at most _MOST_BYTES."""
    groups: list[list[Layer]] = [[]]
    held = 0
    for layer in layers:
        size = sizes.get(layer.value, 0)
        if groups[-1] and held + size > _MOST_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(layer)
        held += size
    return groups


def _batches(rows: Array, row_bytes: int) -> Iterator[tuple[int, Array]]:
    """Yield the rows in batches whose values take at most _MOST_BYTES, each with the number of its first row."""
    size = max(1, min(_BATCH, _MOST_BYTES // max(1, row_bytes)))
    for first in range(0, len(rows), size):
        yield first, rows[first : first + size]


def _worst(first: int, found: Mapping[str, Array], outputs: Mapping[str, Array], name: str) -> _Worst:
    """Return the row of a batch whose output differs most; ``first`` is the number of its first row."""
    a, b = found[name], outputs[name]
    off = np.nan_to_num(np.abs(a.astype(np.float64) - b), nan=np.inf).reshape(len(a), -1).max(axis=1)
    row = int(off.argmax())
    return float(off[row]), first + row, a[row], b[row]


class _Interpreter(fx.Interpreter):
    """Interpreter of PyTorch's graph that keeps the results of the given nodes."""

    def __init__(self, captured: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(captured)
        self._wanted = wanted
        self._kept: dict[str, Array] = {}
        self._sizes: dict[str, int] = {}

    def values_of(self, rows: Array) -> dict[str, Array]:
        """Return the results of the given nodes for rows, by name."""
        with torch.inference_mode():
            self.run(torch.from_numpy(rows))
        return self._kept

    def sizes_of(self, row: Array) -> dict[str, int]:
        """Return the bytes of each node's result for one row, by name."""
        self.values_of(row)
        return self._sizes

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self._sizes[n.name] = result.numel() * result.element_size()
        if n.name in self._wanted:
            self._kept[n.name] = result.numpy()
        return result


def _capture(graph: ExportedGraph, example: Array, opset: int) -> tuple[fx.GraphModule, dict[str, str]]:
    """Capture PyTorch's graph as the exporter does.

    Returns it with the module of each node that gives one tensor, by name.
    """
    program = export_program(
        graph.module,
        torch.from_numpy(example),
        input_name=graph.input_name,
        output_names=graph.output_names,
        opset=opset,
        input_axes=graph.input_axes,
    )
    assert program.exported_program is not None
    captured = program.exported_program.module(check_guards=False)
    assert isinstance(captured, fx.GraphModule)
    nodes = program.exported_program.graph.nodes
    return captured, {node.name: _module_of(node) for node in nodes if _is_tensor(node)}


def _is_tensor(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)


def _module_of(node: fx.Node) -> str:
    """Return the path of a node's innermost module.

    PyTorch marks a module's second call with ``@1``, and so on.
    """
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    key, (path, _) = list(stack.items())[-1]
    call = key.rpartition("@")[2] if "@" in key else ""
    return f"{path} (call {int(call) + 1})" if call.isdigit() else str(path)


def _layers(graph: ExportedGraph, modules: Mapping[str, str]) -> list[Layer]:
    """List the layers: outputs of the ONNX graph, and values in both graphs."""
    layers: list[Layer] = []
    between: list[str] = []
    for node in read(graph.onnx).graph:
        names = [value.name for value in node.outputs if value.name]
        value = next((name for name in names if name in graph.output_names or name in modules), None)
        if value is None:
            between.append(f"{node.name} ({node.op_type})")
            continue
        is_output = value in graph.output_names
        module = "" if is_output else modules[value]
        layers.append(Layer(value, node.name or "", node.op_type, module, is_output, between))
        between = []
    return layers


def _with_values(graph: ExportedGraph, layers: list[Layer]) -> Callable[[Array], dict[str, Array]]:
    """Return a function that runs the graph with these layers as outputs."""
    values = [layer.value for layer in layers]
    session = open_on_cpu(graph.name, apply(graph.onnx, partial(expose, values=values))).session
    return lambda rows: dict(zip(values, session.run(values, {graph.input_name: rows}), strict=True))


def _add(layer: Layer, actual: Array, expected: Array, tolerances: Tolerances, *, share: float) -> None:
    """Add a batch's differences to a layer.

    ``share`` is the batch's share of all rows.
    """
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if a.shape != b.shape:
        layer.max_abs = layer.mean_abs = layer.max_ratio = np.inf
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.where(np.isfinite(a) & np.isfinite(b), np.abs(a - b), np.inf)
        scale = max(1.0, float(np.nanmax(np.abs(b), initial=0.0)))
        ratio = np.where(difference == 0, 0.0, difference / (tolerances.atol * scale + tolerances.rtol * np.abs(b)))
    layer.max_abs = max(layer.max_abs, float(difference.max(initial=0.0)))
    layer.mean_abs += share * float(difference.mean())
    layer.max_ratio = max(layer.max_ratio, float(np.nan_to_num(ratio, nan=np.inf).max(initial=0.0)))
    edges = np.array([10.0**power for power in DECADES])
    counts = np.bincount(np.searchsorted(edges, difference.ravel(), side="right"), minlength=len(edges) + 1)
    layer.histogram = [before + int(count) for before, count in zip(layer.histogram, counts, strict=True)]
