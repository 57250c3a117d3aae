"""Weights in lower precision: a smaller file that still computes in float32, at float32's speed.

Each large weight is stored as int8 or float16. A Cast restores it, for int8 followed by a Mul with the scales of its
channels. ONNX Runtime computes these constants once, when it loads the graph, and then runs its usual kernels.
(DequantizeLinear would do the same, but it is computed again in every run, and layers lose their packed weights.)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np
import onnx_ir as ir

from vaekit.types import Array
from vaekit_export.passes import add_weight, weight_of
from vaekit_export.passes.precision import WEIGHTED, LowPrecision, nodes_of

_LEAST_NUMBERS = 512  # with fewer, the nodes that restore them take as many bytes as are saved
_LARGEST_INT8 = 127
_SPARED: Final = {"int8": "fp16", "fp16": "fp32"}


def lower_weights(model: ir.Model, precision: LowPrecision, keep: Collection[str] = ()) -> None:
    """Store large weights as int8 or float16.

    int8 weights are symmetric, with a scale s = max|w| / 127 for each output channel (Krishnamoorthi, "Quantizing deep
    convolutional networks for efficient inference", 2018, sections 2.2 and 3.1). The full range of ±127 is
    safe, because the weights become floats again before they are multiplied. The layers in ``keep`` get float16 instead
    of int8, or float32 instead of float16. Weights beyond the range of float16 stay float32.
    """
    graph = model.graph
    axes = {node.inputs[1]: _channel_axis(node) for node in graph if node.op_type in WEIGHTED}
    kept = set(nodes_of(model, keep))
    spared = {value for node in graph if node.name in kept for value in node.inputs}
    restoring: list[ir.Node] = []
    for weight in list(graph.initializers.values()):
        values = weight_of(weight)
        if weight not in axes or weight.dtype != ir.DataType.FLOAT or values is None or values.size < _LEAST_NUMBERS:
            continue
        to = _SPARED[precision] if weight in spared else precision
        if to == "int8":
            restoring += _from_int8(graph, weight, values, axes[weight])
        elif to == "fp16" and np.abs(values).max() <= np.finfo(np.float16).max:
            restoring += _from_fp16(graph, weight, values)
    if restoring:
        graph.insert_before(graph[0], restoring)


def _channel_axis(node: ir.Node) -> int:
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}[node.op_type]


def _from_int8(graph: ir.Graph, weight: ir.Value, values: Array, axis: int) -> list[ir.Node]:
    """Replace a weight by int8 and scales; return the restoring nodes."""
    others = tuple(index for index in range(values.ndim) if index != axis % values.ndim)
    scale = np.abs(values).max(others, keepdims=True) / np.float32(_LARGEST_INT8)
    scale[scale == 0] = 1.0
    integers = add_weight(graph, f"{weight.name}_int8", np.rint(values / scale).astype(np.int8))
    scales = add_weight(graph, f"{weight.name}_scale", scale.astype(np.float32))
    floats = ir.val(f"{weight.name}_integers")
    return [
        _cast(f"{weight.name}_Cast", integers, floats),
        ir.node("Mul", [floats, scales], outputs=[_replaced(graph, weight)], name=f"{weight.name}_Mul"),
    ]


def _from_fp16(graph: ir.Graph, weight: ir.Value, values: Array) -> list[ir.Node]:
    """Replace a weight by float16; return the restoring node."""
    stored = add_weight(graph, f"{weight.name}_fp16", values.astype(np.float16))
    return [_cast(f"{weight.name}_Cast", stored, _replaced(graph, weight))]


def _cast(name: str, stored: ir.Value, output: ir.Value) -> ir.Node:
    return ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, outputs=[output], name=name)


def _replaced(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """Replace a weight by a computed value of the same name."""
    assert weight.name is not None
    restored = ir.val(weight.name)
    weight.replace_all_uses_with(restored)
    del graph.initializers[weight.name]
    return restored
