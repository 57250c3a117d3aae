"""Names of the outputs' free axes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from vaekit.errors import ExportError
from vaekit_export.passes.shapes import forget_sizes


def name_axes(model: ir.Model, axes: Mapping[int, str]) -> None:
    """Name the outputs' free axes.

    The exporter describes them by formulas of the input's sizes. The declared sizes of intermediate values are removed,
    because they use the exporter's names. Raises ExportError if an axis is not free.
    """
    for output in model.graph.outputs:
        assert output.shape is not None
        for axis, name in axes.items():
            size = output.shape[axis]
            if isinstance(size, int):
                raise ExportError(
                    f"the model works for one size only: {output.name} always has a {name} of {size}. Let its layers "
                    "follow the input's size, or export it at one size"
                )
        output.shape = ir.Shape([axes.get(axis, size) for axis, size in enumerate(output.shape)])
    forget_sizes(model)
