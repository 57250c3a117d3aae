"""Weights alone in lower precision: a smaller file that computes in float32, at float32's speed on any processor.

Each large weight is stored as int8 or float16, and a Cast, for int8 also a Mul with the scales of its channels, gives
it back. ONNX Runtime computes these constants once as it loads the graph, and then runs the kernels that it would have
run. (DequantizeLinear says the same, but is computed anew in every run, and layers lose their packed weights.)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np
import onnx_ir as ir

from vaekit.types import Array
from vaekit_export.passes import add_weight, weight_of
from vaekit_export.passes.precision import WEIGHTED, LowPrecision, nodes_of

_LEAST_NUMBERS = 512  # in fewer, what gives them back takes as many bytes as it saves
_LARGEST_INT8 = 127
_SPARED: Final = {"int8": "fp16", "fp16": "fp32"}


def lower_weights(model: ir.Model, precision: LowPrecision, keep: Collection[str] = ()) -> None:
    """Store large weights as ``int8``, symmetric for each output channel, or as ``fp16``.

    An int8 weight is q·s with s = max|w| / 127 over its channel (Krishnamoorthi, "Quantizing deep convolutional
    networks for efficient inference", 2018, sections 2.2 and 3.1). All eight bits are used, as nothing adds up the
    products in 16. ``keep`` names layers whose weights are spared: float16 in place of int8, float32 in place of
    float16. Weights beyond the range of float16 stay float32.
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
    """Put an int8 weight and its scales in a weight's place: the nodes that give it back under its own name."""
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
    """The same for float16."""
    stored = add_weight(graph, f"{weight.name}_fp16", values.astype(np.float16))
    return [_cast(f"{weight.name}_Cast", stored, _replaced(graph, weight))]


def _cast(name: str, stored: ir.Value, output: ir.Value) -> ir.Node:
    return ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, outputs=[output], name=name)


def _replaced(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """A value of a weight's name that its users take from now on in its place."""
    assert weight.name is not None
    restored = ir.val(weight.name)
    weight.replace_all_uses_with(restored)
    del graph.initializers[weight.name]
    return restored
