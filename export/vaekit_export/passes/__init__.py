"""Graph passes: each file changes an ONNX graph in one way.

A pass is a function that changes an ``onnx_ir.Model`` in place. Its other arguments are bound with
``functools.partial``. ``apply`` runs passes on the bytes of an ONNX file and returns the bytes of the new one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

Pass = Callable[[ir.Model], object]
"""Changes a model in place. It may return something, such as the number of rewritten nodes."""


def apply(data: bytes, *passes: Pass) -> bytes:
    """Run passes in turn on the bytes of an ONNX file."""
    model = read(data)
    for change in passes:
        change(model)
    return write(model)


def read(data: bytes) -> ir.Model:
    """Parse the bytes of an ONNX file."""
    return ir.from_proto(onnx.load_from_string(data))


def write(model: ir.Model) -> bytes:
    """Serialise a model; equal models give equal bytes.

    onnx_ir writes the type and shape of each weight twice: in the weight and in ``value_info``. The second is removed.
    """
    proto = ir.to_proto(model)
    weights = {weight.name for weight in proto.graph.initializer}
    declared = [value for value in proto.graph.value_info if value.name not in weights]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(declared)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def add_weight(graph: ir.Graph, name: str, values: NDArray[np.generic]) -> ir.Value:
    """Add an initializer to a graph."""
    weight = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(values), name=name))
    graph.register_initializer(weight)
    return weight


def weight_of(value: ir.Value | None) -> NDArray[np.float32] | None:
    """Return the numbers of an initializer; None for any other value."""
    if value is None or value.const_value is None:
        return None
    values: NDArray[np.float32] = value.const_value.numpy()
    return values
