"""Weights alone in lower precision: a smaller file that computes in float32, at float32's speed on any processor.

Each large weight is stored as int8 or float16, and a Cast, for int8 also a Mul with the scales of its channels, gives
it back. ONNX Runtime computes these constants once as it loads the graph, and then runs the kernels that it would have
run. (DequantizeLinear says the same, but is computed anew in every run, and layers lose their packed weights.)
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vaekit.types import Array
from vaekit_export.passes.precision import WEIGHTED, nodes_of

_LEAST_NUMBERS = 512  # in fewer, what gives them back takes as many bytes as it saves
_LARGEST_INT8 = 127
_SPARED = {"int8": "fp16", "fp16": "fp32"}


def lower_weights(data: bytes, precision: str, keep: Collection[str] = ()) -> bytes:
    """A graph whose large weights are stored as ``int8``, symmetric for each output channel, or as ``fp16``.

    An int8 weight is q·s with s = max|w| / 127 over its channel (Krishnamoorthi, "Quantizing deep convolutional
    networks for efficient inference", 2018, sections 2.2 and 3.1). All eight bits are used, as nothing adds up the
    products in 16. ``keep`` names layers whose weights are spared: float16 in place of int8, float32 in place of
    float16. Weights beyond the range of float16 stay float32.
    """
    model = onnx.load_from_string(data)
    graph = model.graph
    axes = {node.input[1]: _channel_axis(node) for node in graph.node if node.op_type in WEIGHTED}
    kept = set(nodes_of(data, keep))
    spared = {name for node in graph.node if node.name in kept for name in node.input}
    restoring: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []
    for weight in graph.initializer:
        nodes: list[onnx.NodeProto] = []
        tensors = [weight]
        if weight.name in axes and weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) >= _LEAST_NUMBERS:
            values = numpy_helper.to_array(weight)
            to = _SPARED[precision] if weight.name in spared else precision
            if to == "int8":
                nodes, tensors = _as_int8(weight.name, values, axes[weight.name])
            elif to == "fp16" and np.abs(values).max() <= np.finfo(np.float16).max:
                nodes, tensors = _as_fp16(weight.name, values)
        restoring.extend(nodes)
        stored.extend(tensors)
    restoring.extend(graph.node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(restoring)
    graph.initializer.extend(stored)
    lowered: bytes = model.SerializeToString(deterministic=True)
    return lowered


def _channel_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}[node.op_type]


def _as_int8(name: str, values: Array, axis: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that give a weight back under its own name, and what they read."""
    others = tuple(index for index in range(values.ndim) if index != axis % values.ndim)
    scale = np.abs(values).max(others, keepdims=True) / np.float32(_LARGEST_INT8)
    scale[scale == 0] = 1.0
    integers = np.rint(values / scale).astype(np.int8)
    parts = {f"{name}_int8": integers, f"{name}_scale": scale.astype(np.float32)}
    nodes = [
        helper.make_node("Cast", [f"{name}_int8"], [f"{name}_integers"], f"{name}_Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_integers", f"{name}_scale"], [name], f"{name}_Mul"),
    ]
    return nodes, [numpy_helper.from_array(part, key) for key, part in parts.items()]


def _as_fp16(name: str, values: Array) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The same for float16."""
    halves = numpy_helper.from_array(values.astype(np.float16), f"{name}_fp16")
    return [helper.make_node("Cast", [halves.name], [name], f"{name}_Cast", to=TensorProto.FLOAT)], [halves]
