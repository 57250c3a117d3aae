"""The schedule of a training whose length is a number of steps.

It sets the learning rate, the KL's weight, and the steps at which validations, checkpoints and reports happen.
``vaekit.training.deadline`` has the schedule of a training whose length is a time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from vaekit.training.config import Config, Knot

REPORT_EVERY = 10
"""Steps between two reports. Each report reads figures from the device, and waits for it."""
VALIDATIONS = 10
"""The number of validations in a training, evenly spaced."""

KNOT_TOLERANCE = 0.005
"""The largest error of a recorded schedule, as a share of the training.

A repeated training's learning rate then differs from the first one's by at most π/2 · 0.005 < 0.8 % of the peak.
"""

_WARMUP_IMAGES = 10_000  # over which the learning rate rises
_WARMUP_SHARE = 5  # the rise takes at most 1/5 of the training
_LEAST_INTERVAL = 50  # steps between two validations


def steps_of(training: int, batch_size: int, *, epochs: int | None = None, steps: int | None = None) -> int:
    """Return the length of a training in steps.

    It is ``epochs`` passes over ``training`` images if given, else ``steps``, else the default.
    """
    if epochs is not None:
        return epochs * max(1, training // batch_size)
    return steps or Config.steps


def learning_rate(done: float, total: float, rise: float) -> float:
    """Return the learning rate as a share of its peak.

    It falls to zero along half a cosine, and is multiplied by ``rise``, the share of the warm-up that is done.
    """
    return rise * 0.5 * (1.0 + math.cos(math.pi * done / total))


def kl_weight(done: float, total: float, share: float) -> float:
    """Return the KL's weight as a share of beta.

    It rises linearly from 0 to 1 over the first ``share`` of the training (Sønderby et al., "Ladder Variational
    Autoencoders", 2016).
    """
    return 1.0 if share == 0 else min(1.0, done / (share * total))


def warmup_steps(config: Config) -> int:
    """Return the steps over which the learning rate rises.

    A short training has fewer: the rise takes at most a fifth of it.
    """
    return max(1, _WARMUP_IMAGES // config.batch_size)


def interpolate(knots: Sequence[Knot], step: float) -> float:
    """Interpolate linearly between knots (step, share).

    Before the first knot and after the last, it returns the share of that knot.
    """
    right = bisect_right(knots, step, key=lambda knot: knot[0])
    if right in (0, len(knots)):
        return knots[min(right, len(knots) - 1)][1]
    (first, low), (last, high) = knots[right - 1], knots[right]
    return low + (high - low) * (step - first) / (last - first)


def compact(knots: Iterable[Knot], tolerance: float) -> tuple[Knot, ...]:
    """Return fewer knots that give the same shares within the tolerance.

    The first and the last knot stay.
    """
    first, *others = knots
    kept, previous = [first], first
    least, most = -math.inf, math.inf  # slopes of lines from the last kept knot that pass near all later knots
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
    """A training's learning rate, weights and events by step."""

    def __init__(self, config: Config) -> None:
        self._config = config

    @abstractmethod
    def total(self) -> int | None:
        """Return the number of steps.

        Under a deadline it is an estimate, and None before there is one.
        """

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step."""

    @abstractmethod
    def kl_weight(self, step: int) -> float:
        """Return the KL's weight at a step, as a share of beta."""

    @abstractmethod
    def ends_after(self, steps: int) -> bool:
        """Return whether the training is complete after ``steps`` steps."""

    @abstractmethod
    def validates_after(self, steps: int) -> bool:
        """Return whether the held-out images are measured after ``steps`` steps."""

    @abstractmethod
    def checkpoints_after(self, steps: int) -> bool:
        """Return whether a checkpoint is written after ``steps`` steps."""

    def reports_after(self, steps: int) -> bool:
        """Return whether figures are reported after ``steps`` steps."""
        return steps % REPORT_EVERY == 0 or self.ends_after(steps)


class StepSchedule(Schedule):
    """A schedule that is a function of the step.

    To repeat a training that ran under a deadline, it follows the recorded shares in ``config.schedule``.
    """

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
        """Return the KL's weight at a step, as a share of beta."""
        if self._config.schedule is not None:
            return kl_weight(self._share(step), 1.0, self._config.beta_warmup)
        return kl_weight(step, self.total(), self._config.beta_warmup)

    def _share(self, step: int) -> float:
        assert self._config.schedule is not None
        return interpolate(self._config.schedule, step)

    def ends_after(self, steps: int) -> bool:
        """Return whether all steps are done."""
        return steps == self.total()

    def validates_after(self, steps: int) -> bool:
        """Return whether the held-out images are measured after ``steps`` steps."""
        return steps % max(_LEAST_INTERVAL, self.total() // VALIDATIONS) == 0

    def checkpoints_after(self, steps: int) -> bool:
        """Return whether a checkpoint is written after ``steps`` steps."""
        return steps % self._config.checkpoint_every == 0


def timed_learning_rate(step: int, share: float, warmup: int) -> float:
    """Return the learning rate under a deadline, relative to its peak.

    ``share`` is the share of the time used. The rate rises over ``warmup`` steps, or over a fifth of the time if that
    is shorter.
    """
    return learning_rate(share, 1.0, min(1.0, max((step + 1) / warmup, share * _WARMUP_SHARE)))
