"""Sending a training's figures to experiment trackers, through Accelerate.

If a tracker does not start, the training does not start either. If it fails later, the training continues: a network
or disk may be away for hours, and the training has its own records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vaekit.errors import MissingExtraError, VaekitError

Track = Callable[[Mapping[str, float], int], None]
"""A function called with figures by name, and the step."""

_PROJECT = "vaekit"
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
    try:
        tracker.start()
        if name != "tensorboard":  # TensorBoard would write the settings to extra files, named after the time
            tracker.store_init_configuration(dict(settings))
    except Exception as error:  # each tracker raises its own
        raise VaekitError(f"--track {name} does not start: {' '.join(str(error).split())}") from error
    guarded = _Guarded(name, tracker)
    try:
        yield guarded.log
    finally:
        guarded.finish()


class _Guarded:
    """A tracker whose failures do not end the training; the first one is logged."""

    def __init__(self, name: str, tracker: Any) -> None:
        self._name, self._tracker, self._warned = name, tracker, False

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures, even after a failure: the tracker may have recovered."""
        self._try(lambda: self._tracker.log(dict(figures), step=step))

    def finish(self) -> None:
        self._try(self._tracker.finish)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 — each tracker raises its own
            if not self._warned:
                reason = " ".join(str(error).split()) or type(error).__name__
                _logger.warning("--track %s failed, training continues: %s", self._name, reason)
            self._warned = True


def _tracker(name: str, run: Path, step: int) -> Any:
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", logging_dir=str(run), purge_step=step + 1)
    if name == "wandb":
        return WandBTracker(_PROJECT, name=run.name, dir=str(run))
    return MLflowTracker(experiment_name=_PROJECT, run_name=run.name)
