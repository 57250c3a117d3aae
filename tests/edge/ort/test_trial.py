"""Whatever ONNX Runtime does to a graph under trial, the calling program continues and receives one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from vaekit.ort.trial import Trial


@pytest.fixture
def decoder(tiny_bundle: Path) -> bytes:
    return (tiny_bundle / "decoder.onnx").read_bytes()


ROWS = np.zeros((20, 4), np.float32)


def test_one_process_tries_one_graph_after_the_other(decoder: bytes) -> None:
    with Trial() as trial:
        assert trial.failure(decoder, ROWS) == ""
        process = trial._process
        assert "cannot load this graph" in trial.failure(b"no graph", ROWS)
        assert "ONNX Runtime fails on it" in trial.failure(decoder, np.zeros((2, 3), np.float32))
        assert trial.failure(decoder, ROWS[:1]) == ""
        assert trial._process is process
        assert process is not None
    assert process.poll() is not None


CRASH = "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 11)"
SILENT = "import sys, time; sys.stdin.readline(); time.sleep(600)"
LEAVING = "import sys; sys.exit(3)"


@pytest.mark.parametrize(
    ("code", "words"), [(CRASH, "crashes on it (signal 11)"), (SILENT, "after 2 seconds"), (LEAVING, "(exit code 3)")]
)
def test_a_crash_and_a_hang_are_survived(decoder: bytes, code: str, words: str) -> None:
    with Trial(limit=2.0 if code == SILENT else 60.0, command=[sys.executable, "-c", code]) as trial:
        for _ in range(2):  # the second in a process of its own
            assert words in trial.failure(decoder, ROWS)


def test_the_process_loads_no_torch_and_nothing_of_the_current_folder(
    decoder: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "json", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    with Trial() as trial:
        assert trial.failure(decoder, ROWS) == ""
