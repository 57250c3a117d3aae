"""When things happen in a training: functions of the step and, under a deadline, how the clock becomes steps."""

from __future__ import annotations

import math
import time

from vaekit.training.config import Config

REPORT_EVERY = 10
"""Steps between two reports: to read figures is to wait for the device."""
VALIDATIONS = 10
"""Validations in a training, evenly spaced."""

_WARMUP_IMAGES = 10_000  # over which the learning rate rises
_LEAST_INTERVAL = 50  # steps between two validations

_TIMED_STEPS = 30  # before a deadline becomes a number of steps; the first third is not timed
_EVALUATION_COST = 0.4  # of an image, as a share of its cost in a training step
_MIXTURE_SECONDS = 15.0  # kept back from a deadline for fitting the prior and drawing previews
_SLACK = 0.05  # of the steps that a deadline seems to allow


def steps_of(training: int, batch_size: int, *, epochs: int | None = None, steps: int | None = None) -> int:
    """Return the length in steps: as given, or ``epochs`` passes over the training images, or the default."""
    if epochs is not None:
        return epochs * max(1, training // batch_size)
    return steps or Config.steps


def learning_rate(step: int, total: int | None, warmup: int) -> float:
    """Return the learning rate at a step as a share of its peak: a linear rise, then half a cosine down to zero."""
    rise = min(1.0, (step + 1) / warmup)
    return rise if total is None else rise * 0.5 * (1.0 + math.cos(math.pi * step / total))


def kl_weight(step: int, total: int | None, share: float) -> float:
    """Return the share of beta in force at a step: it rises linearly from 0 to 1 over that ``share`` of the steps.

    (Sønderby et al., "Ladder Variational Autoencoders", 2016.) While the number of steps is unknown it is 0.
    """
    if share == 0:
        return 1.0
    return 0.0 if total is None else min(1.0, step / (share * total))


class Deadline:
    """A time limit, which becomes a number of steps once the first steps have been timed."""

    def __init__(self, moment: float, config: Config, evaluated: int, first: int = 0) -> None:
        """Training ends at ``moment`` (of time.monotonic), all work included.

        Without training on them, it evaluates ``evaluated`` images; it begins at step ``first``.
        """
        self._moment, self._batch_size, self._evaluated = moment, config.batch_size, evaluated
        self._timed_from = max(first, _TIMED_STEPS // 3)
        self._started = 0.0  # when timing began
        self._train_until = math.inf

    def allowed_steps(self, step: int) -> int | None:
        """Return how many steps the time allows, when enough have been timed; None at every other step.

        To be called before each step.
        """
        if step == self._timed_from:
            self._started = time.monotonic()
        if step != _TIMED_STEPS:
            return None
        now = time.monotonic()
        seconds = (now - self._started) / (step - self._timed_from)  # of a step
        finish = self._evaluated * _EVALUATION_COST * seconds / self._batch_size + _MIXTURE_SECONDS
        self._train_until = self._moment - finish
        return _TIMED_STEPS + max(1, int((self._train_until - now) / seconds * (1 - _SLACK)))

    def has_passed(self) -> bool:
        """Whether the time kept for training is used up, on a machine that grew slower."""
        return time.monotonic() > self._train_until


class Schedule:
    """What a training does at which step."""

    def __init__(self, config: Config, deadline: Deadline | None = None) -> None:
        self.total: int | None = config.steps if deadline is None else None
        """The number of steps; None until the deadline has become one."""
        self._config, self._deadline = config, deadline

    def allowed_steps(self, step: int) -> int | None:
        """Return the number of steps, where ``total`` is unknown and the deadline now gives one; else None."""
        if self._deadline is None or self.total is not None:
            return None
        return self._deadline.allowed_steps(step)

    def is_late(self) -> bool:
        """Whether the deadline asks to end before all steps are done."""
        return self._deadline is not None and self.total is not None and self._deadline.has_passed()

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step."""
        warmup = max(1, _WARMUP_IMAGES // self._config.batch_size)
        if self.total is not None:
            warmup = min(warmup, max(1, self.total // 5))
        return self._config.lr * learning_rate(step, self.total, warmup)

    def kl_weight(self, step: int) -> float:
        """Return the share of beta in force at a step."""
        return kl_weight(step, self.total, self._config.beta_warmup)

    def reports_after(self, steps: int) -> bool:
        """Whether figures are reported after that many steps."""
        return steps % REPORT_EVERY == 0 or steps == self.total

    def validates_after(self, steps: int) -> bool:
        """Whether the held-out images are measured after that many steps."""
        return self.total is not None and steps % max(_LEAST_INTERVAL, self.total // VALIDATIONS) == 0

    def checkpoints_after(self, steps: int) -> bool:
        """Whether a checkpoint is written after that many steps."""
        return self.total is not None and steps % self._config.checkpoint_every == 0
