"""Figures of a training for experiment trackers, which Accelerate knows how to talk to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vaekit.errors import MissingExtraError, VaekitError

Track = Callable[[Mapping[str, float], int], None]
"""Called with figures by their names, and the step."""

_PROJECT = "vaekit"


def check_tracker(name: str | None) -> None:
    """Raise MissingExtraError, before any work is done, where a tracker's packages are not installed."""
    missing = [package for package in ("accelerate", name) if package and find_spec(package) is None]
    if name is not None and missing:
        raise MissingExtraError(f"--track {name} needs {' and '.join(missing)}: pip install 'vaekit[{name}]'")


@contextmanager
def tracking(name: str | None, run: Path, settings: Mapping[str, Any], step: int) -> Iterator[Track]:
    """What to call with figures, of steps after ``step``; it does nothing where there is no tracker.

    Raises VaekitError where a tracker does not start.

    TensorBoard's files lie in ``run/tensorboard``; the others keep theirs where their own settings say.
    """
    if name is None:
        yield lambda figures, at: None
        return
    check_tracker(name)
    from accelerate import PartialState

    PartialState(cpu=True)  # Accelerate's loggers refuse to speak without
    tracker = _tracker(name, run, step)
    tracker.main_process_only = False  # only the first process comes here
    try:
        tracker.start()
        if name != "tensorboard":  # where settings would be files of their own, named after the time
            tracker.store_init_configuration(dict(settings))
    except Exception as error:  # each tracker raises its own
        raise VaekitError(f"--track {name} does not start: {' '.join(str(error).split())}") from error
    try:
        yield lambda figures, at: tracker.log(dict(figures), step=at)
    finally:
        tracker.finish()


def _tracker(name: str, run: Path, step: int) -> Any:
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", logging_dir=str(run), purge_step=step + 1)
    if name == "wandb":
        return WandBTracker(_PROJECT, name=run.name, dir=str(run))
    return MLflowTracker(experiment_name=_PROJECT, run_name=run.name)
