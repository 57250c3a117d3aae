"""The parity gate passes graphs that agree with PyTorch, and no others."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vaekit.errors import ExportError, ParityError, UsageError
from vaekit.types import Array
from vaekit_export.onnx_export import ExportedGraph
from vaekit_export.parity import BATCH_SIZES, BatchDependenceError, Plan, Result, Tolerances, check_parity, rows_to_run

MakeGraph = Callable[..., ExportedGraph]


def latents(rows: int = 70) -> Array:
    return np.random.default_rng(0).standard_normal((rows, 2), np.float32)


def images(rows: int = 70) -> Array:
    return np.random.default_rng(0).random((rows, 3, 16, 13), np.float32)


def with_onnx(graph: ExportedGraph, change: Callable[[onnx.ModelProto], None]) -> ExportedGraph:
    model = onnx.load_from_string(graph.onnx)
    change(model)
    return ExportedGraph(graph.name, graph.module, model.SerializeToString(), graph.input_name, graph.output_names)


def test_what_agrees_passes_and_says_by_how_much(make_graph: MakeGraph) -> None:
    tolerances = Tolerances()
    for name, inputs, outputs in (("encoder", images(), {"mu", "logvar"}), ("decoder", latents(), {"image"})):
        results = check_parity(make_graph(name), {"some": inputs, "few": inputs[:3]}, tolerances)
        assert {(r.graph, r.output, r.inputs) for r in results} == {
            (name, o, i) for o in outputs for i in ("some", "few")
        }
        for result in results:
            assert result.count == {"some": 70, "few": 3}[result.inputs]
            assert 0 <= result.max_ratio < 0.5
            assert 0 <= result.max_abs < 1e-4
            worst = result.worst
            assert worst.row < result.count
            assert worst.batch_size in BATCH_SIZES
            difference = abs(worst.onnxruntime - worst.torch)
            allowed = tolerances.atol + tolerances.rtol * abs(worst.torch)
            assert result.max_ratio == pytest.approx(difference / allowed)


def weights_of(graph: ExportedGraph) -> list[str]:
    """Return the names of the weights. Scalars, such as the bounds of logvar, do not count."""
    initializers = onnx.load_from_string(graph.onnx).graph.initializer
    return [weight.name for weight in initializers if weight.data_type == TensorProto.FLOAT and weight.dims]


@pytest.mark.parametrize(("name", "inputs"), [("encoder", images()), ("decoder", latents())])
def test_any_weight_that_is_altered_in_the_file_is_noticed(make_graph: MakeGraph, name: str, inputs: Array) -> None:
    graph = make_graph(name)
    weights = weights_of(graph)
    assert len(weights) >= 4
    for altered in weights:

        def alter(model: onnx.ModelProto, altered: str = altered) -> None:
            (weight,) = (weight for weight in model.graph.initializer if weight.name == altered)
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.01), altered))

        with pytest.raises(ParityError):
            check_parity(with_onnx(graph, alter), {"some": inputs}, Tolerances())


def test_the_complaint_names_where_and_what(make_graph: MakeGraph) -> None:
    def alter(model: onnx.ModelProto) -> None:
        last = model.graph.node[-1]
        assert last.op_type == "Sigmoid"
        model.graph.node.append(helper.make_node("Add", ["undistorted", "distortion"], ["image"]))
        last.output[0] = "undistorted"
        distortion = np.zeros((3, 16, 13), np.float32)
        distortion[2, 15, 12] = 0.25
        model.graph.initializer.append(numpy_helper.from_array(distortion, "distortion"))

    with pytest.raises(ParityError) as caught:
        check_parity(with_onnx(make_graph("decoder"), alter), {"prior samples": latents()}, Tolerances())
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in message
    for words in ("nothing was published", "decoder", "image[2, 15, 12]", "prior samples", "batch size", "atol 1e-05"):
        assert words in message, message


def test_a_module_altered_after_its_export_is_noticed(make_graph: MakeGraph) -> None:
    graph = make_graph("encoder")
    module = copy.deepcopy(graph.module)
    with torch.no_grad():
        module.get_parameter("logvar.bias")[1] += 0.01
    with pytest.raises(ParityError, match=r"encoder, output logvar\[1\]"):
        check_parity(
            ExportedGraph("encoder", module, graph.onnx, graph.input_name, graph.output_names),
            {"i": images()},
            Tolerances(),
        )


def test_a_module_left_in_training_mode_is_compared_in_evaluation(make_graph: MakeGraph) -> None:
    graph = make_graph("decoder")
    graph.module.train()
    check_parity(graph, {"some": latents()}, Tolerances())


# A graph and a module whose results are given by the input: rows are pairs (ONNX Runtime's result, PyTorch's).


class Second(nn.Module):
    """A module that returns the second of each pair."""

    def forward(self, pairs: Tensor) -> Tensor:
        return pairs[:, 1]


@functools.cache
def puppet() -> ExportedGraph:
    """Return the module, and a graph that returns the first of each pair."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["pairs", "first"], ["y"], axis=1)],
        "decoder",
        [helper.make_tensor_value_info("pairs", TensorProto.FLOAT, ["batch", 2, "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "width"])],
        [numpy_helper.from_array(np.array(0), "first")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ExportedGraph("decoder", Second(), model.SerializeToString(), "pairs", ("y",))


def compare(onnx_result: Array, torch_result: Array, tolerances: Tolerances) -> list[Result]:
    return check_parity(puppet(), {"pairs": np.stack((onnx_result, torch_result), 1)}, tolerances)


numbers = st.floats(width=32, min_value=-1000, max_value=1000)
tolerance = st.sampled_from([0.0, 1e-6, 1e-4, 1e-2, 1.0])


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=1, max_size=9), atol=tolerance, rtol=tolerance
)
def test_agreement_is_a_difference_within_the_tolerances(
    pairs: list[tuple[float, float, bool]], atol: float, rtol: float
) -> None:
    expected = np.array([[b] for _, b, _ in pairs], np.float32)
    # Some values differ by any amount, some by about the tolerance.
    allowed = atol + rtol * np.abs(expected.astype(np.float64))
    near = [[b + a / 500 * limit] for (a, b, _), limit in zip(pairs, allowed[:, 0], strict=True)]
    anywhere = [[a] for a, _, _ in pairs]
    close = np.array([[is_close] for _, _, is_close in pairs])
    actual = np.where(close, near, anywhere).astype(np.float32)
    difference = np.abs(actual.astype(np.float64) - expected)
    if (difference <= allowed).all():
        (result,) = compare(actual, expected, Tolerances(atol, rtol))
        assert result.max_abs == difference.max()
        assert result.max_ratio <= 1.0
    else:
        with pytest.raises(ParityError):
            compare(actual, expected, Tolerances(atol, rtol))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["ONNX Runtime", "PyTorch", "both"])
def test_what_is_not_finite_never_passes(bad: float, where: str) -> None:
    good = np.ones((9, 2), np.float32)
    wrong = good.copy()
    wrong[5, 1] = bad
    actual, expected = good if where == "PyTorch" else wrong, good if where == "ONNX Runtime" else wrong
    with pytest.raises(ParityError, match=r"y\[1\].*number 5"):
        compare(actual, expected, Tolerances(1e30, 1e30))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("order", [("good", "wrong"), ("wrong", "good"), ("good", "wrong", "good again")])
def test_what_is_not_finite_does_not_pass_among_what_agrees(bad: float, order: tuple[str, ...]) -> None:
    good = np.ones((4, 2, 3), np.float32)
    wrong = good.copy()
    wrong[2, 0, 1] = bad
    inputs = {name: wrong if name == "wrong" else good for name in order}
    with pytest.raises(ParityError, match="for wrong, number 2"):
        check_parity(puppet(), inputs, Tolerances())


def test_the_worst_element_is_the_one_reported() -> None:
    expected = np.full((80, 4), 10.0, np.float32)
    actual = expected.copy()
    actual[3, 0] += 0.01
    actual[77, 2] -= 0.5
    (result,) = compare(actual, expected, Tolerances(1.0, 0.0))
    assert (result.worst.row, result.worst.element) == (77, (2,))
    assert (result.worst.onnxruntime, result.worst.torch) == (9.5, 10.0)
    assert result.max_abs == result.max_ratio == 0.5
    assert result.count == 80


def test_relative_tolerance_is_relative_to_pytorch() -> None:
    small, large = np.ones((1, 1), np.float32), np.full((1, 1), 2.0, np.float32)
    compare(small, large, Tolerances(0.0, 0.5))
    with pytest.raises(ParityError):
        compare(large, small, Tolerances(0.0, 0.5))


def test_results_that_are_the_same_agree_without_tolerance() -> None:
    compare(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32), Tolerances(0.0, 0.0))


