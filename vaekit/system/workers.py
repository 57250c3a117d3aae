"""Work spread over processes, in order and with a bounded number of pieces under way.

Processes, not threads: Pillow's decoding and encoding of small pictures is slower on two threads than on one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
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

_AHEAD = 2  # pieces under way for each process: one being worked on, one waiting
_PATIENCE = 0.1  # seconds
_DEFERRED = (signal.SIGINT, signal.SIGTERM)


class SpawnedPool(ProcessPoolExecutor):
    """New processes that import nothing from the current folder as they start.

    Python runs them, and the one that minds their semaphores, with ``-c``, which looks there for modules first.
    """

    def __init__(self, processes: int, initializer: Callable[[], object] | None = None) -> None:
        with _environment("PYTHONSAFEPATH", "1"):
            super().__init__(processes, mp_context=multiprocessing.get_context("spawn"), initializer=initializer)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Submit work, which starts a process where none is free."""
        with _environment("PYTHONSAFEPATH", "1"):
            return super().submit(fn, *args, **kwargs)


def ordered_map(function: Callable[[T], R], pieces: Iterable[T], *, processes: int | None = None) -> Iterator[R]:
    """Yield the results of a picklable function for each piece, in order.

    Pieces are taken only a few ahead of what has been asked for, so that memory does not grow with their number. With
    fewer than two ``processes`` the work is done in this one. ``processes`` defaults to the processors that may be
    used. Raises what the function raises, and VaekitError where a process dies.
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
    """Return a future's result, or raise what the work raised; signals are heard every so often.

    The wait has no exception of its own: the work may raise a TimeoutError too, as a network disk does.
    """
    while True:
        with deferred_signals():
            wait((future,), _PATIENCE)
            if future.done():
                return future.result()


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block.

    An exception that a handler raises within the executor's code leaves its locks held, and its threads waiting for
    them for ever. Blocking signals in this thread alone does not help: others, such as ONNX Runtime's, then receive
    them, and Python still runs the handler in this one. It does keep them from processes that start in the block.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    received: list[int] = []
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # A handler that a host program installed from C reads as None and could not be put back: it stays.
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
    """Set a variable of the environment for the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _start() -> None:
    """Set up a worker: it ignores Ctrl-C, which its parent handles, warns of nothing and exits when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Pillow warns about harmless metadata; what matters raises
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
