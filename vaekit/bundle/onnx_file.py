"""Read an ONNX file's metadata without the onnx package, to check a graph before running it.

ONNX files are protocol buffers; the field numbers below are those of onnx.proto3. Weights are skipped, not copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}

_Field = tuple[int, "int | memoryview"]  # field number, and its value: an int for varints, bytes for other types


@dataclass(frozen=True)
class TensorInfo:
    """A graph's input or output."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """A size for each axis. A free size has a name, or "" if the file states neither."""


@dataclass
class OnnxInfo:
    """An ONNX file's metadata."""

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    """Opset version by domain; the standard domain is ""."""
    inputs: list[TensorInfo] = field(default_factory=list)
    outputs: list[TensorInfo] = field(default_factory=list)
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of nodes by (domain, operator), including those in subgraphs and functions."""
    external_data: bool = False
    """Whether any tensor is stored in another file."""


def read_onnx(data: bytes) -> OnnxInfo:
    """Read an ONNX file's metadata. Raises ValueError if it is not a complete ONNX file."""
    info = OnnxInfo()
    try:
        for number, value in _fields(memoryview(data)):
            if number == 1:
                info.ir_version = _integer(value)
            elif number == 7:
                _read_graph(_nested(value), info, top=True)
            elif number == 8:
                _read_opset(_nested(value), info)
            elif number == 25:
                _read_function(_nested(value), info)
    except (IndexError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("it is not a complete ONNX file") from error
    if not info.ir_version or not info.opsets or not info.outputs:
        raise ValueError("it is not a complete ONNX file")
    return info


def _read_opset(message: memoryview, info: OnnxInfo) -> None:
    domain, version = "", 0
    for number, value in _fields(message):
        if number == 1:
            domain = _text(value)
        elif number == 2:
            version = _integer(value)
    info.opsets["" if domain == "ai.onnx" else domain] = version


def _read_graph(message: memoryview, info: OnnxInfo, *, top: bool = False) -> None:
    for number, value in _fields(message):
        if number == 1:
            _read_node(_nested(value), info)
        elif number == 5:
            _read_tensor(_nested(value), info)
        elif number == 15:
            _read_sparse_tensor(_nested(value), info)
        elif top and number == 11:
            info.inputs.append(_tensor_info(_nested(value)))
        elif top and number == 12:
            info.outputs.append(_tensor_info(_nested(value)))


def _read_node(message: memoryview, info: OnnxInfo) -> None:
    operator, domain = "", ""
    for number, value in _fields(message):
        if number == 4:
            operator = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            _read_attribute(_nested(value), info)
    info.operators["" if domain == "ai.onnx" else domain, operator] += 1


def _read_attribute(message: memoryview, info: OnnxInfo) -> None:
    for number, value in _fields(message):
        if number in (5, 10):
            _read_tensor(_nested(value), info)
        elif number in (6, 11):
            _read_graph(_nested(value), info)
        elif number in (22, 23):
            _read_sparse_tensor(_nested(value), info)


def _read_function(message: memoryview, info: OnnxInfo) -> None:
    """Read a model's local function. Its nodes are field 7, its attributes' defaults field 11."""
    for number, value in _fields(message):
        if number == 7:
            _read_node(_nested(value), info)
        elif number == 11:
            _read_attribute(_nested(value), info)


def _read_sparse_tensor(message: memoryview, info: OnnxInfo) -> None:
    """Read a sparse tensor. Its values are field 1, its indices field 2."""
    for number, value in _fields(message):
        if number in (1, 2):
            _read_tensor(_nested(value), info)


def _read_tensor(message: memoryview, info: OnnxInfo) -> None:
    # Field 13 gives the location of external data; field 14 is 1 if the data is external.
    for number, value in _fields(message):
        if number == 13 or (number == 14 and value == 1):
            info.external_data = True


def _tensor_info(message: memoryview) -> TensorInfo:
    """Read a ValueInfoProto. Its name is field 1 and its type field 2.

    The tensor type is field 1 of the type, with the element type in field 1 and the shape in field 2.
    """
    name, dtype = "", ""
    shape: tuple[int | str, ...] = ()
    for number, value in _fields(message):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for tensor_number, tensor in _fields(_nested(value)):
                if tensor_number == 1:
                    dtype, shape = _tensor_type(_nested(tensor))
    return TensorInfo(name, dtype, shape)


def _tensor_type(message: memoryview) -> tuple[str, tuple[int | str, ...]]:
    dtype = ""
    shape: tuple[int | str, ...] = ()
    for number, value in _fields(message):
        if number == 1:
            dtype = _DTYPES.get(_integer(value), f"type {value!r}")
        elif number == 2:
            shape = tuple(_dimension(_nested(size)) for inner, size in _fields(_nested(value)) if inner == 1)
    return dtype, shape


def _dimension(message: memoryview) -> int | str:
    for number, value in _fields(message):
        if number == 1:
            return _integer(value)
        if number == 2:
            return _text(value)
    return ""


def _fields(message: memoryview) -> Iterator[_Field]:
    """Yield a message's fields. Raises IndexError if it is truncated, ValueError if it is invalid."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("it is not a complete ONNX file")
        if at + size > len(message):
            raise IndexError
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("it is not a complete ONNX file")


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("it is not a complete ONNX file")
    return value


def _nested(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it is not a complete ONNX file")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_nested(value)).decode()