class Wide(nn.Module):
    """A module with one column more than the graph."""

    def forward(self, pairs: Tensor) -> Tensor:
        return torch.cat((pairs[:, 1], pairs[:, 1, :1]), 1)


def test_results_of_another_shape_never_pass() -> None:
    graph = ExportedGraph("decoder", Wide(), puppet().onnx, "pairs", ("y",))
    with pytest.raises(ParityError, match=r"decoder, output y.*\(\d+, 3\).*\(\d+, 4\)"):
        check_parity(graph, {"pairs": np.ones((5, 2, 3), np.float32)}, Tolerances(1e9, 1e9))


class BatchMean(nn.Module):
    """A module that differs unless the batch size is one."""

    def forward(self, pairs: Tensor) -> Tensor:
        return pairs[:, 1].mean(0, keepdim=True).expand(len(pairs), -1)


def test_what_agrees_at_one_batch_size_only_does_not_pass() -> None:
    graph = ExportedGraph("decoder", BatchMean(), puppet().onnx, "pairs", ("y",))
    rows = np.repeat(np.arange(4, dtype=np.float32), 2).reshape(4, 2, 1)
    check_parity(graph, {"one row": rows[:1]}, Tolerances())
    with pytest.raises(ParityError, match=r"at batch size [27]"):
        check_parity(graph, {"four rows": rows}, Tolerances())


