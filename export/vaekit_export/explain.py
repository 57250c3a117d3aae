"""Where ONNX Runtime and PyTorch part ways: every intermediate compared, and the first node that differs named.

All values of an ONNX graph become outputs of one ONNX Runtime session; forward hooks take what PyTorch's modules
return. The exporter says which value is the output of which module.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from vaekit.errors import MissingExtraError, VaekitError
from vaekit.ort.session import open_on_cpu
from vaekit.output.plots import new_figure, save_figure
from vaekit.system.files import replacing_folder
from vaekit.types import Array
from vaekit_export.onnx_export import export_program
from vaekit_export.parity import Graph, Tolerances

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT, TABLE, PLOT = "parity.json", "parity.txt", "parity.png"

_BATCH = 32
_DECADES = range(-10, 3)  # powers of ten between which absolute differences are counted


@dataclass
class Layer:
    """A value that both runtimes compute, and how far they lie apart over all rows."""

    value: str
    """The value's name in the ONNX graph."""
    node: str
    """The node that computes it."""
    operator: str
    module: str
    """Path of the PyTorch module that returns it; "" is the graph as a whole."""
    between: list[str]
    """Nodes since the layers before it that no module answers to, each as ``name (operator)``: it is one of them, or
    this node, that differs first where this layer does."""
    max_abs: float = 0.0
    """Largest |a − b|; infinite where a result is not finite."""
    mean_abs: float = 0.0
    max_ratio: float = 0.0
    """Largest |a − b| / (atol · max(1, max|b|) + rtol · |b|): the layer agrees where this is at most 1."""
    histogram: list[int] = field(default_factory=lambda: [0] * (len(_DECADES) + 1))
    """Elements by |a − b|: under 1e-10, a decade each up to 1e2, and what is beyond."""

    @property
    def agrees(self) -> bool:
        """Whether every element does."""
        return self.max_ratio <= 1


@dataclass(frozen=True)
class Explanation:
    """One graph against its module, layer by layer in the order of the graph."""

    graph: str
    rows: int
    layers: list[Layer]
    nodes: int
    """Of the ONNX graph; those without a layer of their own are counted with the next one that has."""
    worst_row: int
    """The row whose outputs differ most."""
    worst_onnx: Array
    """Its first output by ONNX Runtime."""
    worst_torch: Array
    """The same by PyTorch."""

    @property
    def first(self) -> Layer | None:
        """The first layer that differs; None where all agree."""
        return next((layer for layer in self.layers if not layer.agrees), None)

    def headline(self) -> str:
        """In a line, where the error begins and how it grows."""
        if self.first is None:
            return (
                f"{self.graph}: every layer agrees once its intermediates are outputs, so that what differs comes from "
                "an optimisation of ONNX Runtime's"
            )
        layer, last = self.first, self.layers[-1]
        module = f"module {layer.module}" if layer.module else "the graph's own output"
        others = f", or at one of {', '.join(layer.between)} before it" if layer.between else ""
        return (
            f"{self.graph}: the first to differ is node {layer.node} ({layer.operator}, {module}), by "
            f"{layer.max_abs:.2g}{others}; the last, {last.node}, by {last.max_abs:.2g}"
        )


def explain(graph: Graph, rows: Array, tolerances: Tolerances, *, opset: int) -> Explanation:
    """Compare every value that a module of the graph returns, on all rows (N, …)."""
    model = onnx.load_from_string(graph.onnx)
    modules = _module_values(graph, np.resize(rows, (2, *rows.shape[1:])), opset)  # of one row, the batch is no axis
    layers = _layers(model, modules)
    run = _everything(model, graph, [layer.value for layer in layers])
    worst = (-1.0, 0, rows[:0], rows[:0])
    for first in range(0, len(rows), _BATCH):
        batch = rows[first : first + _BATCH]
        found = run(batch)
        expected = _hooked(graph.module, batch, {layer.value: modules[layer.value] for layer in layers})
        for layer in layers:
            _add(layer, found[layer.value], expected[layer.value], tolerances, share=len(batch) / len(rows))
        output = graph.output_names[0]
        a, b = found[output], expected[output]
        off = np.nan_to_num(np.abs(a.astype(np.float64) - b), nan=np.inf).reshape(len(batch), -1).max(axis=1)
        if off.max() > worst[0]:
            row = int(off.argmax())
            worst = (float(off[row]), first + row, a[row], b[row])
    return Explanation(graph.name, len(rows), layers, len(model.graph.node), *worst[1:])


