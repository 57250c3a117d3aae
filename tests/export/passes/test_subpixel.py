"""Transposed convolutions are replaced by equivalent ordinary ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vaekit_export.compress.judge import run
from vaekit_export.passes import read, write
from vaekit_export.passes.subpixel import as_convolutions

FLOAT = TensorProto.FLOAT


def transposed(kernel: tuple[int, int], stride: int, pads: list[int], *, bias: bool, output_padding: int = 0) -> bytes:
    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.standard_normal((3, 2, *kernel)).astype(np.float32), "w")]
    if bias:
        weights.append(numpy_helper.from_array(random.standard_normal(2).astype(np.float32), "b"))
    extra: dict[str, Any] = {"output_padding": [output_padding] * 2} if output_padding else {}
    node = helper.make_node(
        "ConvTranspose", ["x", *(w.name for w in weights)], ["y"], "up", strides=[stride] * 2, pads=pads, **extra
    )
    x = helper.make_tensor_value_info("x", FLOAT, ["batch", 3, 5, 4])
    y = helper.make_tensor_value_info("y", FLOAT, None)
    graph = helper.make_graph([node], "up", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = onnx.shape_inference.infer_shapes(model).SerializeToString()
    return data


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [
        ((4, 4), 2, [1, 1, 1, 1]),
        ((3, 3), 2, [1, 1, 1, 1]),
        ((4, 3), 2, [1, 1, 1, 1]),
        ((2, 2), 2, [0, 0, 0, 0]),
        ((5, 5), 3, [2, 1, 1, 2]),
        ((3, 3), 1, [1, 1, 1, 1]),
        ((1, 1), 2, [0, 0, 0, 0]),
    ],
)
def test_a_transposed_convolution_is_an_ordinary_one_with_its_pixels_put_in_place(
    kernel: tuple[int, int], stride: int, pads: list[int], bias: bool
) -> None:
    data = transposed(kernel, stride, pads, bias=bias)
    model = read(data)
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 4)).astype(np.float32)
    assert as_convolutions(model) == 1
    rewritten = write(model)
    onnx.checker.check_model(onnx.load_from_string(rewritten), full_check=True)
    assert "ConvTranspose" not in [node.op_type for node in model.graph]
    (expected,), (actual,) = run(data, x), run(rewritten, x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_other_transposed_convolutions_are_left_alone() -> None:
    proto = onnx.load_from_string(transposed((1, 1), 2, [0, 0, 0, 0], bias=False, output_padding=1))
    proto.graph.node[0].attribute.append(helper.make_attribute("dilations", [2, 2]))
    model = read(proto.SerializeToString())
    before = write(model)
    assert as_convolutions(model) == 0
    assert write(model) == before
