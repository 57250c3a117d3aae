"""Passes read and write ONNX files and change nothing else."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vaekit_export.compress.judge import run
from vaekit_export.passes import apply, read, write
from vaekit_export.passes.metadata import set_metadata, tidy
from vaekit_export.passes.outputs import expose
from vaekit_export.passes.shapes import constant_shapes, known_sizes

FLOAT = TensorProto.FLOAT
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def branching(weights: NDArray[np.generic]) -> onnx.ModelProto:
    """Return a model of y = x·w or x + w, depending on the sign of the sum of x.

    Both branches read w, which may be float16.
    """
    outputs = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("product", "total")]
    then, other = (
        helper.make_graph([helper.make_node(operator, ["x", "w32"], [out.name])], operator, [], [out])
        for operator, out in zip(("Mul", "Add"), outputs, strict=True)
    )
    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], "cast", to=FLOAT),
        helper.make_node("ReduceSum", ["x"], ["sum"], "reduce", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], "compare"),
        helper.make_node("If", ["positive"], ["y"], "choose", then_branch=then, else_branch=other),
    ]
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["batch", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weights, "w"), zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_subgraphs_and_weights_of_any_type_survive(dtype: type[np.generic]) -> None:
    data = branching(np.array([1, -2, 3, 0.5]).astype(dtype)).SerializeToString()
    changed = apply(data, constant_shapes, tidy)
    onnx.checker.check_model(onnx.load_from_string(changed), full_check=True)
    for rows in (X, -X):
        np.testing.assert_array_equal(run(changed, rows)[0], run(data, rows)[0])
    (weight,) = (w for w in onnx.load_from_string(changed).graph.initializer if w.name == "w")
    assert numpy_helper.to_array(weight).dtype == dtype


def test_the_same_model_gives_the_same_bytes() -> None:
    data = branching(np.ones(4, np.float32)).SerializeToString()
    told = partial(set_metadata, metadata={"b": "2", "a": "1"})
    first, second = (apply(data, told) for _ in range(2))
    assert first == second == apply(first)
    assert [entry.key for entry in onnx.load_from_string(first).metadata_props] == ["a", "b"]


def test_weights_are_not_declared_twice() -> None:
    graph = onnx.load_from_string(apply(branching(np.ones(4, np.float32)).SerializeToString())).graph
    assert not {weight.name for weight in graph.initializer} & {value.name for value in graph.value_info}


def test_tidy_leaves_nothing_that_may_name_a_machine() -> None:
    model = branching(np.ones(4, np.float32))
    path = "/home/me/secret.py"
    branch = model.graph.node[3].attribute[0].g
    for holder in (model, model.graph, model.graph.node[0], model.graph.input[0], branch, branch.node[0]):
        holder.doc_string = path
        holder.metadata_props.add(key="source", value=path)
    model.graph.initializer[0].doc_string = path
    model.ir_version = 10
    found = onnx.load_from_string(apply(model.SerializeToString(), tidy))
    assert path not in str(found)
    assert found.ir_version == 8
    np.testing.assert_array_equal(run(found.SerializeToString(), X)[0], run(model.SerializeToString(), X)[0])


def test_sizes_are_inferred_without_changing_the_model() -> None:
    model = read(branching(np.ones(4, np.float32)).SerializeToString())
    before = write(model)
    sizes = known_sizes(model)
    assert sizes["x"] == (None, 4)
    assert sizes["w32"] == (4,)
    assert write(model) == before


def test_a_value_within_can_be_an_output() -> None:
    data = branching(np.full(4, 2, np.float32)).SerializeToString()
    outputs = run(apply(data, partial(expose, values=["w32", "y"])), X)
    assert len(outputs) == 2
    np.testing.assert_array_equal(outputs[1], np.full(4, 2, np.float32))
