"""Trial runs of graphs in a separate process, which may crash, hang or run out of memory.

On some graphs ONNX Runtime's optimiser ends the process with a segmentation fault, which cannot be caught. This module
is not in ``vaekit_export``, so that the process loads neither PyTorch nor onnx.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from vaekit.types import Array

TIME_LIMIT = 300.0
"""Seconds allowed for opening and running a graph."""

_ROWS = 8  # number of rows for a trial: the first alone, then all together
_GRAPH, _INPUT = "graph.onnx", "rows.npy"


class Trial:
    """A process that tries graphs, one after the other.

    If a graph crashes it, the next trial starts a new process. Use it as a context manager, which ends the process.
    """

    def __init__(self, *, limit: float = TIME_LIMIT, command: list[str] | None = None) -> None:
        self._limit = limit
        self._command = command or [sys.executable, "-P", "-m", "vaekit.ort.trial"]
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()
        if self._folder is not None:
            self._folder.cleanup()

    def failure(self, model: bytes, rows: Array) -> str:
        """Return why ONNX Runtime cannot run a graph on rows, or "".

        The graph has one input.
        """
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="vaekit-")
        folder = Path(self._folder.name)
        folder.joinpath(_GRAPH).write_bytes(model)
        np.save(folder / _INPUT, rows[:_ROWS])
        process = self._started()
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # if the process has died, there is no answer below
            process.stdin.write(f"{folder}\n")
            process.stdin.flush()
        try:
            answer = self._answers.get(timeout=self._limit)
        except queue.Empty:
            self._end()
            return f"ONNX Runtime had not finished after {self._limit:g} seconds"
        if not answer:
            code = self._end()
            return f"ONNX Runtime crashes on it ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
        return str(json.loads(answer))

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(  # noqa: S603 — it runs this module
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._answers = queue.Queue()
            threading.Thread(target=_pass_on, args=(self._process, self._answers), daemon=True).start()
        return self._process

    def _end(self) -> int:
        """End the process and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
            process.wait(0.2)
        process.kill()
        return process.wait()


def _pass_on(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    """Put each line that a process prints in a queue.

    At the end of the process, put "".
    """
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            answers.put(line)
    answers.put("")


def _try(folder: Path) -> str:
    import onnxruntime

    from vaekit.errors import VaekitError
    from vaekit.ort.session import open_on_cpu

    model, rows = folder.joinpath(_GRAPH).read_bytes(), np.load(folder / _INPUT)
    try:
        session = open_on_cpu("graph", model).session
        name = session.get_inputs()[0].name
        for part in (rows[:1], rows):
            session.run(None, {name: part})
    except VaekitError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 — ONNX Runtime's exceptions have no common base class
        return " ".join(f"ONNX Runtime fails on it: {error}".split())
    # Tolerances are later measured on the unoptimised graph too. A crash must happen here; an error does not matter.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    with contextlib.suppress(Exception):
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {name: rows})
    return ""


def _serve() -> None:
    """Try the graph in each folder named on stdin.

    Each answer is one line of JSON: a string that says why the graph cannot run, or "".
    """
    with contextlib.suppress(OSError):  # if memory runs out, Linux kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # so that libraries' prints do not mix with the answers
        for line in sys.stdin:
            answers.write(json.dumps(_try(Path(line.rstrip("\n")))) + "\n")
            answers.flush()


if __name__ == "__main__":
    _serve()
