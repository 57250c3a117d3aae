"""How many rows the parity gate takes, and in which batches, by what one row costs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from vaekit.errors import ExportError
from vaekit.types import Array
from vaekit_export.model import Model
from vaekit_export.parity import BATCH_SIZES, BatchDependenceError, torch_runner

Clock = Callable[[], float]
"""Seconds from any beginning on."""

_CHEAP = 0.05  # seconds a row, up to which the gate takes all rows
_COSTLY = 1.0  # seconds a row, from which every row goes through one batch alone
_FEW_SIZES = (1, 2, 3)
_FEWEST_ROWS = sum(_FEW_SIZES)
_SECONDS_OF_ROWS = 6.0  # that the rows of one kind take once through; the gate takes them at four batch sizes
_TIMES = 3


@dataclass(frozen=True)
class Effort:
    """What the gate takes of a model."""

    seconds: float = 0.0
    """That one row takes through encoder and decoder in PyTorch."""
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    rows: int | None = None
    """Of a kind, at most; None where all are taken."""

    @property
    def once(self) -> bool:
        """Whether each row is run in one batch only, of one of the sizes."""
        return self.batch_sizes == _FEW_SIZES

    def most(self, count: int) -> int:
        """Return how many of so many rows are taken."""
        return count if self.rows is None else min(self.rows, count)


def effort_for(seconds: float) -> Effort:
    """Decide by the seconds that a row takes through both graphs in PyTorch."""
    if seconds <= _CHEAP:
        return Effort(seconds)
    if seconds >= _COSTLY:
        return Effort(seconds, _FEW_SIZES, _FEWEST_ROWS)
    return Effort(seconds, rows=max(_FEWEST_ROWS, round(_SECONDS_OF_ROWS / seconds)))


def measure_effort(model: Model, clock: Clock = time.perf_counter) -> Effort:
    """Time one image through both modules, the best of three where it is quick, and decide.

    Raises BatchDependenceError where a module does not take a single row.
    """
    encode, decode = torch_runner(model.encoder, "encoder"), torch_runner(model.decoder, "decoder")
    best = float("inf")
    for _ in range(_TIMES):
        began = clock()
        try:
            decode(encode(model.images[:1])[0])
        except ExportError as error:  # two rows went through before
            raise BatchDependenceError(
                f"parity failed, nothing was published: a row needs the other rows of its batch: {error}"
            ) from error
        best = min(best, clock() - began)
        if best >= _COSTLY:
            break
    return effort_for(best)


def within(model: Model, effort: Effort) -> Model:
    """Return the model with no more held-out images than the effort takes."""
    images: Array = model.images[: effort.most(len(model.images))]
    return dataclasses.replace(model, images=images)
