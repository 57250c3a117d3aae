"""Fixtures that run the JavaScript library in Node.js."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaekit import errors

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
INSTALL = "npm install --prefix tests/web --ignore-scripts"

Call = Callable[..., Any]
"""``call(bundle, "sample", 3, {"seed": 7})`` returns what the method returns; arrays are NumPy's."""


def packed(value: Any) -> Any:
    """Convert arguments to what tests/web/driver.js reads."""
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:  # a picture (H, W, C)
        text = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"u8": text, "height": value.shape[0], "width": value.shape[1]}
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value, np.float32)
        return {"f32": base64.b64encode(array.tobytes()).decode(), "shape": list(array.shape)}
    if isinstance(value, dict):
        return {key: packed(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [packed(each) for each in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53:
        return {"bigint": str(value)}
    return value


def unpacked(value: Any) -> Any:
    """Convert a result."""
    if isinstance(value, dict) and "f32" in value:
        return np.frombuffer(base64.b64decode(value["f32"]), "<f4").reshape(value["shape"])
    if isinstance(value, dict) and "f64" in value:
        return np.frombuffer(base64.b64decode(value["f64"]), "<f8")
    if isinstance(value, dict):
        return {key: unpacked(each) for key, each in value.items()}
    return value


def result_of(reply: dict[str, Any]) -> Any:
    """Return a reply's result, or raise the error of that name in vaekit."""
    if "error" in reply:
        kind = getattr(errors, reply["error"], None)
        if kind is None:
            pytest.fail(reply["stack"])
        raise kind(reply["message"])
    return unpacked(reply.get("result"))


def request_of(bundle: Any, call: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return a request for tests/web/driver.js; a bundle of bytes is a .zip file's contents."""
    if isinstance(bundle, bytes):
        source = {"zip": base64.b64encode(bundle).decode()}
    else:
        source = {} if bundle is None else {"bundle": str(bundle)}
    return {**source, **options, "call": call, "args": packed(arguments)}


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Return the folder of packages from npm, or skip."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    if not MODULES.is_dir():
        pytest.skip(f"packages from npm are not installed: {INSTALL}")
    return MODULES


@pytest.fixture(scope="session")
def node(node_modules: Path) -> Iterator[Call]:
    """Return a function that calls the library in one Node.js process."""
    command = ["node", str(HERE / "node.js")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def call(bundle: Any, name: str, *arguments: Any, **options: Any) -> Any:
            stdin.write(json.dumps(request_of(bundle, name, arguments, options)) + "\n")
            stdin.flush()
            return result_of(json.loads(stdout.readline()))

        yield call
        stdin.close()
