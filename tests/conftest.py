"""What all tests share. Nothing here imports torch: the edge's tests run where it is not installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# A shell without job control starts what it puts in the background with Ctrl-C ignored, and commands inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def bundles() -> Path:
    """The folder of small real bundles; see the scripts there that made them."""
    return Path(__file__).parent / "bundles"


@pytest.fixture
def tiny_bundle(bundles: Path) -> Path:
    """A small real bundle of format 1."""
    return bundles / "tiny"


@pytest.fixture
def copied_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def newest_bundle(bundles: Path, tmp_path: Path) -> Path:
    """A copy of the same bundle in the newest format, to change."""
    return Path(shutil.copytree(bundles / "tiny-v3", tmp_path / "newest"))


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
    """``assert_fails(result, code, *words)``: it exited so, its last line is `error: …` and holds each of the words."""

    def check(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
        lines = result.stderr.strip().splitlines()
        assert result.returncode == code, result
        assert lines[-1].startswith("error: "), result.stderr
        assert sum(line.startswith("error:") for line in lines) == 1, result.stderr
        assert "Traceback" not in result.stderr
        for word in words:
            assert word in lines[-1], lines[-1]

    return check
