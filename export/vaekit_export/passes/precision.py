"""Conversion of graphs to INT8 or float16. The most sensitive layers stay in float."""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import onnx
import onnx_ir as ir

from vaekit.errors import ExportError
from vaekit.types import Array, PrecisionName
from vaekit_export.passes import read
from vaekit_export.undisturbed import without_logging

LowPrecision = Literal["int8", "fp16"]
"""The precisions that a graph can be lowered to."""
LOW_PRECISIONS: tuple[LowPrecision, ...] = get_args(LowPrecision)
WEIGHTS_ONLY: dict[LowPrecision, PrecisionName] = {"int8": "int8-weights", "fp16": "fp16-weights"}
"""The precision of a graph of which only the weights were lowered."""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input is a weight."""

_CALIBRATION_BATCH = 64
_MOST_TRIED = 16  # layers that are tried one by one if the whole graph does not run: each try may crash a process

Convert = Callable[[Collection[str]], bytes]
"""Converts a graph to lower precision; the layers with the given names stay in float."""


@dataclass(frozen=True)
class Lowered:
    """A graph in lower precision."""

    onnx: bytes
    in_float: tuple[str, ...]
    """Layers that stay in float, the most sensitive first."""


def lower(
    layers: Sequence[str],
    convert: Convert,
    headroom: Callable[[bytes], float],
    report: Callable[[str], None] = lambda failure: None,
) -> Lowered | None:
    """Lower a graph's precision, leaving as few layers as possible in float.

    A result is accepted if its ``headroom`` is at least zero. If the whole graph is not, each layer is lowered alone,
    and its headroom measures its sensitivity. Then the most sensitive layers return to float, one after the other.
    Returns None if no layer can be lowered.

    An ExportError from ``convert`` or ``headroom`` counts as a headroom of minus infinity. If the whole graph raises
    one, its text is passed to ``report``, and a graph of more than 16 layers is not tried layer by layer.
    """

    def attempt(keep: Collection[str]) -> tuple[bytes, float, str]:
        try:
            candidate = convert(keep)
            return candidate, headroom(candidate), ""
        except ExportError as error:
            return b"", -math.inf, str(error)

    whole, left, failure = attempt(())
    if left >= 0:
        return Lowered(whole, ())
    if failure:
        report(failure)
        if len(layers) > _MOST_TRIED:
            return None
    alone = {layer: attempt([other for other in layers if other != layer])[1] for layer in layers}
    worst_first = sorted(layers, key=lambda layer: alone[layer])
    impossible = sum(left == -math.inf for left in alone.values())
    for count in range(max(1, impossible), len(layers)):
        candidate, left, _ = attempt(worst_first[:count])
        if left >= 0:
            return Lowered(candidate, tuple(worst_first[:count]))
    return None


def layers_of(model: ir.Model) -> dict[str, list[str]]:
    """Return the names of a graph's nodes by layer.

    A layer is a node with weights and the nodes after it, up to the next node with weights. It has the name of its
    first node. A node before all weights starts a layer too.
    """
    owners: dict[ir.Value, str] = {}
    layers: dict[str, list[str]] = {}
    for node in model.graph:
        name = node.name or ""
        before = next((owners[value] for value in node.inputs if value in owners), None)
        layer = name if node.op_type in WEIGHTED or before is None else before
        layers.setdefault(layer, []).append(name)
        owners.update(dict.fromkeys(node.outputs, layer))
    return layers


def nodes_of(model: ir.Model, layers: Collection[str]) -> list[str]:
    """Return the names of the nodes in the given layers."""
    return [name for layer, names in layers_of(model).items() if layer in layers for name in names]


def to_int8(data: bytes, input_name: str, rows: Array, keep: Collection[str] = ()) -> bytes:
    """Convert a graph to INT8 with ONNX Runtime's tool.

    The result has float operators between QuantizeLinear and DequantizeLinear (QDQ), which any runtime can read.
    Activations are uint8; their ranges are measured on ``rows`` (N, …). Weights are int8 with a scale per channel.
    They use seven bits (``reduce_range``): the sum of two products then fits in 16 bits, and processors without VNNI
    give the same results as others. The layers in ``keep`` stay float32. Raises ExportError if the tool fails.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]  # the package is not typed
        def __init__(self) -> None:
            starts = range(0, len(rows), _CALIBRATION_BATCH)
            self.batches = ({input_name: rows[start : start + _CALIBRATION_BATCH]} for start in starts)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory(prefix="vaekit-") as folder, _quiet():
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(data)
        try:
            quantize_static(
                source,
                target,
                Rows(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=nodes_of(read(data), keep),
            )
        except Exception as error:  # onnx's, ONNX Runtime's and Python's errors alike
            raise ExportError(f"ONNX Runtime could not quantise the graph: {_one_line(error)}") from error
        return target.read_bytes()


def to_fp16(data: bytes, keep: Collection[str] = ()) -> bytes:
    """Convert a graph to float16 with ONNX Runtime's tool.

    Inputs, outputs and the layers in ``keep`` stay float32. Raises ExportError if the tool fails.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load_from_string(data)
    del model.graph.value_info[:]
    try:
        with _quiet():
            converted = ONNXModel(
                convert_float_to_float16(model, keep_io_types=True, node_block_list=nodes_of(read(data), keep))
            )
            converted.topological_sort()  # the tool puts its casts at the end
    except Exception as error:
        raise ExportError(f"ONNX Runtime could not convert the graph to float16: {_one_line(error)}") from error
    lowered: bytes = converted.model.SerializeToString(deterministic=True)
    return lowered


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converters' advice; their results are measured afterwards."""
    with without_logging(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