def write_report(folder: Path, explanations: Sequence[Explanation], tolerances: Tolerances) -> None:
    """Write parity.json, parity.txt and, with matplotlib, parity.png, in place of an older report.

    Raises VaekitError where something else stands there, or it cannot be written.
    """
    if folder.exists() and not (folder / REPORT).is_file():
        raise VaekitError(f"{folder} exists and is not a parity report: move it away")
    with replacing_folder(folder) as temporary:
        document = {
            "atol": tolerances.atol,
            "rtol": tolerances.rtol,
            "decades": list(_DECADES),
            "graphs": [_document(explanation) for explanation in explanations],
        }
        (temporary / REPORT).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        lines = [line for explanation in explanations for line in (*table(explanation), "")]
        (temporary / TABLE).write_text("\n".join(lines), encoding="utf-8")
        try:
            _draw(explanations, temporary / PLOT)
        except MissingExtraError:
            return


def table(explanation: Explanation) -> list[str]:
    """The layers as lines of text, the first that differs marked, and the headline."""
    rows = [("", "node", "operator", "module", "max |a - b|", "mean |a - b|", "of allowed")]
    for layer in explanation.layers:
        mark = "->" if layer is explanation.first else "" if layer.agrees else "!"
        figures = (f"{layer.max_abs:.2e}", f"{layer.mean_abs:.2e}", f"x{layer.max_ratio:.3g}")
        rows.append((mark, layer.node, layer.operator, layer.module or "(output)", *figures))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    covered = f"{len(explanation.layers)} layers over {explanation.nodes} nodes, {explanation.rows} rows"
    verdict = explanation.headline() if explanation.first else f"{explanation.graph}: every layer agrees"
    return [*lines, f"{verdict} ({covered})"]


def _document(explanation: Explanation) -> dict[str, Any]:
    first = explanation.first
    return {
        "graph": explanation.graph,
        "rows": explanation.rows,
        "nodes": explanation.nodes,
        "first": None if first is None else first.node,
        "headline": explanation.headline() if first else None,
        "worst_row": explanation.worst_row,
        "layers": [
            {key: None if value == np.inf else value for key, value in dataclasses.asdict(layer).items()}
            | {"agrees": layer.agrees}
            for layer in explanation.layers
        ],
    }


def _module_values(graph: Graph, example: Array, opset: int) -> dict[str, tuple[str, int]]:
    """By value of the ONNX graph, the path of the module that returns it, and which of its outputs it is.

    The exporter names values as it names the nodes of its own graph, and these know the modules that they come from. A
    module's output is the one node of its that others use. Left out, but for the whole, are modules that return several
    or are called again.
    """
    once = _called_once(graph.module, example)
    program = export_program(
        graph.module,
        torch.from_numpy(example),
        input_name=graph.input_name,
        output_names=graph.output_names,
        opset=opset,
        input_axes=graph.input_axes,
    )
    assert program.exported_program is not None
    nodes = list(program.exported_program.graph.nodes)
    scopes = {node: [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()] for node in nodes}
    returned: dict[str, set[Any]] = {}
    for node in nodes:
        for path in scopes[node]:
            if node.op == "call_function" and any(path not in scopes[user] for user in node.users):
                returned.setdefault(path, set()).add(node)
    values = {}
    for path, outputs in sorted(returned.items(), key=lambda item: item[0].count(".")):  # the innermost comes last
        if len(outputs) == 1 and path and path in once:
            values[outputs.pop().name] = (path, 0)
    return values | {name: ("", place) for place, name in enumerate(graph.output_names)}


def _layers(model: onnx.ModelProto, modules: dict[str, tuple[str, int]]) -> list[Layer]:
    layers: list[Layer] = []
    between: list[str] = []
    for node in model.graph.node:
        value = next((name for name in node.output if name in modules), None)
        if value is None:
            between.append(f"{node.name} ({node.op_type})")
            continue
        layers.append(Layer(value, node.name, node.op_type, modules[value][0], between))
        between = []
    return layers


