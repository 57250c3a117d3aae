"""The doctor's probe model, which is stored as bytes because the edge has no package onnx."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from vaekit.bundle.onnx_file import read_onnx
from vaekit.diagnose.doctor import PROBE_MODEL
from vaekit_export.onnx_export import MIN_OPSET
from vaekit_export.passes.metadata import lowest_ir_version


def made_anew() -> onnx.ModelProto:
    """Build sigmoid(conv(x)) for x (batch, 1, 4, 4) with a 3x3 kernel of ninths; opset 17, IR 8."""
    shape: list[str | int | None] = ["batch", 1, 4, 4]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", ["c"], ["y"]),
        ],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.full((1, 1, 3, 3), 1 / 9, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_probe_is_what_its_words_say() -> None:
    model = onnx.load_from_string(PROBE_MODEL)
    assert model == made_anew()
    assert model.SerializeToString(deterministic=True) == PROBE_MODEL


def test_the_probe_is_valid_and_asks_no_more_than_a_bundle() -> None:
    onnx.checker.check_model(onnx.load_from_string(PROBE_MODEL), full_check=True)
    info = read_onnx(PROBE_MODEL)
    assert info.opsets == {"": MIN_OPSET}
    assert info.ir_version == lowest_ir_version(MIN_OPSET)
    assert not info.external_data
    assert info.operators == {("", "Conv"): 1, ("", "Sigmoid"): 1}


def test_the_probe_computes_what_pytorch_does() -> None:
    x = np.random.default_rng(0).random((3, 1, 4, 4), np.float32)
    (found,) = onnxruntime.InferenceSession(PROBE_MODEL, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})
    kernel = torch.full((1, 1, 3, 3), 1 / 9)
    expected = torch.sigmoid(torch.nn.functional.conv2d(torch.from_numpy(x), kernel, padding=1))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
