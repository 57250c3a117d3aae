"""Clean-up after the conversion to an older opset."""

from __future__ import annotations

import onnx
import onnx_ir as ir


def drop_later_attributes(model: ir.Model) -> None:
    """Remove attributes that the model's opset neither has nor needs.

    Before opset 18, Split without sizes makes one equal part for each output, and a reduction without axes reduces all
    of them.
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
