"""What the conversion to an older opset leaves behind."""

from __future__ import annotations

import onnx
import onnx_ir as ir


def drop_later_attributes(model: ir.Model) -> None:
    """Remove attributes newer than the model's opset where the older operator means the same without them.

    Before opset 18, Split without sizes splits into as many equal parts as it has outputs, and reductions over no axes
    reduce all.
    """
    opset = model.opset_imports[""]
    for node in model.graph:
        if node.domain:
            continue
        known = onnx.defs.get_schema(node.op_type, opset).attributes
        for name, attribute in list(node.attributes.items()):
            idle = name == "num_outputs" or (name == "noop_with_empty_axes" and not attribute.as_int())
            if idle and name not in known:
                del node.attributes[name]
