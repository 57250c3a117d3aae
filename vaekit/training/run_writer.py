"""Writing the folder of a run. Only one process writes; in the others, these calls do nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vaekit.errors import VaekitError
from vaekit.maths.prior import Mixture
from vaekit.system.files import only_writer
from vaekit.training.checkpoint import CHECKPOINT, Checkpoint, save_checkpoint
from vaekit.training.classes import Classes
from vaekit.training.config import Config, save_config
from vaekit.training.holdout import Split
from vaekit.training.networks import VAENetwork
from vaekit.training.previews import save_previews
from vaekit.training.run import METRICS, PREVIEWS, make_folder, rewind_folder, save_holdout, save_model, start_folder
from vaekit.training.tracking import Track


class RunWriter:
    """A writer of a run's files. Raises VaekitError, or its subclass RunError, if one cannot be written."""

    def __init__(self, path: Path, *, active: bool) -> None:
        """Take the run's folder; ``active`` says whether this process writes."""
        self.path, self.active = path, active
        self.track: Track = lambda figures, step: None
        """A function that is called with all logged figures: an experiment tracker, if any."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other commands from writing to the run within the block.

        Raises VaekitError if one already does, and RunError if the run's folder cannot be made.
        """
        if self.active:
            make_folder(self.path)
        with only_writer(self.path) if self.active else nullcontext():
            yield

    def start(self, config: Config, split: Split, held_out: NDArray[np.uint8], classes: Classes | None) -> None:
        """Start the folder and remove an older run's files from it. ``held_out`` are the images of the split."""
        if self.active:
            start_folder(self.path)
            save_config(self.path, config)  # first, because it makes the folder a run, which --resume continues
            (self.path / PREVIEWS).mkdir(exist_ok=True)
            (self.path / METRICS).touch()
            save_holdout(self.path, held_out, classes, split.read_whole_pictures(), split.holdout_factors())

    def rewind(self, metrics_bytes: int) -> None:
        """Undo what was written after a checkpoint.

        ``metrics_bytes`` is the length of metrics.jsonl at that time.
        """
        if self.active:
            rewind_folder(self.path, metrics_bytes)

    def save_config(self, config: Config) -> None:
        """Write config.json."""
        if self.active:
            save_config(self.path, config)

    def log(self, step: int, split: str, figures: Mapping[str, float | None]) -> None:
        """Add a line to metrics.jsonl with the figures after ``step`` steps.

        ``split`` is ``training`` or ``validation``.
        """
        if not self.active:
            return
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "split": split, **figures}) + "\n")
        except OSError as error:
            raise VaekitError(f"cannot write {self.path / METRICS}: {error.strerror or error}") from error
        self.track({f"{split}/{name}": figure for name, figure in figures.items() if figure is not None}, step)

    def metrics_bytes(self) -> int:
        """Return the length of metrics.jsonl."""
        return (self.path / METRICS).stat().st_size if self.active else 0

    def save_previews(
        self,
        name: str,
        network: VAENetwork,
        held_out: NDArray[np.uint8],
        mixture: Mixture | None,
        device: torch.device,
    ) -> None:
        """Write pictures of reconstructions and, given a mixture, of samples."""
        if self.active:
            save_previews(self.path / PREVIEWS, name, network, held_out, mixture, device)

    def save_model(
        self,
        network: VAENetwork,
        variance: float | None,
        mixture: Mixture | None,
        labels: Sequence[str],
        steps: int,
        best: Mapping[str, float],
    ) -> None:
        """Write the model after ``steps`` steps; ``best`` holds its validation figures and its own ``step``."""
        if self.active:
            validation = {name: figure for name, figure in best.items() if name != "step"}
            summary = {"steps": steps, "kept_step": best["step"], "validation": validation}
            save_model(self.path, network, variance, mixture, summary, labels)

    def save_checkpoint(self, checkpoint: Checkpoint, before: int) -> None:
        """Write a checkpoint in place of the last one.

        ``before`` is the step of the last one, or -1 before the first.
        """
        if not self.active:
            return
        try:
            save_checkpoint(self.path, checkpoint)
        except VaekitError as error:
            rest = f"; the checkpoint of step {before} stays, and `vaekit train --resume {self.path}` resumes from it"
            raise VaekitError(f"{error}{'' if before < 0 else rest}") from error

    def remove_checkpoint(self) -> None:
        """Remove the checkpoint, which marks the run as finished."""
        if self.active:
            (self.path / CHECKPOINT).unlink(missing_ok=True)
