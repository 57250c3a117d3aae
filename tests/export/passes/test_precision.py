"""The most sensitive layers stay in float, and models that cannot be quantised are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vaekit.errors import ExportError
from vaekit_export.passes import read
from vaekit_export.passes.precision import layers_of, lower, to_int8


def test_sensitive_layers_are_left_out_in_the_order_that_was_measured() -> None:
    loss = {"a": 5.0, "b": 1.0, "c": 3.0}  # dB lost by each layer; ten may be lost in total

    def convert(keep: Any) -> bytes:
        return ",".join(name for name in loss if name not in keep).encode()

    def headroom(limit: float) -> Callable[[bytes], float]:
        return lambda data: limit - sum(loss[name] for name in data.decode().split(",") if name)

    cases = {9.0: (), 8.0: ("a",), 3.0: ("a", "c"), 0.5: None}
    for limit, kept in cases.items():
        found = lower(list(loss), convert, headroom(limit))
        assert (found.in_float if found else None) == (kept if limit < 9 else ()), limit


def test_a_layer_is_a_weight_and_what_follows_it(tiny_bundle: Path) -> None:
    layers = layers_of(read((tiny_bundle / "decoder.onnx").read_bytes()))
    assert [len(nodes) for nodes in layers.values()] == [4, 2]
    assert sum(len(nodes) for nodes in layers.values()) == len(onnx.load(tiny_bundle / "decoder.onnx").graph.node)


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(ExportError, match="could not quantise"):
        to_int8(b"no graph", "image", np.zeros((2, 1, 8, 8), np.float32))
