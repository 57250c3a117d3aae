"""Shape arithmetic that the exporter leaves behind, replaced by constants.

The exporter's own optimiser folds constants and fuses batch normalisation; the conversion to an older opset, which
comes after it, writes group normalisation with shapes that are computed anew for every batch.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def constant_shapes(model: onnx.ModelProto) -> None:
    """Where a value is reshaped to the shape of another of known sizes, the batch excepted, make that shape constant.

    In place. Nodes whose results nothing uses any longer go.
    """
    graph = model.graph
    shapes = {node.output[0]: node for node in graph.node if node.op_type == "Shape" and _is_whole(node)}
    sizes = _sizes(model)
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in shapes:
            continue
        known = sizes.get(shapes[node.input[1]].input[0])
        if known is None or sum(size is None for size in known) > 1:
            continue
        name = f"{node.output[0]}_shape"
        values = np.array([-1 if size is None else size for size in known], np.int64)
        graph.initializer.append(numpy_helper.from_array(values, name))
        node.input[1] = name
    _drop_unused(graph)


def _is_whole(node: onnx.NodeProto) -> bool:
    """Whether a Shape node gives all sizes: from the first on, without an end."""
    return all(attribute.name == "start" and attribute.i == 0 for attribute in node.attribute)


def _sizes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Sizes of every value of known rank; None where a size is free."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _drop_unused(graph: onnx.GraphProto) -> None:
    while True:
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        dead = [node for node in graph.node if not used & set(node.output)]
        if not dead:
            return
        for node in dead:
            graph.node.remove(node)
