"""Run a graph from a stranger in a process of its own, with limits of memory and time. Linux only.

ONNX Runtime parses, optimises and runs the graph there, and only numbers come back. The process opens no file and no
connection once the graph is loaded into it, writes none, and leaves no core dump. It is no sandbox: what takes the
process over can still do what needs no open file, such as to end other processes of the user.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import UsageError, VaekitError

_LENGTH = 8  # bytes that say how many bytes follow
_LONGEST_HEAD = 1 << 20  # bytes
_GIGABYTE = 10**9
_WATCH_SECONDS = 0.5
_NO_NEW_PRIVILEGES = 38  # an option of Linux's prctl


@dataclass(frozen=True)
class Limits:
    """What a graph from a stranger may take."""

    memory: float = 4.0
    """Gigabytes (10⁹ bytes), in addition to what ONNX Runtime takes without a graph."""
    seconds: float = 60.0
    """For opening the graph, and for each batch that it processes."""

    def check(self) -> None:
        """Raise UsageError for limits out of range, and on systems other than Linux."""
        if not sys.platform.startswith("linux"):
            raise UsageError("untrusted graphs can only be confined on Linux: run them in a virtual machine")
        if not (0 < self.memory < math.inf and 0 < self.seconds < math.inf):
            raise UsageError(
                f"limits are positive numbers of gigabytes and seconds, not {self.memory:g} and {self.seconds:g}"
            )


class EndedError(VaekitError):
    """A graph failed in its process, or was ended there."""


class ConfinedSession:
    """A graph in a process of its own. It is used like ONNX Runtime's InferenceSession."""

    def __init__(self, name: str, model: bytes, threads: int, spinning: bool, limits: Limits) -> None:
        """Start the process and open the graph. Raises EndedError if that fails."""
        self._limits, self._lock = limits, threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vaekit.ort.confined"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is this process's to handle
        )
        weakref.finalize(self, _end, self._process, os.getpid())
        settings = {"name": name, "threads": threads, "spinning": spinning, "memory": limits.memory}
        answer, _ = self._ask(settings | {"bytes": len(model)}, [model])
        try:
            self.placement = {str(key): int(count) for key, count in dict(answer["placement"]).items()}
        except (KeyError, TypeError, ValueError) as error:
            raise EndedError("its process answered with what is no answer") from error

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return the outputs of these names, all of them if there are none. Raises EndedError if that fails."""
        arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in feeds.items()}
        question = {"outputs": list(outputs), "feeds": {name: array.shape for name, array in arrays.items()}}
        results = self._ask(question, [array.data for array in arrays.values()])[1]
        if outputs and len(results) != len(outputs):
            raise EndedError(f"its process answered with {len(results)} arrays instead of {len(outputs)}")
        return results

    def _ask(
        self, question: Mapping[str, Any], parts: Sequence[bytes | memoryview]
    ) -> tuple[dict[str, Any], list[NDArray[np.float32]]]:
        with self._lock:
            late, process = threading.Event(), self._process

            def end() -> None:  # holds the process and not the session, which may end before the timer's thread does
                late.set()
                process.kill()

            timer = threading.Timer(self._limits.seconds, end)
            timer.daemon = True
            timer.start()
            try:
                answer, arrays = self._exchange(question, parts)
            except (OSError, EOFError) as error:
                raise EndedError(self._why(late.is_set())) from error
            except (ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
                self._process.kill()
                raise EndedError("its process answered with what is no answer, and was ended") from error
            except BaseException:  # Ctrl-C, say: the answer that is still to come must not be taken for the next one's
                self._process.kill()
                self._process.wait()
                raise
            finally:
                timer.cancel()
        if "error" in answer:
            memory = f" (it may take {self._limits.memory:g} GB of memory)" if answer.get("memory") else ""
            raise EndedError(f"{answer['error']}{memory}")
        return answer, arrays

    def _exchange(
        self, question: Mapping[str, Any], parts: Sequence[bytes | memoryview]
    ) -> tuple[dict[str, Any], list[NDArray[np.float32]]]:
        into, out = self._process.stdin, self._process.stdout
        assert into is not None
        assert out is not None
        _write_head(into, question)
        for part in parts:
            into.write(part)
        into.flush()
        answer = _read_head(out)
        return answer, _read_arrays(out, answer.get("shapes", []), int(self._limits.memory * _GIGABYTE))

    def _why(self, late: bool) -> str:
        """Return why the process ended."""
        code = self._process.wait()
        if late:
            return f"it took longer than {self._limits.seconds:g} seconds, and its process was ended"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with code {code}"


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a session's process, unless this is a fork of the one that started it."""
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except OSError:  # what was not yet written cannot be any more
            continue


