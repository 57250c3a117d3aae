"""Graphs in INT8 or float16, with the layers that cannot bear it left in float."""

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
"""What a graph can be lowered to."""
LOW_PRECISIONS: tuple[LowPrecision, ...] = get_args(LowPrecision)
WEIGHTS_ONLY: dict[LowPrecision, PrecisionName] = {"int8": "int8-weights", "fp16": "fp16-weights"}
"""What a graph is called whose weights alone were lowered."""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that hold weights, as their second input."""

_CALIBRATION_BATCH = 64
_MOST_TRIED = 16  # layers that are tried one by one where the whole graph does not run: each may take a crash

Convert = Callable[[Collection[str]], bytes]
"""A graph in lower precision, with the layers of the names given left in float."""


@dataclass(frozen=True)
class Lowered:
    """A graph in lower precision."""

    onnx: bytes
    in_float: tuple[str, ...]
    """Layers that were left in float, the most sensitive first."""


def lower(
    layers: Sequence[str],
    convert: Convert,
    headroom: Callable[[bytes], float],
    report: Callable[[str], None] = lambda failure: None,
) -> Lowered | None:
    """Lower a graph with as few layers in float as leave ``headroom`` at zero or above.

    If the whole graph does not reach that, each layer's sensitivity is measured: the headroom with that layer alone in
    lower precision. The most sensitive layers are then left in float, one after the other. Returns None if no layer can
    be lowered.

    If ``convert`` or ``headroom`` raises ExportError, this counts as no headroom: a layer that cannot be lowered stays
    in float. If the whole graph fails in this way, ``report`` receives the reason, and a graph with more than
    ``_MOST_TRIED`` layers is left in float.
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
    """Name a graph's nodes by layer: each node with weights, and the nodes after it up to the next.

    A layer has the name of its first node. Nodes before all weights make a layer of their own.
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
    """Name the nodes of some of a graph's layers."""
    return [name for layer, names in layers_of(model).items() if layer in layers for name in names]


def to_int8(data: bytes, input_name: str, rows: Array, keep: Collection[str] = ()) -> bytes:
    """Lower a graph to INT8, by ONNX Runtime's own tool.

    It becomes float operators between QuantizeLinear and DequantizeLinear (QDQ), which any runtime reads.

    Activations are uint8 with the ranges that they take on ``rows`` (N, …); weights are int8 for each channel, and of
    seven bits (``reduce_range``), so that the sum of two products fits 16 bits, and processors without VNNI compute
    the same as others. ``keep`` names layers that stay float32.
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
    """Lower a graph to float16; inputs and outputs stay float32, and so do the layers that ``keep`` names."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load_from_string(data)
    del model.graph.value_info[:]
    try:
        with _quiet():
            converted = ONNXModel(
                convert_float_to_float16(model, keep_io_types=True, node_block_list=nodes_of(read(data), keep))
            )
            converted.topological_sort()  # its casts stand at the end
    except Exception as error:
        raise ExportError(f"ONNX Runtime could not convert the graph to float16: {_one_line(error)}") from error
    lowered: bytes = converted.model.SerializeToString(deterministic=True)
    return lowered


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the converters' advice: what they made is measured afterwards."""
    with without_logging(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
