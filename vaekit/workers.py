"""Work spread over processes, in order and with a bounded number of pieces under way.

Processes, not threads: Pillow's decoding and encoding of small pictures is slower on two threads than on one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from vaekit.errors import VaekitError
from vaekit.machine import usable_cpus

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2  # pieces under way for each process: one being worked on, one waiting


def ordered_map(function: Callable[[T], R], pieces: Iterable[T], *, processes: int | None = None) -> Iterator[R]:
    """Results of a picklable function for each piece, in order, as they are asked for.

    Pieces are taken only a few ahead of what has been asked for, so that memory does not grow with their number. With
    fewer than two ``processes`` the work is done in this one. ``processes`` defaults to the processors that may be
    used. Raises what the function raises, and VaekitError where a process dies.
    """
    processes = usable_cpus() if processes is None else processes
    if processes < 2:
        yield from map(function, pieces)
        return
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start)
    try:
        yield from _through(pool, function, iter(pieces), processes * _AHEAD)
    except BrokenProcessPool as error:
        raise VaekitError("a process that reads or writes pictures died; it may have run out of memory") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _through(pool: ProcessPoolExecutor, function: Callable[[T], R], pieces: Iterator[T], ahead: int) -> Iterator[R]:
    under_way: deque[Future[R]] = deque()
    for piece in pieces:
        with _no_interrupts():
            under_way.append(pool.submit(function, piece))
        if len(under_way) >= ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ctrl-C waits for the end of the block; processes that start within it never see one: it is their parent's."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    """In each process: Ctrl-C is for the one that asked for the work, and without that one there is none to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
