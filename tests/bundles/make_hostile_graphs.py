"""Make graphs that misbehave, in place of the decoder of tests/bundles/tiny: z (batch, 4) to image (batch, 1, 8, 8)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).parents[1] / "edge" / "ort" / "graphs"


def constant(name: str, value: object, dtype: type) -> onnx.TensorProto:
    """Return an initializer."""
    return numpy_helper.from_array(np.array(value, dtype), name)


def endless() -> list[onnx.NodeProto]:
    """Return a loop of 2⁶² rounds, each of which adds 1 to z."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["before", "one"], ["after"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, ["batch", 4]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, ["batch", 4]),
        ],
    )
    return [helper.make_node("Loop", ["rounds", "true", "z"], ["looped"], body=body), *image_of("looped")]


def greedy() -> list[onnx.NodeProto]:
    """Return the sum of 2³⁰ numbers, which take four gigabytes and their doubles as many."""
    return [
        helper.make_node("Slice", ["z", "zero", "one_index", "both_axes"], ["first"]),
        helper.make_node("Expand", ["first", "huge"], ["many"]),
        helper.make_node("Add", ["many", "many"], ["more"]),
        helper.make_node("ReduceSum", ["more", "both_axes"], ["sum"], keepdims=1),
        helper.make_node("Add", ["z", "sum"], ["looped"]),
        *image_of("looped"),
    ]


def wrong() -> list[onnx.NodeProto]:
    """Return images of another size than is declared, (batch, 1, 1, 4)."""
    return [helper.make_node("Reshape", ["z", "small"], ["image"])]


def flat() -> list[onnx.NodeProto]:
    """Return pixels without the axes of an image."""
    return [helper.make_node("Reshape", ["z", "one_axis"], ["image"])]


def nan() -> list[onnx.NodeProto]:
    """Return images of NaN."""
    return [helper.make_node("Mul", ["z", "not_a_number"], ["looped"]), *image_of("looped")]


def future() -> list[onnx.NodeProto]:
    """Return images by operators as they will be in the operator set 99."""
    return image_of("z")


def image_of(code: str) -> list[onnx.NodeProto]:
    """Return nodes that spread a code over an image."""
    return [
        helper.make_node("Sigmoid", [code], ["between"]),
        helper.make_node("Reshape", ["between", "small"], ["narrow"]),
        helper.make_node("Expand", ["narrow", "wide"], ["wider"]),
        helper.make_node("Resize", ["wider", "", "scales"], ["image"], mode="nearest"),
    ]


def main() -> None:
    """Write the graphs."""
    kept = [
        constant("rounds", 1 << 62, np.int64),
        constant("true", True, np.bool_),
        constant("not_a_number", np.nan, np.float32),
        constant("one", 1, np.float32),
        constant("zero", [0, 0], np.int64),
        constant("one_index", [1, 1], np.int64),
        constant("both_axes", [0, 1], np.int64),
        constant("huge", [1 << 15, 1 << 15], np.int64),
        constant("one_axis", [-1], np.int64),
        constant("small", [-1, 1, 1, 4], np.int64),
        constant("wide", [1, 1, 8, 4], np.int64),
        constant("scales", [1, 1, 1, 2], np.float32),
    ]
    for made in (endless, greedy, wrong, flat, nan, future):
        nodes = made()
        text = str(nodes)
        graph = helper.make_graph(
            nodes,
            made.__name__,
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
            [tensor for tensor in kept if f'"{tensor.name}"' in text],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 99 if made is future else 17)], ir_version=8
        )
        (FOLDER / f"{made.__name__}.onnx").write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
