"""The report of a comparison layer by layer can be read, and replaces nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from vaekit.errors import MissingExtraError, VaekitError
from vaekit_export import report
from vaekit_export.explain import explain
from vaekit_export.onnx_export import ExportedGraph
from vaekit_export.parity import Tolerances
from vaekit_export.report import write_report

MakeGraph = Callable[..., ExportedGraph]

IMAGES = np.random.default_rng(0).random((40, 3, 16, 13), np.float32)
LATENTS = np.random.default_rng(0).standard_normal((40, 2), np.float32)


def spoilt(graph: ExportedGraph) -> ExportedGraph:
    """One of its weights altered."""
    model = onnx.load_from_string(graph.onnx)
    weight = next(weight for weight in model.graph.initializer if len(weight.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.flat[values.size // 2] += 0.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return dataclasses.replace(graph, onnx=model.SerializeToString())


def test_the_report_can_be_read_by_people_and_programs(make_graph: MakeGraph, tmp_path: Path) -> None:
    graph = make_graph("decoder")
    found = explain(spoilt(graph), LATENTS, Tolerances(), opset=17)
    good = explain(make_graph("encoder"), IMAGES, Tolerances(), opset=17)
    for _ in range(2):  # an older report is replaced
        write_report(tmp_path / "b.parity", [good, found], Tolerances())
    document = json.loads((tmp_path / "b.parity" / "parity.json").read_text())
    encoder, decoder = document["graphs"]
    assert encoder["first"] is None
    assert found.first is not None
    assert decoder["first"] == found.first.node
    assert len(decoder["layers"]) == len(found.layers)
    assert {"node", "operator", "module", "max_abs", "mean_abs", "max_ratio", "histogram"} <= set(decoder["layers"][0])
    assert len(document["decades"]) + 1 == len(decoder["layers"][0]["histogram"])
    assert "-> " in (tmp_path / "b.parity" / "parity.txt").read_text()
    with Image.open(tmp_path / "b.parity" / "parity.png") as picture:
        assert min(picture.size) > 500


def test_a_folder_that_is_no_report_is_left_alone(make_graph: MakeGraph, tmp_path: Path) -> None:
    (tmp_path / "b.parity").mkdir()
    (tmp_path / "b.parity" / "letter").write_text("a letter")
    found = explain(make_graph("decoder"), LATENTS[:2], Tolerances(), opset=17)
    with pytest.raises(VaekitError, match="not a parity report"):
        write_report(tmp_path / "b.parity", [found], Tolerances())
    assert (tmp_path / "b.parity" / "letter").read_text() == "a letter"


def test_without_matplotlib_the_report_has_no_plot(
    make_graph: MakeGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(width: float, height: float) -> None:
        raise MissingExtraError("no matplotlib")

    monkeypatch.setattr(report, "new_figure", missing)
    found = explain(make_graph("decoder"), LATENTS, Tolerances(), opset=17)
    write_report(tmp_path / "b.parity", [found], Tolerances())
    assert {path.name for path in (tmp_path / "b.parity").iterdir()} == {"parity.json", "parity.txt"}
