"""The first difference between PyTorch and ONNX Runtime is found, named and drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from vaekit.errors import ExportError, ParityError
from vaekit.training.run import Run
from vaekit.types import Array
from vaekit_export import publish
from vaekit_export.explain import Explanation, Layer, explain
from vaekit_export.onnx_export import ExportedGraph, export_onnx
from vaekit_export.parity import Tolerances
from vaekit_export.publish import export_run
from vaekit_export.report import table

MakeGraph = Callable[..., ExportedGraph]
Change = Callable[[onnx.ModelProto], None]

ROWS = {
    "encoder": np.random.default_rng(0).random((40, 3, 16, 13), np.float32),
    "decoder": np.random.default_rng(0).standard_normal((40, 2), np.float32),
}


def altered(graph: ExportedGraph, change: Change) -> ExportedGraph:
    model = onnx.load_from_string(graph.onnx)
    change(model)
    return ExportedGraph(graph.name, graph.module, model.SerializeToString(), graph.input_name, graph.output_names)


def nodes_with_weights(graph: ExportedGraph) -> list[str]:
    """Return the names of nodes that multiply by weights, in the graph's order."""
    nodes = onnx.load_from_string(graph.onnx).graph.node
    return [node.name for node in nodes if node.op_type in ("Conv", "ConvTranspose", "Gemm")]


def sabotage(node_name: str) -> Change:
    """Add to one weight of a node."""

    def change(model: onnx.ModelProto) -> None:
        (node,) = (node for node in model.graph.node if node.name == node_name)
        (weight,) = (weight for weight in model.graph.initializer if weight.name == node.input[1])
        values = numpy_helper.to_array(weight).copy()
        values.flat[values.size // 2] += 0.5
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))

    return change


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_layers_that_agree_are_all_compared(make_graph: MakeGraph, name: str) -> None:
    graph = make_graph(name)
    found = explain(graph, ROWS[name], Tolerances(), opset=17)
    assert found.first is None
    assert found.rows == 40
    weighted = set(nodes_with_weights(graph))
    assert weighted <= {layer.node for layer in found.layers} | {
        part.split()[0] for layer in found.layers for part in layer.between
    }
    assert len([layer for layer in found.layers if layer.module]) >= 3
    assert {layer.value for layer in found.layers} >= set(graph.output_names)
    sizes = {sum(layer.histogram) for layer in found.layers}
    assert all(size % 40 == 0 for size in sizes)
    assert any("every layer agrees" in line for line in table(found))


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_whatever_layer_is_sabotaged_is_found_with_its_module(make_graph: MakeGraph, name: str) -> None:
    graph = make_graph(name)
    for victim in nodes_with_weights(graph):
        found = explain(altered(graph, sabotage(victim)), ROWS[name], Tolerances(), opset=17)
        assert found.first is not None, victim
        suspects = [found.first.node, *(part.split()[0] for part in found.first.between)]
        assert victim in suspects
        assert len(suspects) <= 2
        place = found.layers.index(found.first)
        assert all(layer.agrees for layer in found.layers[:place])
        module = dict(graph.module.named_modules())
        assert found.first.module in module
        assert found.first.node in found.headline()
        assert found.first.operator in found.headline()
        assert "-> " in "\n".join(table(found))


def test_the_error_of_a_sabotaged_decoder_reaches_its_image(make_graph: MakeGraph) -> None:
    graph = make_graph("decoder")
    found = explain(altered(graph, sabotage(nodes_with_weights(graph)[0])), ROWS["decoder"], Tolerances(), opset=17)
    assert found.layers[-1].module == ""
    assert not found.layers[-1].agrees
    assert found.worst_onnx.shape == found.worst_torch.shape == (3, 16, 13)
    off = np.abs(found.worst_onnx - found.worst_torch).max()
    assert off == pytest.approx(found.layers[-1].max_abs, rel=1e-4)
    assert "module hidden" in found.headline()


def test_results_that_are_not_finite_differ(make_graph: MakeGraph) -> None:
    graph = make_graph("decoder")

    def poison(model: onnx.ModelProto) -> None:
        (weight,) = (w for w in model.graph.initializer if w.name == model.graph.node[0].input[1])
        values = numpy_helper.to_array(weight).copy()
        values.flat[0] = np.nan
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))

    found = explain(altered(graph, poison), ROWS["decoder"], Tolerances(), opset=17)
    assert found.first is not None
    assert math.isinf(found.first.max_abs)


def test_one_row_is_enough(make_graph: MakeGraph) -> None:
    assert explain(make_graph("decoder"), ROWS["decoder"][:1], Tolerances(), opset=17).first is None


