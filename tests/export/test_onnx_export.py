"""PyTorch modules are exported as requested, or an error is raised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from vaekit.bundle.onnx_file import TensorInfo, read_onnx
from vaekit.errors import ExportError, UsageError
from vaekit.ort.session import open_on_cpu
from vaekit_export.onnx_export import MIN_OPSET, ExportedGraph, check_onnx, check_opset, export_onnx, newest_opset
from vaekit_export.passes.metadata import lowest_ir_version

MakeGraph = Callable[..., ExportedGraph]
Change = Callable[[onnx.ModelProto], None]

OPSETS = (17, newest_opset())  # 21 is exported by tests/cli
NAMES = ("encoder", "decoder")


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_what_was_asked_for(make_graph: MakeGraph, name: str, opset: int) -> None:
    data = make_graph(name, opset).onnx
    model = onnx.load_from_string(data)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == lowest_ir_version(opset)
    assert model.ir_version <= 8 or opset > 17
    onnx.checker.check_model(model, full_check=True)
    info = read_onnx(data)
    assert {domain for domain, _ in info.operators} == {""}
    assert not info.external_data
    image, mu, logvar, z = (
        TensorInfo(tensor, "float32", ("batch", *shape))
        for tensor, shape in (("image", (3, 16, 13)), ("mu", (2,)), ("logvar", (2,)), ("z", (2,)))
    )
    assert (info.inputs, info.outputs) == {"encoder": ([image], [mu, logvar]), "decoder": ([z], [image])}[name]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_nothing_of_the_machine_that_made_it(make_graph: MakeGraph, name: str, opset: int) -> None:
    data = make_graph(name, opset).onnx
    text = str(onnx.load_from_string(data))
    assert "metadata_props" not in text
    assert "doc_string" not in text
    for path in (Path.cwd(), Path.home(), Path(torch.__file__).parent, Path(__file__).parents[2]):
        assert str(path).encode() not in data
    assert b".py" not in data


@pytest.mark.parametrize("name", NAMES)
def test_every_batch_size_runs(make_graph: MakeGraph, name: str) -> None:
    session = open_on_cpu(name, make_graph(name, OPSETS[-1]).onnx).session
    for size in (1, 3, 64):
        rows = np.zeros((size, *((3, 16, 13) if name == "encoder" else (2,))), np.float32)
        assert all(len(output) == size for output in session.run(None, {session.get_inputs()[0].name: rows}))


@pytest.mark.parametrize("opset", [-1, 0, 16, newest_opset() + 1, 99])
def test_an_opset_out_of_range_is_a_wrong_argument(opset: int) -> None:
    with pytest.raises(UsageError, match=f"{opset} is out of range.*17 to {newest_opset()}") as caught:
        check_opset(opset)
    assert caught.value.exit_code == 2


def test_opsets_in_range_are_accepted() -> None:
    assert MIN_OPSET == 17
    assert newest_opset() > 20
    for opset in OPSETS:
        check_opset(opset)


def test_opset_17_asks_for_ir_version_8() -> None:
    assert lowest_ir_version(17) == 8
    assert lowest_ir_version(21) == 10


class Affine(nn.Module):
    """A module that can be exported: y = 2x + 1."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


class Noisy(nn.Module):
    """Noise inside the graph."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Two(nn.Module):
    """Two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x + 2


class Mean(nn.Module):
    """A mean. Its operator has another form in opset 17, which PyTorch's converter does not support."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


class Bits(nn.Module):
    """An operator that came with opset 18."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.bitwise_and(x.to(torch.int32), 3).float()


class Smooth(nn.Module):
    """A way of resizing that came with opset 18."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x[:, None, None], scale_factor=2.0, mode="bilinear", antialias=True)


class Bessel(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        bessel: Tensor = torch.special.bessel_j0(x)
        return bessel


class Halves(nn.Module):
    """Two outputs of one layer, as encoders often have for mu and logvar, with given sizes."""

    def __init__(self, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.layer, self.parts = nn.Linear(3, sum(sizes)), sizes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.layer(x).chunk(2, dim=1)
        return first, second


class Pair(nn.Module):
    """A module that only works for a batch of two."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3) + x.reshape(3, 2).reshape(2, 3)


