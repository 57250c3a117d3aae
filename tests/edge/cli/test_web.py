"""`vaekit web`, through the console script. tests/web opens what it writes in a browser."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

NEEDED = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
FOR_GPU = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """Return a folder node_modules whose onnxruntime-web has the names of the real one, and stands near."""
    package = tmp_path / "node_modules" / "onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.30.0"}')
    for name in (*NEEDED, *FOR_GPU):
        (package / "dist" / name).write_bytes(name.encode())
    return package.parent


def test_a_site_has_the_bundle_and_relative_addresses_only(
    vaekit: Run, tiny_bundle: Path, runtime: Path, tmp_path: Path
) -> None:
    result = vaekit("web", "-m", tiny_bundle, "-o", "site")
    assert result.returncode == 0, result.stderr
    assert "with onnxruntime-web 1.30.0" in result.stderr
    assert f"next: vaekit web -m {tiny_bundle} -o site --serve" in result.stderr
    site = tmp_path / "site"
    assert {path.name for path in (site / "runtime").iterdir()} == {*NEEDED, *FOR_GPU}
    for path in tiny_bundle.iterdir():
        assert (site / "bundle" / path.name).read_bytes() == path.read_bytes()
    page = (site / "index.html").read_text()
    assert all((site / name).is_file() for name in re.findall(r'(?:src|href)="([^"]+)"', page))
    policy = re.search(r'Content-Security-Policy"\s+content="([^"]+)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe-inline" not in policy[1]
    for path in site.rglob("*.js"):
        assert not re.search(r'(?:from|import\() *"(?!\./|\.\./|node:)', path.read_text()), path


def test_machines_get_one_document(vaekit: Run, tiny_bundle: Path, runtime: Path, tmp_path: Path) -> None:
    result = vaekit("web", "-m", tiny_bundle, "--json")
    found = json.loads(result.stdout)
    files = [path for path in (tmp_path / "vae-web").rglob("*") if path.is_file()]
    assert found == {
        "output": "vae-web",
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "runtime": "1.30.0",
        "model": str(tiny_bundle),
        "address": None,
    }
    assert result.stderr == ""


@pytest.mark.parametrize("part", ["", "onnxruntime-web", "onnxruntime-web/dist"])
def test_the_runtime_may_be_named(vaekit: Run, tiny_bundle: Path, runtime: Path, tmp_path: Path, part: str) -> None:
    elsewhere = runtime.rename(tmp_path / "elsewhere")
    assert vaekit("web", "-m", tiny_bundle, "--runtime", elsewhere / part).returncode == 0


def test_the_runtime_is_found_further_up(vaekit: Run, tiny_bundle: Path, runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert vaekit("web", "-m", tiny_bundle, cwd=tmp_path / "a" / "b").returncode == 0


def test_without_the_files_for_a_gpu_there_is_none(
    vaekit: Run, tiny_bundle: Path, runtime: Path, tmp_path: Path
) -> None:
    (runtime / "onnxruntime-web" / "dist" / FOR_GPU[2]).unlink()
    assert vaekit("web", "-m", tiny_bundle).returncode == 0
    assert {path.name for path in (tmp_path / "vae-web" / "runtime").iterdir()} == set(NEEDED)


def test_without_a_runtime_the_command_that_gets_it_is_named(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert_fails(vaekit("web", "-m", tiny_bundle), 1, "npm install onnxruntime-web", "--runtime")
    assert_fails(vaekit("web", "-m", tiny_bundle, "--runtime", "none"), 1, "not in none", "npm install onnxruntime-web")
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_lacks_files(vaekit: Run, assert_fails: Fails, tiny_bundle: Path, runtime: Path) -> None:
    (runtime / "onnxruntime-web" / "dist" / NEEDED[2]).unlink()
    assert_fails(vaekit("web", "-m", tiny_bundle), 1, "lacks ort-wasm-simd-threaded.wasm", "npm install")


def test_only_a_site_is_replaced(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, bundles: Path, runtime: Path, tmp_path: Path
) -> None:
    vaekit("web", "-m", tiny_bundle, "-o", "site").check_returncode()
    vaekit("web", "-m", bundles / "map", "-o", "site").check_returncode()
    assert (tmp_path / "site/bundle/encoder.onnx").read_bytes() == (bundles / "map/encoder.onnx").read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert_fails(vaekit("web", "-m", tiny_bundle, "-o", "mine"), 1, "mine", "not empty")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_damaged_bundle_gives_no_site(
    vaekit: Run, assert_fails: Fails, copied_bundle: Path, runtime: Path, tmp_path: Path
) -> None:
    (copied_bundle / "golden.npz").unlink()
    assert_fails(vaekit("web", "-m", copied_bundle), 1, "golden.npz is missing")
    assert not (tmp_path / "vae-web").exists()


def test_a_port_without_a_server_is_no_command(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, runtime: Path, tmp_path: Path
) -> None:
    assert_fails(vaekit("web", "9000", "-m", tiny_bundle), 2, "a port is for --serve")
    assert_fails(vaekit("web", "-m", tiny_bundle, "--serve", "99999"), 2, "99999 is not in the range")
    assert not (tmp_path / "vae-web").exists()


def test_a_zip_is_a_bundle_too(vaekit: Run, tiny_bundle: Path, runtime: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "bundle"), "zip", tiny_bundle)
    assert vaekit("web", "-m", "bundle.zip").returncode == 0
    assert (tmp_path / "vae-web/bundle/golden.npz").is_file()


def test_serve_until_a_signal(tiny_bundle: Path, runtime: Path, tmp_path: Path) -> None:
    script = str(Path(sys.executable).with_name("vaekit"))
    command = [script, "web", "-m", str(tiny_bundle), "--serve", "0", "--json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as page:  # noqa: S310 — our own server
            assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert page.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert b"<title>vaekit</title>" in page.read()
        with urllib.request.urlopen(address + "runtime/ort.wasm.min.mjs") as module:  # noqa: S310
            assert module.headers["Content-Type"] == "text/javascript"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_port_that_is_taken(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, runtime: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = vaekit("web", "-m", tiny_bundle, "--serve", port)
    assert_fails(result, 1, f"cannot serve on 127.0.0.1:{port}", "Choose another port")
    assert not (tmp_path / "vae-web").exists()