@pytest.fixture
def sabotaged(make_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make exports change the decoder's first layer; return the name of its node."""
    victim = nodes_with_weights(make_graph("decoder"))[0]

    def export(module: object, example: object, *, input_name: str, **rest: object) -> bytes:
        if input_name == "image":
            return make_graph("encoder").onnx
        return altered(make_graph("decoder"), sabotage(victim)).onnx

    monkeypatch.setattr(publish, "export_onnx", export)
    return victim


def test_a_gate_that_fails_names_the_node_and_leaves_a_report(tiny_run: Run, tmp_path: Path, sabotaged: str) -> None:
    with pytest.raises(ParityError, match="nothing was published") as caught:
        export_run(tiny_run.path, tmp_path / "bundle")
    assert sabotaged in str(caught.value)
    assert "bundle.parity" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.parity"]
    document = json.loads((tmp_path / "bundle.parity" / "parity.json").read_text())
    assert document["graphs"][0]["first"] is not None


def test_what_cannot_be_explained_still_fails_for_parity(
    tiny_run: Run, tmp_path: Path, sabotaged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise ExportError("no luck")

    monkeypatch.setattr(publish, "explain", fails)
    with pytest.raises(ParityError, match=r"nothing was published.*could not be found: no luck"):
        export_run(tiny_run.path, tmp_path / "bundle")


def test_a_fault_that_hides_behind_an_optimisation_is_said_to(make_graph: MakeGraph) -> None:
    found = explain(make_graph("decoder"), ROWS["decoder"][:4], Tolerances(), opset=17)
    assert "optimisation of ONNX Runtime" in found.headline()


def test_a_module_that_is_no_chain_is_located_as_well() -> None:
    class Residual(nn.Module):
        """Two branches, a function between modules, and a module that is called twice."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.again = nn.Linear(3, 4), nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            h = self.again(self.first(x))
            return torch.tanh(h + self.again(self.second(h)))

    torch.manual_seed(0)
    module = Residual().eval()
    data = export_onnx(module, torch.randn(2, 3), input_name="x", output_names=("y",), opset=17)
    graph = ExportedGraph("decoder", module, data, "x", ("y",))
    rows = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    assert explain(graph, rows, Tolerances(), opset=17).first is None

    def negate(model: onnx.ModelProto) -> None:
        (node,) = (node for node in model.graph.node if node.op_type == "Tanh")
        node.CopyFrom(helper.make_node("Sin", list(node.input), list(node.output), node.name))

    found = explain(altered(graph, negate), rows, Tolerances(), opset=17)
    assert found.first is not None
    assert found.first.operator == "Sin"


class Twice(nn.Module):
    """A block that is called twice, so its layers are too."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.block(self.block(x)).flip(1))
        return y


def twice() -> tuple[ExportedGraph, Array]:
    torch.manual_seed(0)
    module = Twice().eval()
    data = export_onnx(module, torch.randn(2, 4), input_name="x", output_names=("y",), opset=17)
    rows = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    return ExportedGraph("decoder", module, data, "x", ("y",)), rows


def test_calls_of_one_module_are_told_apart() -> None:
    graph, rows = twice()
    found = explain(graph, rows, Tolerances(), opset=17)
    assert found.first is None
    modules = [layer.module for layer in found.layers if layer.module]
    assert modules == ["block.0", "block.1", "block.0 (call 2)", "block.1 (call 2)"]

    def disturb(model: onnx.ModelProto) -> None:
        second = [node for node in model.graph.node if node.op_type == "Tanh"][1]
        second.CopyFrom(helper.make_node("Sin", list(second.input), list(second.output), second.name))

    found = explain(altered(graph, disturb), rows, Tolerances(), opset=17)
    assert found.first is not None
    assert (found.first.operator, found.first.module) == ("Sin", "block.1 (call 2)")
    assert "module block.1 (call 2)" in found.headline()


def test_values_between_modules_are_compared_too() -> None:
    graph, rows = twice()
    flip = [layer for layer in explain(graph, rows, Tolerances(), opset=17).layers if not layer.module]
    assert [layer.is_output for layer in flip][-1]
    assert len(flip) > 1


def test_outputs_are_compared_with_the_module_itself() -> None:
    """A module whose weights changed after export. PyTorch's captured graph has the new weights too."""
    graph, rows = twice()
    with torch.no_grad():
        graph.module.last.bias += 1  # type: ignore[operator, union-attr]
    found = explain(graph, rows, Tolerances(), opset=17)
    assert found.first is found.layers[-1]
    assert found.first.is_output
    assert "the graph's own output" in found.headline()


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_groups_of_layers_and_small_batches_find_the_same(
    make_graph: MakeGraph, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = altered(make_graph(name), sabotage(nodes_with_weights(make_graph(name))[1]))
    whole = explain(graph, ROWS[name], Tolerances(), opset=17)
    monkeypatch.setattr("vaekit_export.explain._MOST_BYTES", 3000)  # less than one layer for all rows
    parts = explain(graph, ROWS[name], Tolerances(), opset=17)
    assert parts.headline() == whole.headline()
    assert [(layer.value, layer.agrees) for layer in parts.layers] == [
        (layer.value, layer.agrees) for layer in whole.layers
    ]
    assert parts.worst_row == whole.worst_row
    for one, other in zip(parts.layers, whole.layers, strict=True):
        assert one.max_abs == pytest.approx(other.max_abs, abs=1e-5)
        assert sum(one.histogram) == sum(other.histogram)


@pytest.mark.parametrize(("ratio", "advised"), [(0.5, True), (0.0, False), (20.0, False)])
def test_rounding_that_grew_is_told_from_an_error(ratio: float, advised: bool) -> None:
    layers = [
        Layer("conv", "n0", "Conv", "conv", False, [], max_abs=8e-6, max_ratio=ratio),
        Layer("image", "n1", "Clip", "", True, [], max_abs=1.9e-5, max_ratio=1.6),
    ]
    nothing = np.zeros(0, np.float32)
    headline = Explanation("decoder", 1, layers, 2, 0, nothing, nothing).headline()
    assert ("export with --atol 0.0001" in headline) is advised


def test_a_module_that_raises_is_left_as_it_was() -> None:
    graph, rows = twice()

    def fail(module: nn.Module, inputs: object) -> None:
        raise RuntimeError("no luck")

    handle = graph.module.last.register_forward_pre_hook(fail)  # type: ignore[union-attr]
    with pytest.raises(ExportError, match="no luck"):
        explain(graph, rows, Tolerances(), opset=17)
    handle.remove()
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in graph.module.modules())
    assert explain(graph, rows, Tolerances(), opset=17).first is None
