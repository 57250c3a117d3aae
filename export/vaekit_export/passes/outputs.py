"""Values within a graph as outputs, so that they can be seen."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir


def expose(model: ir.Model, values: Collection[str]) -> None:
    """Make the values of these names outputs of the graph, after those that it has."""
    outputs = model.graph.outputs
    for node in model.graph:
        outputs.extend(value for value in node.outputs if value.name in values and not value.is_graph_output())
