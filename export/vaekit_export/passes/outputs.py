"""Intermediate values of a graph as extra outputs, so that they can be compared."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir


def expose(model: ir.Model, values: Collection[str]) -> None:
    """Append the values with these names to the graph's outputs."""
    outputs = model.graph.outputs
    for node in model.graph:
        outputs.extend(value for value in node.outputs if value.name in values and not value.is_graph_output())
