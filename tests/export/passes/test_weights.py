"""Weights are stored at lower precision and restored as float32 constants when loaded."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vaekit_export.compress.judge import array_psnr, run
from vaekit_export.passes import apply, read
from vaekit_export.passes.precision import LowPrecision, layers_of
from vaekit_export.passes.weights import lower_weights

# operator, shape of x, shape of the weight, the weight's axis of output channels, attributes
CASES: list[tuple[str, tuple[int, ...], tuple[int, ...], int, dict[str, Any]]] = [
    ("Conv", (2, 8, 5, 5), (16, 8, 3, 3), 0, {"pads": [1, 1, 1, 1]}),
    ("Conv", (2, 32, 5, 5), (64, 8, 3, 3), 0, {"group": 4}),
    ("ConvTranspose", (2, 16, 5, 5), (16, 8, 4, 4), 1, {"strides": [2, 2]}),
    ("Gemm", (2, 40), (40, 20), 1, {}),
    ("Gemm", (2, 40), (20, 40), 0, {"transB": 1}),
    ("MatMul", (2, 3, 40), (40, 20), 1, {}),
]


def lowered_weights(data: bytes, precision: LowPrecision, keep: Collection[str] = ()) -> bytes:
    return apply(data, partial(lower_weights, precision=precision, keep=keep))


def model_of(operator: str, x: tuple[int, ...], weight: NDArray[np.float32], attributes: dict[str, Any]) -> bytes:
    """Return a model y = f(x) + f(x) with two nodes that share a weight."""
    nodes = [
        *(helper.make_node(operator, ["x", "w"], [f"y{i}"], f"node{i}", **attributes) for i in range(2)),
        helper.make_node("Add", ["y0", "y1"], ["y"], "sum"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x[1:]])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = onnx.shape_inference.infer_shapes(model).SerializeToString()
    return data


def restored(data: bytes, name: str) -> NDArray[np.float32]:
    """Return a restored weight, computed by ONNX's reference evaluator."""
    model = onnx.load_from_string(data)
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    x = model.graph.input[0]
    sizes = [dim.dim_value or 1 for dim in x.type.tensor_type.shape.dim]
    weight: Any = ReferenceEvaluator(model).run([name], {x.name: np.zeros(sizes, np.float32)})[0]  # type: ignore[index]
    return np.asarray(weight)


@pytest.mark.parametrize(("operator", "x", "shape", "axis", "attributes"), CASES)
@settings(deadline=None)  # a session's time varies
@given(seed=st.integers(0, 2**32 - 1), magnitude=st.floats(1e-6, 1e6))
def test_int8_is_off_by_half_a_step_of_its_channel_at_most(
    operator: str,
    x: tuple[int, ...],
    shape: tuple[int, ...],
    axis: int,
    attributes: dict[str, Any],
    seed: int,
    magnitude: float,
) -> None:
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(magnitude)
    np.moveaxis(weight, axis, 0)[0] = 0  # a channel of zeros
    np.moveaxis(weight, axis, 0)[1] *= 100
    lowered = lowered_weights(model_of(operator, x, weight, attributes), "int8")
    others = tuple(i for i in range(weight.ndim) if i != axis)
    step = np.abs(weight).max(others, keepdims=True) / 127
    assert (np.abs(restored(lowered, "w") - weight) <= 0.5001 * step).all()


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize(("operator", "x", "shape", "axis", "attributes"), CASES)
def test_results_stay_and_the_file_shrinks(
    operator: str,
    x: tuple[int, ...],
    shape: tuple[int, ...],
    axis: int,
    attributes: dict[str, Any],
    precision: LowPrecision,
) -> None:
    random = np.random.default_rng(0)
    data = model_of(operator, x, random.standard_normal(shape).astype(np.float32), attributes)
    rows = random.standard_normal(x).astype(np.float32)
    lowered = lowered_weights(data, precision)
    onnx.checker.check_model(onnx.load_from_string(lowered), full_check=True)
    (expected,), (actual,) = run(data, rows), run(lowered, rows)
    assert array_psnr(actual, expected, float(np.ptp(expected))) > (45 if precision == "int8" else 75)
    assert len(lowered) < len(data)


def test_once_loaded_the_operators_are_those_of_float32(tiny_bundle: Path, tmp_path: Path) -> None:
    data = (tiny_bundle / "decoder.onnx").read_bytes()
    found = []
    for index, graph in enumerate((data, lowered_weights(data, "int8"), lowered_weights(data, "fp16"))):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{index}.onnx")
        options.log_severity_level = 3  # hides the warning that the file only suits this machine
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found.append([node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node])
    assert found[0] == found[1] == found[2]
    assert "Cast" not in found[0]


def test_layers_that_are_kept_and_small_weights_stay_as_they_are(tiny_bundle: Path) -> None:
    data = (tiny_bundle / "decoder.onnx").read_bytes()
    layers = list(layers_of(read(data)))
    assert lowered_weights(data, "fp16", keep=layers) == apply(data)
    one = onnx.load_from_string(lowered_weights(data, "int8", keep=layers[1:]))
    operators = [node.op_type for node in one.graph.node]
    assert (operators.count("Cast"), operators[:3].count("Mul")) == (2, 1)
    kinds = {weight.name: weight.data_type for weight in one.graph.initializer}
    assert {TensorProto.INT8, TensorProto.FLOAT16} < set(kinds.values())
    small = model_of("Gemm", (2, 10), np.ones((10, 10), np.float32), {})
    assert lowered_weights(small, "int8") == apply(small)


def test_a_weight_that_a_kept_layer_shares_is_spared() -> None:
    data = model_of("Gemm", (2, 40), np.ones((40, 20), np.float32), {})
    assert lowered_weights(data, "int8", keep=["node1"]) == lowered_weights(data, "fp16")


def test_numbers_beyond_float16_stay_as_they_are() -> None:
    data = model_of("Gemm", (2, 40), np.full((40, 20), 1e6, np.float32), {})
    assert lowered_weights(data, "fp16") == apply(data)
    assert np.isfinite(run(lowered_weights(data, "int8", keep=["node0"]), np.ones((2, 40), np.float32))[0]).all()