class First(nn.Module):
    """A module that drops the batch axis."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x[:1]


class Branching(nn.Module):
    """A module that depends on data and cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def export(module: nn.Module, names: Sequence[str] = ("y",), opset: int = 17) -> bytes:
    return export_onnx(module, torch.randn(2, 3), input_name="x", output_names=names, opset=opset)


def test_noise_inside_a_module_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match=r"RandomNormal.*noise must stay outside"):
        export(Noisy())


@pytest.mark.parametrize(("module", "names"), [(Two(), ("y",)), (Affine(), ("y", "extra"))])
def test_names_for_more_or_fewer_outputs_are_refused(module: nn.Module, names: tuple[str, ...]) -> None:
    with pytest.raises(ExportError, match="outputs"):
        export(module, names)


def test_an_output_without_the_batch_axis_is_refused() -> None:
    with pytest.raises(ExportError, match="outputs"):
        export(First())


def ran(module: nn.Module, data: bytes, names: Sequence[str]) -> None:
    """Check that ONNX Runtime's results equal the module's at batch sizes of one and five."""
    torch.manual_seed(0)
    for count in (1, 5):
        x = torch.randn(count, 3)
        with torch.inference_mode():
            wanted = module(x)
        found = open_on_cpu("g", data).run(list(names), {"x": x.numpy()})
        for a, b in zip(found, (wanted,) if isinstance(wanted, Tensor) else wanted, strict=True):
            np.testing.assert_allclose(a, b.numpy(), atol=1e-6)


def test_an_opset_that_the_exporter_did_not_reach_is_reached_by_converting() -> None:
    data = export(Mean())
    assert read_onnx(data).opsets == {"": 17}
    ran(Mean(), data, ("y",))


@pytest.mark.parametrize("sizes", [(4, 4), (4, 3)])
def test_a_layer_split_in_two_is_exported(sizes: tuple[int, int]) -> None:
    module = Halves(sizes)
    data = export(module, ("mu", "logvar"))
    assert read_onnx(data).opsets == {"": 17}
    ran(module, data, ("mu", "logvar"))


def test_an_operator_that_the_opset_lacks_is_named_with_the_first_that_has_it() -> None:
    with pytest.raises(ExportError, match=r"BitwiseAnd, which opset 17 does not have; --opset 18"):
        export(Bits())
    ran(Bits(), export(Bits(), opset=18), ("y",))


def test_a_padding_that_the_opset_lacks_is_named_with_the_first_that_has_it() -> None:
    class Reflecting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.pad(x, (1, 1), mode="reflect")

    with pytest.raises(ExportError, match="operator Pad of this model has no form in opset 17; --opset 18 has it"):
        export(Reflecting())
    ran(Reflecting(), export(Reflecting(), opset=18), ("y",))


def test_a_form_that_the_opset_lacks_is_named_with_one_that_has_it() -> None:
    with pytest.raises(ExportError, match=r"no form in opset 17: Resize antialias=1 .* --opset 18 has it"):
        export(Smooth())


def test_an_operator_that_no_opset_has_is_named() -> None:
    with pytest.raises(ExportError, match=r"no ONNX form of the operator prims\.bessel_j0"):
        export(Bessel())


def test_control_flow_that_depends_on_data_is_explained_where_it_stands(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="could not export") as caught:
        export(Branching())
    text = str(caught.value)
    assert "\n" not in text
    for words in ("control flow depends on the data", "test_onnx_export.py, line ", "x.sum() > 0", "torch.where"):
        assert words in text
    assert capfd.readouterr() == ("", "")


def test_a_module_for_one_batch_size_is_explained() -> None:
    with pytest.raises(ExportError, match=r"one batch size only.*static shape of 2"):
        export(Pair())


