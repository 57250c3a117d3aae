"""Fixtures for all tests. This file must not import torch, because the edge's tests run without it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vaekit as package
from vaekit.maths.surprise import measure

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# A shell without job control starts background processes with SIGINT ignored, and the commands would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def bundles() -> Path:
    """Return the folder of small real bundles; scripts in that folder made them."""
    return Path(__file__).parent / "bundles"


@pytest.fixture
def tiny_bundle(bundles: Path) -> Path:
    """Return a small real bundle of format 1."""
    return bundles / "tiny"


@pytest.fixture
def copied_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of that bundle that may be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def newest_bundle(bundles: Path, tmp_path: Path) -> Path:
    """Return a copy of the same bundle in the newest format that may be changed."""
    return Path(shutil.copytree(bundles / "tiny-v3", tmp_path / "newest"))


@pytest.fixture
def with_residuals(bundles: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a bundle and adds statistics of residuals, measured on its own samples."""

    def copied(name: str = "tiny", **changes: Any) -> Path:
        vae = package.load(bundles / name, provider="cpu")
        images = vae.sample(60, seed=1)
        statistics = dataclasses.asdict(measure(images, vae.reconstruct(images), 1.0)) | changes
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{key: value for key, value in statistics.items() if value is not None})
        copy = Path(shutil.copytree(bundles / name, tmp_path / name))
        (copy / "residuals.npz").write_bytes(buffer.getvalue())
        document = json.loads((copy / "manifest.json").read_text())
        document["residuals"] = {"file": "residuals.npz", "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        (copy / "manifest.json").write_text(json.dumps(document))
        return copy

    return copied


@pytest.fixture
def vaekit(tmp_path: Path) -> Run:
    """Run the real console script in an empty folder: ``vaekit("sample", "-n", "4").returncode``."""
    script = Path(sys.executable).with_name("vaekit")
    if not script.exists():
        pytest.fail(f"{script} is not there: pip install -e .")

    def run(
        *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path = tmp_path
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run


@pytest.fixture
def assert_fails() -> Callable[..., None]:
    """Return ``assert_fails(result, code, *words)``.

    It checks the exit code, and that the last line is `error: …` and contains each of the words.
    """

    def check(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
        lines = result.stderr.strip().splitlines()
        assert result.returncode == code, result
        assert lines[-1].startswith("error: "), result.stderr
        assert sum(line.startswith("error:") for line in lines) == 1, result.stderr
        assert "Traceback" not in result.stderr
        for word in words:
            assert word in lines[-1], lines[-1]

    return check
