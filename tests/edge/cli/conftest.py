"""What the tests of the edge's commands share."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

Finished = Callable[["subprocess.Popen[str]"], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def finished() -> Finished:
    """Wait for a process in its own session and all of its children; return the result."""

    def wait(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        try:
            output, told = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, output, told)

    return wait