# What goes both ways: the length of a JSON object, the object, and the bytes that it announces. Nothing is unpickled.


def _write_head(stream: IO[bytes], head: Mapping[str, Any]) -> None:
    data = json.dumps(head).encode()
    stream.write(len(data).to_bytes(_LENGTH, "little") + data)


def _read_head(stream: IO[bytes]) -> dict[str, Any]:
    length = int.from_bytes(_read(stream, _LENGTH), "little")
    if length > _LONGEST_HEAD:
        raise ValueError("too long")
    head = json.loads(_read(stream, length))
    if not isinstance(head, dict):
        raise TypeError("no object")
    return head


def _read(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _read_arrays(stream: IO[bytes], shapes: Sequence[Sequence[int]], most: int) -> list[NDArray[np.float32]]:
    """Read float32 arrays of these shapes. Raises ValueError if they have more than ``most`` bytes together."""
    sizes = [[int(side) for side in shape] for shape in shapes]
    if any(side < 0 for size in sizes for side in size) or sum(4 * math.prod(size) for size in sizes) > most:
        raise ValueError("too large")
    arrays = [np.empty(size, np.float32) for size in sizes]
    for array in arrays:
        if array.size and stream.readinto(array.reshape(-1).view(np.uint8)) < array.nbytes:  # type: ignore[attr-defined]
            raise EOFError
    return arrays


def main() -> None:
    """Be the process: open the graph that stdin brings, and run it on what follows."""
    import ctypes

    from vaekit.ort.session import open_on_cpu

    questions = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    settings = _read_head(questions)
    model = _read(questions, settings["bytes"])
    _limit(int(settings["memory"] * _GIGABYTE))
    try:
        graph = open_on_cpu(settings["name"], model, settings["threads"], settings["spinning"])
    except VaekitError as error:
        _fail(answers, str(error))
        return
    _write_head(answers, {"placement": graph.placement})
    answers.flush()
    while True:
        try:
            question = _read_head(questions)
        except EOFError:
            return
        _answer(graph.session, question, questions, answers)


def _end_with(parent: int) -> None:
    """End this process soon after its parent, also if a graph runs without end.

    Linux's own signal for that is sent when the thread ends that started the process, which may be a short one.
    """
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _limit(memory: int) -> None:
    """Limit this process to ``memory`` more bytes, and to the files that are open."""
    import resource

    from vaekit.ort.providers import import_onnxruntime

    import_onnxruntime()  # its libraries must be loaded while files can be opened
    with open("/proc/self/statm", "rb") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))


def _answer(session: Any, question: Mapping[str, Any], questions: IO[bytes], answers: IO[bytes]) -> None:
    names, shapes = list(question["feeds"]), list(question["feeds"].values())
    arrays = _read_arrays(questions, shapes, sys.maxsize)
    try:
        results = session.run(question["outputs"], dict(zip(names, arrays, strict=True)))
        kinds = {str(getattr(array, "dtype", type(array).__name__)) for array in results} - {"float32"}
        if kinds:
            raise TypeError(f"it returned {', '.join(sorted(kinds))} instead of float32")
    except Exception as error:  # noqa: BLE001 — ONNX Runtime's exceptions have no common base of their own
        _fail(answers, str(error))
        return
    _write_head(answers, {"shapes": [array.shape for array in results]})
    for array in results:
        answers.write(np.ascontiguousarray(array).data)
    answers.flush()


def _fail(answers: IO[bytes], text: str) -> None:
    of_memory = "bad_alloc" in text or "allocat" in text.lower()
    _write_head(answers, {"error": text[:1000] or "it failed without a word", "memory": of_memory})
    answers.flush()


if __name__ == "__main__":
    main()