def test_a_module_in_training_mode_is_exported_for_inference() -> None:
    data = export(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9)).train())
    assert ("", "Dropout") not in read_onnx(data).operators


# Models that check_onnx refuses: variants of y = 2x + 1 written by hand.

FLOAT = TensorProto.FLOAT
X, Y = TensorInfo("x", "float32", ("batch", 3)), TensorInfo("y", "float32", ("batch", 3))


def small_model() -> onnx.ModelProto:
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("two", 2), ("one", 1))]
    nodes = [helper.make_node("Mul", ["x", "two"], ["t"]), helper.make_node("Add", ["t", "one"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["batch", 3]) for name in "xy")
    graph = helper.make_graph(nodes, "small", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_good_file_passes() -> None:
    check_onnx(small_model().SerializeToString(), inputs=[X], outputs=[Y], opset=17)


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


def higher_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 10


def foreign_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[1].domain = "com.microsoft"
    model.graph.node[1].op_type = "Gelu"
    del model.graph.node[1].input[1]


def foreign_domain_alone(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def external_data(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")


def external_data_of_this_machine(model: onnx.ModelProto) -> None:
    external_data(model)
    model.graph.initializer[0].external_data[0].value = "/etc/hostname"


def model_metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="source", value="/home/me/secret.py")


def node_metadata(model: onnx.ModelProto) -> None:
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/home/me/secret.py"')


def node_documentation(model: onnx.ModelProto) -> None:
    model.graph.node[0].doc_string = "/home/me/secret.py(7)"


def value_metadata(model: onnx.ModelProto) -> None:
    model.graph.output[0].metadata_props.add(key="source", value="/home/me/secret.py")


def random_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].CopyFrom(helper.make_node("RandomNormalLike", ["t"], ["y"]))


def random_operator_in_a_branch(model: onnx.ModelProto) -> None:
    branches = [
        helper.make_graph(
            [helper.make_node(operator, ["t"], [f"out_{operator}"])],
            operator,
            [],
            [helper.make_tensor_value_info(f"out_{operator}", FLOAT, ["batch", 3])],
        )
        for operator in ("RandomUniformLike", "Identity")
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1])
    model.graph.node[1].CopyFrom(node)


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def axis_of_another_name(model: onnx.ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "s68"


def other_input_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"


def other_width(model: onnx.ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[1].dim_value = 4


def double_precision(model: onnx.ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for weight in model.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float64), weight.name))


def extra_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("t", FLOAT, ["batch", 3]))


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Sorcery"


def false_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (other_opset, "opset 18 instead of 17"),
        (higher_ir, "IR version 10.*only 8"),
        (foreign_operator, "com.microsoft"),
        (foreign_domain_alone, "com.example"),
        (external_data, "weights.bin|in other files"),
        (external_data_of_this_machine, "/etc/hostname|in other files"),
        (model_metadata, "metadata"),
        (node_metadata, "metadata"),
        (node_documentation, "metadata"),
        (value_metadata, "metadata"),
        (random_operator, "RandomNormalLike"),
        (random_operator_in_a_branch, "RandomUniformLike"),
        (fixed_batch, "inputs"),
        (axis_of_another_name, "inputs"),
        (other_input_name, "inputs"),
        (other_width, "inputs"),
        (double_precision, "inputs"),
        (extra_output, "outputs"),
        (unknown_operator, "not valid ONNX"),
        (false_shape, "not valid ONNX"),
    ],
)
def test_a_file_that_was_not_asked_for_is_refused(change: Change, complaint: str) -> None:
    model = small_model()
    change(model)
    with pytest.raises(ExportError, match=complaint) as caught:
        check_onnx(model.SerializeToString(), inputs=[X], outputs=[Y], opset=17)
    assert "\n" not in str(caught.value)


def test_external_data_that_is_there_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.float32(2).tobytes())
    model = small_model()
    external_data(model)
    with pytest.raises(ExportError, match=r"in other files|not valid ONNX"):
        check_onnx(model.SerializeToString(), inputs=[X], outputs=[Y], opset=17)
