from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaekit.bundle.onnx_file import OnnxInfo, TensorInfo, read_onnx

ENCODER = Path(__file__).parents[2].joinpath("bundles", "tiny").joinpath("encoder.onnx").read_bytes()
DECODER = Path(__file__).parents[2].joinpath("bundles", "tiny").joinpath("decoder.onnx").read_bytes()

IMAGE = TensorInfo("image", "float32", ("batch", 1, 8, 8))
quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)


# Protocol buffers written by hand; the field numbers are those of onnx.proto3.


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def number(at: int, value: int) -> bytes:
    return varint(at << 3) + varint(value)


def message(at: int, *parts: bytes | str) -> bytes:
    body = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return varint(at << 3 | 2) + varint(len(body)) + body


def opset(version: int, domain: str = "") -> bytes:
    return message(8, message(1, domain), number(2, version))


def node(operator: str, *attributes: bytes, domain: str = "", at: int = 1) -> bytes:
    return message(at, message(4, operator), *attributes, message(7, domain))


def value_info(at: int, name: str, *sizes: int | str, dtype: int = 1) -> bytes:
    dimensions = (message(1, number(1, size) if isinstance(size, int) else message(2, size)) for size in sizes)
    return message(at, message(1, name), message(2, message(1, number(1, dtype), message(2, *dimensions))))


def model(*graph: bytes, extra: bytes = b"") -> bytes:
    """Return a minimal model (IR version 8, opset 17, one output) with further fields."""
    return number(1, 8) + opset(17) + message(7, *graph, value_info(12, "out", "batch", 4)) + extra


def external_tensor(at: int) -> bytes:
    location = message(13, message(1, "location"), message(2, "/etc/passwd"))
    return message(at, number(2, 1), message(8, "weight"), location, number(14, 1))


def test_the_encoder_says_what_it_is() -> None:
    info = read_onnx(ENCODER)
    assert (info.ir_version, info.opsets) == (8, {"": 17})
    assert info.inputs == [IMAGE]
    assert info.outputs == [
        TensorInfo("mu", "float32", ("batch", 4)),
        TensorInfo("logvar", "float32", ("batch", 4)),
    ]
    assert not info.external_data
    assert info.operators["", "Conv"] >= 1


def test_the_decoder_says_what_it_is() -> None:
    info = read_onnx(DECODER)
    assert info.inputs == [TensorInfo("z", "float32", ("batch", 4))]
    assert info.outputs == [IMAGE]
    assert {domain for domain, _ in info.operators} == {""}
    assert not any("Random" in operator for _, operator in info.operators)


def test_a_hand_made_model_is_read() -> None:
    info = read_onnx(model(node("Relu"), node("Relu"), node("Exp"), value_info(11, "in", 2, "width", dtype=10)))
    assert info == OnnxInfo(
        ir_version=8,
        opsets={"": 17},
        inputs=[TensorInfo("in", "float16", (2, "width"))],
        outputs=[TensorInfo("out", "float32", ("batch", 4))],
        operators=info.operators,
    )
    assert info.operators == {("", "Relu"): 2, ("", "Exp"): 1}


def test_the_standard_domain_has_two_names() -> None:
    info = read_onnx(model(node("Relu", domain="ai.onnx")) + opset(18, "ai.onnx"))
    assert info.operators == {("", "Relu"): 1}
    assert info.opsets == {"": 18}


def test_a_size_that_is_not_given_is_empty() -> None:
    info = read_onnx(model(message(11, message(1, "in"), message(2, message(1, message(2, message(1)))))))
    assert info.inputs == [TensorInfo("in", "", ("",))]


def test_an_unheard_of_type_is_not_taken_for_another() -> None:
    (found,) = read_onnx(model(value_info(11, "in", 1, dtype=99))).inputs
    assert "99" in found.dtype


