"""No command runs what lies in the current folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., "subprocess.CompletedProcess[str]"]

MODULES = (
    "json", "logging", "multiprocessing", "numpy", "onnxruntime", "onnxruntime_x", "pickle", "PIL", "platform", "rich",
    "signal", "socket", "struct", "sitecustomize", "tempfile", "typer", "vaekit",
)  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of modules and packages under names that Python, vaekit and its dependencies import."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(
            f"open('executed', 'a').write('{name} ')\nraise SystemExit('{name} was run')\n"
        )
    (folder / "onnxruntime_y").mkdir()
    (folder / "onnxruntime_y" / "__init__.py").write_text("open('executed', 'a').write('onnxruntime_y ')\n")
    return folder


def check(result: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert not (folder / "executed").exists(), (folder / "executed").read_text()
    assert result.returncode == 0, result.stderr


def test_doctor_runs_nothing_there(vaekit: Run, hostile: Path) -> None:
    result = vaekit("doctor", cwd=hostile)
    check(result, hostile)
    assert "cpu" in result.stdout


def test_the_package_run_as_a_module_runs_nothing_there(hostile: Path) -> None:
    command = [sys.executable, "-m", "vaekit_cli", "doctor"]
    check(subprocess.run(command, cwd=hostile, capture_output=True, text=True, check=False), hostile)


def test_processes_that_decode_run_nothing_there(vaekit: Run, hostile: Path, tiny_bundle: Path) -> None:
    pictures = hostile / "pictures"
    pictures.mkdir()
    for number in range(257):  # more than are decoded in one process
        Image.fromarray(np.full((8, 8), number % 256, np.uint8)).save(pictures / f"{number}.png", compress_level=0)
    check(vaekit("encode", "pictures", "-m", tiny_bundle, "-o", "mu.npz", cwd=hostile), hostile)


def test_bench_runs_nothing_there(vaekit: Run, hostile: Path, tiny_bundle: Path) -> None:
    options = ("--batch", "1", "--threads", "1", "--seconds", "0.01")
    check(vaekit("bench", "-m", tiny_bundle, *options, cwd=hostile), hostile)
