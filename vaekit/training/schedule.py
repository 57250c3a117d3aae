"""When things happen in a training whose length is known in steps; ``vaekit.training.deadline`` has the others."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from vaekit.training.config import Config, Knot

REPORT_EVERY = 10
"""Steps between two reports: to read figures is to wait for the device."""
VALIDATIONS = 10
"""Validations in a training, evenly spaced."""

KNOT_TOLERANCE = 0.005
"""How far the recorded schedule of a training may be from its true one, as a share of the training.

The learning rate of a repeated training is then within π/2 · 0.005 < 0.8 % of the peak rate of the first one's.
"""

_WARMUP_IMAGES = 10_000  # over which the learning rate rises
_WARMUP_SHARE = 5  # of the training: the rise takes at most a fifth of it
_LEAST_INTERVAL = 50  # steps between two validations


def steps_of(training: int, batch_size: int, *, epochs: int | None = None, steps: int | None = None) -> int:
    """Return the length of a training in steps.

    It is ``steps``, or ``epochs`` passes over the training images, or the default.
    """
    if epochs is not None:
        return epochs * max(1, training // batch_size)
    return steps or Config.steps


def learning_rate(done: float, total: float, rise: float) -> float:
    """Return the learning rate as a share of its peak: half a cosine down to zero, times the ``rise`` at its start."""
    return rise * 0.5 * (1.0 + math.cos(math.pi * done / total))


def kl_weight(done: float, total: float, share: float) -> float:
    """Return the share of beta in force: it rises linearly from 0 to 1 over that ``share`` of the training.

    (Sønderby et al., "Ladder Variational Autoencoders", 2016.)
    """
    return 1.0 if share == 0 else min(1.0, done / (share * total))


def warmup_steps(config: Config) -> int:
    """Return the steps over which the learning rate rises in a training that is long enough."""
    return max(1, _WARMUP_IMAGES // config.batch_size)


def interpolate(knots: Sequence[Knot], step: float) -> float:
    """Return the share at a step, on the straight lines between knots; before and after them the nearest one's."""
    right = bisect_right(knots, step, key=lambda knot: knot[0])
    if right in (0, len(knots)):
        return knots[min(right, len(knots) - 1)][1]
    (first, low), (last, high) = knots[right - 1], knots[right]
    return low + (high - low) * (step - first) / (last - first)


def compact(knots: Iterable[Knot], tolerance: float) -> tuple[Knot, ...]:
    """Return as few of the knots as give the same shares within the tolerance; the first and the last one stay."""
    first, *others = knots
    kept, previous = [first], first
    least, most = -math.inf, math.inf  # slopes of lines from the last knot kept that pass all knots since
    for knot in others:
        if not least <= _slope(kept[-1], knot) <= most:
            kept.append(previous)
            least, most = -math.inf, math.inf
        slope, give = _slope(kept[-1], knot), tolerance / (knot[0] - kept[-1][0])
        least, most = max(least, slope - give), min(most, slope + give)
        previous = knot
    return tuple(kept) if previous is first else (*kept, previous)


def _slope(left: Knot, right: Knot) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


class Schedule(ABC):
    """What a training does at which step."""

    def __init__(self, config: Config) -> None:
        self._config = config

    @abstractmethod
    def total(self) -> int | None:
        """Return the number of steps, or what it will probably be; None where that cannot be told yet."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step."""

    @abstractmethod
    def kl_weight(self, step: int) -> float:
        """Return the share of beta in force at a step."""

    @abstractmethod
    def ends_after(self, steps: int) -> bool:
        """Whether the training is complete after that many steps."""

    @abstractmethod
    def validates_after(self, steps: int) -> bool:
        """Whether the held-out images are measured after that many steps."""

    @abstractmethod
    def checkpoints_after(self, steps: int) -> bool:
        """Whether a checkpoint is written after that many steps."""

    def reports_after(self, steps: int) -> bool:
        """Whether figures are reported after that many steps."""
        return steps % REPORT_EVERY == 0 or self.ends_after(steps)


class StepSchedule(Schedule):
    """A schedule that is a function of the step, and of the shares that a training under a deadline recorded."""

    def total(self) -> int:
        """Return the number of steps."""
        return self._config.steps

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step."""
        total, warmup = self.total(), warmup_steps(self._config)
        if self._config.schedule is not None:
            return self._config.lr * timed_learning_rate(step, self._share(step), warmup)
        warmup = min(warmup, max(1, total // _WARMUP_SHARE))
        return self._config.lr * learning_rate(step, total, min(1.0, (step + 1) / warmup))

    def kl_weight(self, step: int) -> float:
        """Return the share of beta in force at a step."""
        if self._config.schedule is not None:
            return kl_weight(self._share(step), 1.0, self._config.beta_warmup)
        return kl_weight(step, self.total(), self._config.beta_warmup)

    def _share(self, step: int) -> float:
        assert self._config.schedule is not None
        return interpolate(self._config.schedule, step)

    def ends_after(self, steps: int) -> bool:
        """Whether all steps are done."""
        return steps == self.total()

    def validates_after(self, steps: int) -> bool:
        """Whether the held-out images are measured after that many steps."""
        return steps % max(_LEAST_INTERVAL, self.total() // VALIDATIONS) == 0

    def checkpoints_after(self, steps: int) -> bool:
        """Whether a checkpoint is written after that many steps."""
        return steps % self._config.checkpoint_every == 0


def timed_learning_rate(step: int, share: float, warmup: int) -> float:
    """Return the learning rate as a share of its peak, at a step and a share of the time.

    It rises over ``warmup`` steps, or over a fifth of the time where that is shorter.
    """
    return learning_rate(share, 1.0, min(1.0, max((step + 1) / warmup, share * _WARMUP_SHARE)))
