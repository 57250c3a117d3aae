"""Fixtures that run the command faster than in a new process each time."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# PyTorch reads this when it loads. Waiting threads must not spin, because tests share the processors with other work.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import pytest

from vaekit.images.shapes import draw_shapes
from vaekit_cli.main import main

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, because importing PyTorch in a new one takes seconds."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["vaekit", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, handler)
            gc.unfreeze()  # what main froze because the process would end
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(arguments, ended.value.code, out, err)

    return run


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Write 150 coloured shapes of 12 x 9 pixels to shapes.npy, in the folder where commands run."""
    path = tmp_path / "shapes.npy"
    np.save(path, draw_shapes(150, (12, 9)).images)
    return path
