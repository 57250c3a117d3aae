"""Dimensions are removed, and results do not change."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vaekit.errors import ExportError
from vaekit.maths.prior import Mixture
from vaekit_export.compress.judge import run
from vaekit_export.passes import apply
from vaekit_export.passes.prune import marginal, prune_decoder, prune_encoder

FLOAT = TensorProto.FLOAT


def test_a_decoder_that_does_not_begin_linearly_is_not_pruned() -> None:
    z, y = (helper.make_tensor_value_info(name, FLOAT, ["batch", 3]) for name in "zy")
    graph = helper.make_graph([helper.make_node("Sigmoid", ["z"], ["y"])], "g", [z], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ExportError, match="first layer is Sigmoid"):
        prune_decoder(ir.from_proto(model), (0, 1), np.zeros(3))


def test_an_output_without_a_linear_head_is_gathered() -> None:
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["batch", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    pruned = apply(model.SerializeToString(), partial(prune_encoder, kept=(0, 2)))
    np.testing.assert_array_equal(run(pruned, rows)[0], run(model.SerializeToString(), rows)[0][:, [0, 2]])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed_weight", [True, False])
@pytest.mark.parametrize("operator", ["Gemm", "MatMul"])
def test_dimensions_fold_into_any_linear_first_layer(operator: str, transposed_weight: bool, bias: bool) -> None:
    if operator == "MatMul" and (bias or transposed_weight):
        pytest.skip("MatMul has neither")
    random = np.random.default_rng(0)
    weight = random.standard_normal((5, 3) if transposed_weight else (3, 5)).astype(np.float32)
    weights = [numpy_helper.from_array(weight, "w")]
    if bias:
        weights.append(numpy_helper.from_array(random.standard_normal(5).astype(np.float32), "b"))
    attributes: dict[str, Any] = (
        {"transB": int(transposed_weight), "alpha": 0.5, "beta": 2.0} if operator == "Gemm" else {}
    )
    node = helper.make_node(operator, ["z", *(w.name for w in weights)], ["y"], "first", **attributes)
    z, y = (helper.make_tensor_value_info(name, FLOAT, ["batch", size]) for name, size in (("z", 3), ("y", 5)))
    graph = helper.make_graph([node], "g", [z], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    means = np.array([0.3, -1.0, 0.7])
    rows = random.standard_normal((4, 3)).astype(np.float32)
    rows[:, 1] = means[1]
    pruned = apply(model.SerializeToString(), partial(prune_decoder, kept=(0, 2), means=means))
    np.testing.assert_allclose(
        run(pruned, rows[:, [0, 2]])[0], run(model.SerializeToString(), rows)[0], rtol=1e-5, atol=1e-6
    )


def test_marginals_of_a_mixture_have_its_moments() -> None:
    random = np.random.default_rng(0)
    cholesky = np.tril(random.standard_normal((2, 3, 3)))
    for k in range(2):
        np.fill_diagonal(cholesky[k], 1.5)
    mixture = Mixture(np.array([0.25, 0.75]), random.standard_normal((2, 3)), cholesky)
    whole = marginal(mixture, (0, 1, 2))
    np.testing.assert_allclose(whole.cholesky, cholesky, atol=1e-12)
    assert marginal(mixture, (2,)).cholesky.shape == (2, 1, 1)