SUBGRAPH = message(5, message(1, "then_branch"), message(6, node("Evil", domain="com.evil"), external_tensor(5)))
GRAPHS = message(5, message(1, "bodies"), message(11, node("Evil", domain="com.evil"), external_tensor(5)))
FUNCTION = message(25, message(1, "f"), node("Evil", message(5, external_tensor(5)), domain="com.evil", at=7))
NESTED = message(5, message(6, node("If", message(5, message(6, node("If", SUBGRAPH))))))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(model(node("Evil", domain="com.evil"), external_tensor(5)), id="graph"),
        pytest.param(model(node("If", SUBGRAPH)), id="subgraph"),
        pytest.param(model(node("Scan", GRAPHS)), id="list of subgraphs"),
        pytest.param(model(node("If", NESTED)), id="subgraph of a subgraph"),
        pytest.param(model(extra=FUNCTION), id="function"),
        pytest.param(model(extra=message(7, node("Evil", domain="com.evil"), external_tensor(5))), id="second graph"),
    ],
)
def test_foreign_operators_and_external_data_are_found_in_a(data: bytes) -> None:
    info = read_onnx(data)
    assert info.operators["com.evil", "Evil"] == 1
    assert info.external_data


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(external_tensor(5), id="initialiser"),
        pytest.param(message(5, number(14, 1)), id="location alone"),
        pytest.param(message(15, external_tensor(1)), id="values of a sparse initialiser"),
        pytest.param(message(15, external_tensor(2)), id="indices of a sparse initialiser"),
        pytest.param(node("Constant", message(5, external_tensor(5))), id="constant"),
        pytest.param(node("Custom", message(5, external_tensor(10))), id="list of constants"),
        pytest.param(node("Constant", message(5, message(22, external_tensor(1)))), id="sparse constant"),
        pytest.param(node("Custom", message(5, message(23, external_tensor(1)))), id="list of sparse constants"),
    ],
)
def test_external_data_is_found_in_an(graph: bytes) -> None:
    assert read_onnx(model(graph)).external_data


def test_external_data_is_found_in_a_functions_default() -> None:
    default = message(11, message(1, "weight"), external_tensor(5))
    assert read_onnx(model(extra=message(25, message(1, "f"), default))).external_data


def test_data_within_the_file_is_not_external() -> None:
    inside = message(5, number(2, 1), message(8, "weight"), message(9, b"\0" * 4), number(14, 0))
    assert not read_onnx(model(inside)).external_data


def test_a_file_that_nests_too_deeply_is_refused() -> None:
    body = node("Relu")
    for _ in range(3_000):
        body = node("If", message(5, message(6, body)))
    with pytest.raises(ValueError, match="not a complete ONNX file"):
        read_onnx(model(body))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="a picture"),
        pytest.param(b'{"format": "vaekit-bundle"}', id="text"),
        pytest.param(opset(17) + message(7, value_info(12, "out", 1)), id="no IR version"),
        pytest.param(number(1, 8) + message(7, value_info(12, "out", 1)), id="no opset"),
        pytest.param(number(1, 8) + opset(17) + message(7), id="no outputs"),
        pytest.param(message(1, "8") + opset(17) + message(7, value_info(12, "out", 1)), id="text for a number"),
        pytest.param(model(extra=number(7, 1)), id="a number for a graph"),
        pytest.param(model(extra=message(8, message(1, b"\xff\xfe"))), id="a name that is no text"),
        pytest.param(model(extra=b"\x80" * 5), id="a number without end"),
        pytest.param(model(extra=varint(5 << 3) + b"\x80" * 11 + b"\x01"), id="a number of more than 64 bits"),
        pytest.param(model(extra=varint(7 << 3 | 2) + varint(2**62)), id="a length beyond the file"),
        pytest.param(model(extra=varint(9 << 3 | 3)), id="a group"),
    ],
)
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a complete ONNX file"):
        read_onnx(data)


def read_or_refuse(data: bytes) -> None:
    try:
        info = read_onnx(data)
    except ValueError:
        return
    assert info.ir_version
    assert info.outputs


@quick
@given(st.binary(max_size=300))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    read_or_refuse(data)


@quick
@given(st.binary(max_size=100))
def test_random_bytes_in_a_graph_are_read_or_refused(data: bytes) -> None:
    read_or_refuse(model(data, node("If", message(5, message(6, data)))))


def test_a_file_cut_short_is_refused() -> None:
    for length in random.Random(0).sample(range(len(ENCODER)), 300):
        with pytest.raises(ValueError, match="not a complete ONNX file"):
            read_onnx(ENCODER[:length])


@quick
@given(st.integers(0, len(DECODER) - 1), st.binary(min_size=1, max_size=4))
def test_an_altered_file_is_read_or_refused(at: int, patch: bytes) -> None:
    read_or_refuse(DECODER[:at] + patch + DECODER[at + len(patch) :])
