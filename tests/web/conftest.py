"""Fixtures that run the JavaScript library and pages, in Node.js and in Chromium."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vaekit import errors
from vaekit.web.server import open_server, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
CHROMIUM = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),  # a camera, without a question
)
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


@pytest.fixture(scope="session")
def browser(node_modules: Path) -> Iterator[Browser]:
    """Return Chromium, or skip."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM))
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def in_browser(browser: Browser) -> Iterator[Call]:
    """Return a function that calls the library in a page of Chromium, with bundles as .zip files."""
    page = browser.new_page()

    def call(bundle: Any, name: str, *arguments: Any, **options: Any) -> Any:
        data = zipped(bundle) if isinstance(bundle, os.PathLike) else bundle
        request = request_of(data, name, arguments, options)
        return result_of(json.loads(page.evaluate("request => window.answer(request)", request)))

    with serving(open_server(HERE.parents[1], 0)) as address:
        page.goto(f"{address}tests/web/library.html")
        page.wait_for_function("window.answer !== undefined")
        yield call
        page.close()


@pytest.fixture(params=["node", "in_browser"])
def javascript(request: pytest.FixtureRequest) -> Any:
    """Return both functions in turn."""
    return request.getfixturevalue(request.param)


def zipped(bundle: os.PathLike[str]) -> bytes:
    """Return a bundle as a .zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in Path(bundle).iterdir():
            archive.write(path, path.name)
    return buffer.getvalue()
