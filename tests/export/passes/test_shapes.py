"""Exported graphs hold no shape arithmetic, no batch normalisation and no node that computes a constant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from vaekit.ort.session import open_on_cpu
from vaekit_export.onnx_export import ExportedGraph, export_onnx
from vaekit_export.parity import Tolerances, check_parity

MakeGraph = Callable[..., ExportedGraph]

NEEDLESS = {"Shape", "Constant", "ConstantOfShape", "Concat", "Unsqueeze", "BatchNormalization", "Identity", "Dropout"}


class Grouped(nn.Module):
    """A decoder with layers that export as shape arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.group = nn.Linear(4, 64), nn.GroupNorm(2, 4)
        self.spread, self.batch, self.last = nn.Conv2d(4, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Conv2d(2, 3, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.group(self.top(z).unflatten(1, (4, 4, 4)))
        h = nn.functional.interpolate(h, scale_factor=2.0)
        h = nn.functional.pixel_shuffle(self.batch(self.spread(h)).relu(), 2)
        return torch.sigmoid(self.last(h))


def operators(data: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_our_own_graphs_hold_only_what_computes(make_graph: MakeGraph, name: str) -> None:
    found = operators(make_graph(name).onnx)
    assert not (NEEDLESS - {"Concat"}) & set(found)
    assert found.count("Concat") == 1  # the skip connection past the hidden layer


@pytest.mark.parametrize("opset", [17, 21])
def test_group_normalisation_leaves_no_shape_arithmetic(opset: int) -> None:
    torch.manual_seed(0)
    module = Grouped().eval()
    module.batch.running_mean = torch.randn(8)
    data = export_onnx(module, torch.randn(2, 4), input_name="z", output_names=("image",), opset=opset)
    assert not NEEDLESS & set(operators(data))
    graph = ExportedGraph("decoder", module, data, "z", ("image",))
    rows = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    check_parity(graph, {"some": rows}, Tolerances())
    assert open_on_cpu("decoder", data).session.run(None, {"z": rows[:5]})[0].shape == (5, 3, 16, 16)


def test_the_same_module_exported_twice_gives_the_same_bytes() -> None:
    torch.manual_seed(0)
    module = Grouped().eval()
    first, second = (
        export_onnx(module, torch.randn(2, 4), input_name="z", output_names=("image",), opset=17) for _ in range(2)
    )
    assert first == second
