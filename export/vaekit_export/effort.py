"""The number of rows and the batch sizes of the parity gate, by the cost of a row."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vaekit.errors import ExportError
from vaekit.types import Array
from vaekit_export.model import Model
from vaekit_export.parity import BatchDependenceError, Plan, torch_runner

Clock = Callable[[], float]
"""Returns seconds since an arbitrary start."""

_CHEAP = 0.05  # seconds per row, up to which the gate uses all rows
_COSTLY = 1.0  # seconds per row, from which each row is run in one batch only
_MIDDLING_SIZES = (1, 2, 7)  # 64 large images at once take gigabytes
_FEW_SIZES = (1, 2, 3)
_FEWEST_ROWS = sum(_FEW_SIZES)
_SECONDS_OF_ROWS = 3.0  # for one pass over the rows of one kind; the gate makes one for each batch size
_TIMES = 3
_BATCH = 64
_GOLDEN_ROWS, _FEW_GOLDEN_ROWS = 8, 2
_FEW_SCORED = 2


@dataclass(frozen=True)
class Effort:
    """The rows and batch sizes that the gate uses for a model."""

    seconds: float = 0.0
    """Time of one row through encoder and decoder in PyTorch."""
    plan: Plan = field(default_factory=Plan)
    rows: int | None = None
    """Largest number of rows of one kind; None for all."""

    @property
    def once(self) -> bool:
        """Return whether each row is run in one batch only."""
        return self.plan.once

    @property
    def golden_rows(self) -> int:
        """Return how many golden vectors of a kind the bundle gets; every device computes them in ``verify``."""
        return _FEW_GOLDEN_ROWS if self.once else _GOLDEN_ROWS

    @property
    def golden_batch(self) -> int:
        """Return how many golden vectors PyTorch computes at a time."""
        return 1 if self.once else _GOLDEN_ROWS

    @property
    def scored_images(self) -> int | None:
        """Return how many held-out images are scored; None for all."""
        return _FEW_SCORED if self.once else None

    @property
    def batch(self) -> int:
        """Return how many rows to run at a time where the batch size does not matter."""
        return _BATCH if self.rows is None else 1

    def most(self, count: int) -> int:
        """Return how many of ``count`` rows to use."""
        return count if self.rows is None else min(self.rows, count)


def effort_for(seconds: float) -> Effort:
    """Choose the effort for the seconds that a row takes in PyTorch."""
    if seconds <= _CHEAP:
        return Effort(seconds)
    if seconds >= _COSTLY:
        return Effort(seconds, Plan(_FEW_SIZES, once=True, companions=1, others=1), _FEWEST_ROWS)
    rows = max(_FEWEST_ROWS, round(_SECONDS_OF_ROWS / seconds))
    return Effort(seconds, Plan(_MIDDLING_SIZES, companions=1), rows)


def measure_effort(model: Model, clock: Clock = time.perf_counter) -> Effort:
    """Time one image through both modules and choose the effort.

    The best of three timings counts; slow modules are timed once. Raises BatchDependenceError if a module does not
    accept a single row.
    """
    encode, decode = torch_runner(model.encoder, "encoder"), torch_runner(model.decoder, "decoder")
    best = float("inf")
    for _ in range(_TIMES):
        began = clock()
        try:
            decode(encode(model.images[:1])[0])
        except ExportError as error:  # two rows worked before
            raise BatchDependenceError(
                f"parity failed, nothing was published: the model does not accept a single row: {error}"
            ) from error
        best = min(best, clock() - began)
        if best >= _COSTLY:
            break
    return effort_for(best)


def within(model: Model, effort: Effort) -> Model:
    """Return the model with the held-out images that the effort uses."""
    images: Array = model.images[: effort.most(len(model.images))]
    return dataclasses.replace(model, images=images)