def _everything(model: onnx.ModelProto, graph: Graph, values: list[str]) -> Callable[[Array], dict[str, Array]]:
    """A function that runs a graph with the values as its outputs, in one session."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    declared = {output.name for output in opened.graph.output}
    opened.graph.output.extend(helper.make_empty_tensor_value_info(value) for value in values if value not in declared)
    session = open_on_cpu(graph.name, opened.SerializeToString()).session
    return lambda rows: dict(zip(values, session.run(values, {graph.input_name: rows}), strict=True))


def _hooked(module: nn.Module, rows: Array, wanted: dict[str, tuple[str, int]]) -> dict[str, Array]:
    """What modules return for rows, by the names of the values that these are in the ONNX graph."""
    returned: dict[str, tuple[Tensor, ...]] = {}
    module.eval()
    with torch.inference_mode(), _hooks(module, {path for path, _ in wanted.values()}, returned):
        module(torch.from_numpy(rows))
    return {value: returned[path][place].numpy() for value, (path, place) in wanted.items()}


def _called_once(module: nn.Module, example: Array) -> set[str]:
    """Paths of the modules that are called once a pass."""
    calls: Counter[str] = Counter()
    handles = [
        inner.register_forward_hook(lambda *called, path=path: calls.update([path]))
        for path, inner in module.named_modules()
    ]
    module.eval()
    with torch.inference_mode():
        module(torch.from_numpy(example))
    for handle in handles:
        handle.remove()
    return {path for path, count in calls.items() if count == 1}


@contextmanager
def _hooks(module: nn.Module, paths: set[str], returned: dict[str, tuple[Tensor, ...]]) -> Iterator[None]:
    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(called: nn.Module, inputs: Any, output: Any) -> None:
            # A copy: the next module may write over it.
            returned[path] = tuple(part.clone() for part in ((output,) if isinstance(output, Tensor) else output))

        return hook

    handles = [inner.register_forward_hook(keep(path)) for path, inner in module.named_modules() if path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(layer: Layer, actual: Array, expected: Array, tolerances: Tolerances, *, share: float) -> None:
    """Count a batch's differences, which is ``share`` of all rows, in a layer."""
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
    edges = np.array([10.0**power for power in _DECADES])
    counts = np.bincount(np.searchsorted(edges, difference.ravel(), side="right"), minlength=len(edges) + 1)
    layer.histogram = [before + int(count) for before, count in zip(layer.histogram, counts, strict=True)]


def _draw(explanations: Sequence[Explanation], path: Path) -> None:
    """Error by layer, histograms by layer, and the worst image beside its twin."""
    figure = new_figure(13, 4.5 * len(explanations))
    for row, explanation in zip(figure.subplots(len(explanations), 3, squeeze=False), explanations, strict=True):
        _draw_growth(row[0], explanation)
        _draw_histograms(row[1], explanation)
        _draw_worst(row[2], explanation)
    save_figure(figure, path)


def _draw_growth(axes: Axes, explanation: Explanation) -> None:
    places = range(len(explanation.layers))
    names = [f"{layer.operator} {layer.module}".strip() for layer in explanation.layers]
    for label, numbers in (
        ("largest", [layer.max_abs for layer in explanation.layers]),
        ("mean", [layer.mean_abs for layer in explanation.layers]),
    ):
        axes.semilogy(places, np.clip(np.nan_to_num(numbers, posinf=1e30), 1e-12, 1e30), marker="o", label=label)
    if explanation.first is not None:
        axes.axvline(explanation.layers.index(explanation.first), color="red", linestyle=":", label="first to differ")
    axes.set_xticks(places, names, rotation=60, ha="right", fontsize="x-small")
    axes.set_ylabel("|ONNX Runtime - PyTorch|")
    axes.set_title(f"{explanation.graph}: error by layer")
    axes.legend(fontsize="small")


def _draw_histograms(axes: Axes, explanation: Explanation) -> None:
    counts = np.array([layer.histogram for layer in explanation.layers], np.float64)
    axes.imshow(counts / counts.sum(axis=1, keepdims=True), aspect="auto", cmap="Blues")
    labels = ["less", *(f"1e{power}" for power in list(_DECADES)[1:]), "more"]
    axes.set_xticks(range(len(labels)), labels, rotation=60, fontsize="x-small")
    axes.set_yticks(range(len(counts)), [layer.node for layer in explanation.layers], fontsize="x-small")
    axes.set_title("share of elements with a difference under")


def _draw_worst(axes: Axes, explanation: Explanation) -> None:
    a, b = explanation.worst_onnx, explanation.worst_torch
    if a.ndim == 3 and a.shape[0] in (1, 3):
        gap = np.ones((a.shape[0], a.shape[1], 1), np.float32)
        pair = np.nan_to_num(np.concatenate((a, gap, b), axis=2)).clip(0, 1).transpose(1, 2, 0)
        axes.imshow(pair if pair.shape[2] == 3 else pair[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(f"row {explanation.worst_row}: ONNX Runtime, PyTorch")
        return
    axes.plot(b.ravel(), label="PyTorch", linewidth=3, alpha=0.5)
    axes.plot(a.ravel(), label="ONNX Runtime")
    axes.set_title(f"row {explanation.worst_row}: the first output")
    axes.legend(fontsize="small")
