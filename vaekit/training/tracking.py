"""Sending a training's figures to experiment trackers, through Accelerate.

If a tracker does not start, the training does not start either. If it fails or hangs later, the training continues: a
network or disk may be away for hours, and the training has its own records.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vaekit.errors import MissingExtraError, VaekitError

Track = Callable[[Mapping[str, float], int], None]
"""A function called with figures by name, and the step."""

_PROJECT = "vaekit"
_MOST_WAITING = 10_000  # figures, in memory, for a tracker that takes none
_LAST_SECONDS = 60.0  # for which the end of a training waits for its tracker
_logger = logging.getLogger("vaekit.training")


def check_tracker(name: str | None) -> None:
    """Raise MissingExtraError, before any work, if a tracker's packages are missing."""
    missing = [package for package in ("accelerate", name) if package and find_spec(package) is None]
    if name is not None and missing:
        raise MissingExtraError(f"--track {name} needs {' and '.join(missing)}: pip install 'vaekit[{name}]'")


@contextmanager
def tracking(name: str | None, run: Path, settings: Mapping[str, Any], step: int) -> Iterator[Track]:
    """Yield a function that sends figures to the tracker.

    Without a tracker the function does nothing. ``step`` is the last step whose figures the tracker may have from
    before; TensorBoard discards later ones. Raises VaekitError if the tracker does not start. The first failure after
    that is logged as a warning. TensorBoard's files are in ``run/tensorboard``; the other trackers' own settings say
    where theirs are.
    """
    if name is None:
        yield lambda figures, at: None
        return
    check_tracker(name)
    from accelerate import PartialState

    PartialState(cpu=True)  # Accelerate's loggers raise an error without it
    tracker = _tracker(name, run, step)
    tracker.main_process_only = False  # this code runs in the first process only
    guarded = _Guarded(name, tracker)
    guarded.start(dict(settings))
    try:
        yield guarded.log
    finally:
        guarded.finish()


class _Guarded:
    """A tracker whose failures and delays do not end the training, in a thread of its own; the first one is logged.

    All of its calls are made in that thread, because MLflow's runs belong to a thread.
    """

    def __init__(self, name: str, tracker: Any) -> None:
        self._name, self._tracker, self._warned = name, tracker, False
        self._calls: queue.Queue[Callable[[], object] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"vaekit-{name}", daemon=True)

    def start(self, settings: dict[str, Any]) -> None:
        """Start the tracker. Raises VaekitError if it does not start."""
        started: Future[None] = Future()

        def start() -> None:
            try:
                self._tracker.start()
                if self._name != "tensorboard":  # TensorBoard would write the settings to files named after the time
                    self._tracker.store_init_configuration(settings)
            except Exception as error:  # noqa: BLE001 — each tracker raises its own
                started.set_exception(error)
            else:
                started.set_result(None)

        self._thread.start()
        self._calls.put(start)
        try:
            started.result()
        except Exception as error:
            self._calls.put(None)
            raise VaekitError(f"--track {self._name} does not start: {_one_line(error)}") from error

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures, even after a failure: the tracker may have recovered."""
        try:
            self._calls.put_nowait(lambda: self._tracker.log(dict(figures), step=step))
        except queue.Full:
            self._warn(f"it has not taken the last {_MOST_WAITING:,} figures")

    def finish(self) -> None:
        """Wait until the tracker has all figures, but not for long."""
        try:
            self._calls.put_nowait(self._tracker.finish)
            self._calls.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(_LAST_SECONDS)
        if self._thread.is_alive():
            self._warn(f"it has not taken the last figures within {_LAST_SECONDS:g} seconds")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # noqa: BLE001 — each tracker raises its own
                self._warn(_one_line(error))

    def _warn(self, reason: str) -> None:
        if not self._warned:
            _logger.warning("--track %s failed, training continues: %s", self._name, reason)
        self._warned = True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _tracker(name: str, run: Path, step: int) -> Any:
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", logging_dir=str(run), purge_step=step + 1)
    if name == "wandb":
        return WandBTracker(_PROJECT, name=run.name, dir=str(run))
    return MLflowTracker(experiment_name=_PROJECT, run_name=run.name)
