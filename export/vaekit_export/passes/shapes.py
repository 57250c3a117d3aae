"""Constants in place of the shape arithmetic in exported graphs.

The exporter's optimiser folds constants and fuses batch normalisation. The conversion to an older opset comes after it,
and writes group normalisation with shapes that are computed again for every batch.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from vaekit_export.passes import add_weight

Sizes = tuple[int | None, ...]
"""A tensor's sizes; None for a free one."""


def constant_shapes(model: ir.Model) -> None:
    """Replace computed target shapes of Reshape nodes by constants.

    This is done where all sizes but the batch are known. Nodes that are then unused are removed.
    """
    sizes = known_sizes(model)
    for node in model.graph:
        source = node.inputs[1].producer() if node.op_type == "Reshape" and node.inputs[1] is not None else None
        if source is None or source.op_type != "Shape" or not _gives_all_sizes(source):
            continue
        known = sizes.get(_name(source.inputs[0]))
        if known is None or known.count(None) > 1:
            continue
        target = np.array([-1 if size is None else size for size in known], np.int64)
        node.replace_input_with(1, add_weight(model.graph, f"{node.outputs[0].name}_shape", target))
    RemoveUnusedNodesPass()(model)


def known_sizes(model: ir.Model) -> dict[str, Sizes]:
    """Infer the sizes of each value, by name.

    Unknown sizes are None. Values of unknown rank are left out. The model is not changed.
    """
    inferred = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model.clone()).model
    values = ir.convenience.create_value_mapping(inferred.graph, include_subgraphs=False)
    return {
        name: tuple(size if isinstance(size, int) else None for size in value.shape)
        for name, value in values.items()
        if value.shape is not None
    }


def forget_sizes(model: ir.Model) -> None:
    """Remove the declared types and shapes of intermediate values.

    A pass that changes sizes makes them wrong.
    """
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None


def _gives_all_sizes(node: ir.Node) -> bool:
    """Return whether a Shape node gives all sizes of its input."""
    return node.attributes.get_int("start", 0) == 0 and "end" not in node.attributes


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""
