"""Work spread over processes, with results in order and a limited number of pieces in progress.

Threads would not help: Pillow decodes and encodes small pictures slower on two threads than on one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from vaekit.errors import VaekitError
from vaekit.system.machine import usable_cpus

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

_AHEAD = 2  # pieces per process: one in work, one waiting
_PATIENCE = 0.1  # seconds
_DEFERRED = (signal.SIGINT, signal.SIGTERM)


class SpawnedPool(ProcessPoolExecutor):
    """A pool of spawned processes that import nothing from the current folder, and not the program itself.

    Python starts them, and the process that tracks their semaphores, with ``-c``. This option would search the current
    folder for modules first. It would also run the program's main module, which takes time, and begins the program
    again if it has no ``if __name__ == "__main__"``. So their work cannot be functions of that module.
    """

    def __init__(self, processes: int, initializer: Callable[[], object] | None = None) -> None:
        with _environment("PYTHONSAFEPATH", "1"), _main_module_without_file():
            super().__init__(processes, mp_context=multiprocessing.get_context("spawn"), initializer=initializer)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Submit work; this starts a process if all are busy."""
        with _environment("PYTHONSAFEPATH", "1"), _main_module_without_file():
            return super().submit(fn, *args, **kwargs)


def ordered_map(function: Callable[[T], R], pieces: Iterable[T], *, processes: int | None = None) -> Iterator[R]:
    """Yield a picklable function's results for the pieces, in order.

    Only a few pieces are read ahead, so memory does not grow with their number. ``processes`` defaults to the number
    of usable processors. With fewer than two, the calling process does the work. Raises the function's own errors, and
    VaekitError if a process dies.
    """
    processes = usable_cpus() if processes is None else processes
    if processes < 2:
        yield from map(function, pieces)
        return
    pool = SpawnedPool(processes, initializer=_start)
    try:
        yield from _through(pool, function, iter(pieces), processes * _AHEAD)
    except BrokenProcessPool as error:
        raise VaekitError("a process that reads or writes pictures died; it may have run out of memory") from error
    finally:
        with deferred_signals():
            pool.shutdown(wait=True, cancel_futures=True)


def _through(pool: ProcessPoolExecutor, function: Callable[[T], R], pieces: Iterator[T], ahead: int) -> Iterator[R]:
    under_way: deque[Future[R]] = deque()
    for piece in pieces:
        with deferred_signals():
            under_way.append(pool.submit(function, piece))
        if len(under_way) >= ahead:
            yield _result(under_way.popleft())
    while under_way:
        yield _result(under_way.popleft())


def _result(future: Future[R]) -> R:
    """Return a future's result, or raise its error; signals are handled in between.

    ``future.result(timeout)`` would not do: the work itself may raise TimeoutError, for example on a network disk.
    """
    while True:
        with deferred_signals():
            wait((future,), _PATIENCE)
            if future.done():
                return future.result()


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block.

    If a handler raised an exception within the executor's code, its locks would stay held and its threads would wait
    for ever. Blocking signals in this thread is not enough: other threads, such as ONNX Runtime's, would receive them,
    and Python would still run the handler in this thread. But it keeps them from processes that start in the block.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    received: list[int] = []
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # getsignal returns None for a handler installed from C. Python could not restore it, so it is left alone.
    handlers = {n: handler for n in _DEFERRED if (handler := signal.getsignal(n)) is not None}
    for number in handlers:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        for caught in received[:1]:
            signal.raise_signal(caught)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _main_module_without_file() -> Iterator[None]:
    """Hide, for the block, where the main module comes from."""
    known = vars(sys.modules["__main__"])
    before = {name: known[name] for name in ("__spec__", "__file__") if known.get(name) is not None}
    known.update(dict.fromkeys(before))
    try:
        yield
    finally:
        known.update(before)


def _start() -> None:
    """Set up a worker: ignore Ctrl-C and warnings, and exit when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    warnings.simplefilter("ignore")  # Pillow warns about harmless metadata, and raises for real problems
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