class Hearing(nn.Module):
    """Adds to each row what the rows of its batch make together."""

    def __init__(self, heard: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.heard = heard

    def forward(self, pairs: Tensor) -> Tensor:
        return pairs[:, 1] + self.heard(pairs[:, 1])


HEARING: dict[str, Callable[[Tensor], Tensor]] = {
    "the mean of the batch": lambda rows: -rows.mean(0, keepdim=True),
    "the largest number of the batch": lambda rows: rows.max(),
    "the first row": lambda rows: rows[:1],
    "the row before": lambda rows: rows.roll(1, 0),
    "how many there are": lambda rows: torch.full_like(rows, len(rows)),
    "its own place": lambda rows: torch.arange(len(rows), dtype=rows.dtype)[:, None],
}


@pytest.mark.parametrize("what", HEARING)
@pytest.mark.parametrize("count", [1, 2, 70])
def test_a_module_whose_rows_hear_each_other_does_not_pass(what: str, count: int) -> None:
    graph = ExportedGraph("encoder", Hearing(HEARING[what]), puppet().onnx, "pairs", ("y",))
    rows = np.random.default_rng(0).random((count, 1, 5), np.float32).repeat(2, 1)
    rows[..., 0] = 1  # each row holds the largest number, as pictures with a white edge do
    rows[..., 1] = 0
    with pytest.raises(BatchDependenceError, match=r"on the other rows of its batch: encoder, output y") as caught:
        check_parity(graph, {"images": rows}, Tolerances())
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [1.5, 2.9])
def test_rounding_that_depends_on_the_batch_passes(factor: float) -> None:
    """PyTorch rounds a row alone and among others differently, up to a few times the tolerance in deep networks."""
    hearing = Hearing(lambda rows: torch.full_like(rows, factor * 1e-5 if len(rows) > 6 else 0.0))
    graph = ExportedGraph("decoder", hearing, puppet().onnx, "pairs", ("y",))
    rows = np.zeros((6, 2, 5), np.float32)
    check_parity(graph, {"pairs": rows}, Tolerances(1e-5, 0.0), Plan((1, 2)))
    with pytest.raises(BatchDependenceError):
        check_parity(graph, {"pairs": rows}, Tolerances(1e-6, 0.0), Plan((1, 2)))


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("counts", [(1,), (6, 3), (100, 7)])
def test_the_rows_to_run_are_known_before(counts: tuple[int, ...], once: bool) -> None:
    random, plan, ran = np.random.default_rng(0), Plan((1, 2, 3), once=once), list[int]()
    inputs = {str(count): random.random((count, 1, 4), np.float32).repeat(2, 1) for count in counts}
    check_parity(puppet(), inputs, Tolerances(), plan, ran=ran.append)
    assert sum(ran) == rows_to_run(inputs, plan)


def test_a_module_that_fails_on_a_single_row_is_explained() -> None:
    class Pairs(nn.Module):
        def forward(self, pairs: Tensor) -> Tensor:
            if len(pairs) < 2:
                raise ValueError("Expected more than 1 value per channel\nwhen training")
            return pairs[:, 1]

    graph = ExportedGraph("encoder", Pairs(), puppet().onnx, "pairs", ("y",))
    with pytest.raises(ExportError, match=r"encoder fails on an input of shape \(1, 2, 3\): ValueError: Expected"):
        check_parity(graph, {"pairs": np.ones((5, 2, 3), np.float32)}, Tolerances())


@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf])
def test_tolerances_out_of_range_are_wrong_arguments(bad: float) -> None:
    for arguments in ({"atol": bad}, {"rtol": bad}):
        with pytest.raises(UsageError, match="tolerances"):
            Tolerances(**arguments)
