"""The schedule of a training whose length is a time, including the work after its last step.

There are two promises. The command ends at its deadline. And steps take at least nine tenths of the time between
start-up and the work after the last step, even if the machine's speed changes. So no decision rests on a first
measurement. The share of the time used is read from the clock throughout the training. The duration of the work at the
end is estimated again and again, from earlier work of the same kind, measured in steps.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from vaekit.training.config import Config, Knot
from vaekit.training.mixture import components_for
from vaekit.training.schedule import (
    KNOT_TOLERANCE,
    REPORT_EVERY,
    VALIDATIONS,
    Schedule,
    compact,
    interpolate,
    kl_weight,
    timed_learning_rate,
    warmup_steps,
)

Work = Literal["evaluation", "fit", "pictures", "checkpoint"]
"""The kinds of work other than steps."""
Clock = Callable[[], float]
"""A function that returns the time in seconds, like time.monotonic."""
Agree = Callable[[Sequence[float]], Sequence[float]]
"""A function that gives every process the first one's numbers."""

# Estimates until the work has been measured:
_EVALUATION_COST = 0.4  # cost of evaluating an image, as a share of its cost in a training step
_PICTURES_COST = 100, 0.3  # cost of previews and a saved model: evaluated images, plus seconds

_LARGEST_SHARE = 0.05  # of the whole time: limit for the statistics at the end, and for the fit of the prior
_MARGIN = 1.15  # factor on the estimate of the work at the end
_EXIT_SECONDS = 1.0  # for starting Python before the clock is read, and for its exit

_INTERVALS = 9  # a step's duration is the median of this many: one long stall does not change it
_TRUSTED_INTERVALS = 3  # decisions need at least this many; the steps before count as start-up
_INTERVAL_SHARE = 0.005  # of the whole time: limit between two decisions
_VALIDATION_SHARE = 0.05  # of the time used so far: limit for validations
_LAST_VALIDATION = 0.95  # share of the training; after it, only the validation at the end follows
_KEPT_KNOTS = 100  # more knots than this are compacted
FINE_TOLERANCE = KNOT_TOLERANCE / 10
"""The error that each compaction of the knots may add, in a running training and in its checkpoints."""
_RECORD_TOLERANCE = 0.7 * KNOT_TOLERANCE  # the rest is for earlier compactions
_CHECKPOINTS = 20  # in a training, evenly spaced, in addition to those of ``checkpoint_every``


def fit_work(count: int, dimensions: int) -> float:
    """Return the work of fitting the prior to ``count`` latents.

    Its unit is arbitrary.
    """
    return float(count * components_for(count, dimensions))


@dataclass(frozen=True)
class Ending:
    """The amount of work after the last step."""

    statistics_images: int
    """The largest number of training images that are evaluated."""
    holdout_images: int
    """The number of held-out images. They are evaluated twice: in the last validation and with the final variance."""
    dimensions: int | None
    """The dimensions of the latents that the prior is fitted to; None if none is fitted."""


class TimedSchedule(Schedule):
    """A schedule by the share of the time used.

    Every few steps the first process reads the clock and decides what follows. Between two decisions the share rises
    linearly to its estimate for the next one. So a list of knots (step, share) describes the whole schedule.
    """

    def __init__(
        self,
        config: Config,
        deadline: float,
        ending: Ending,
        *,
        knots: Sequence[Knot] = ((0, 0.0),),
        agree: Agree | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Prepare a schedule whose command ends at ``deadline`` on the ``clock``.

        ``knots`` describe the steps before a resumption.
        """
        super().__init__(config)
        self._deadline, self._ending, self._clock = deadline, ending, clock
        self._alone, self._agree = agree is None, agree or (lambda numbers: numbers)
        self._knots, self._compacted = list(knots), len(knots) - 1  # the knots before that number are compacted
        self._share = knots[-1][1]  # share of the time used, by the clock
        self._validations = int(self._share * VALIDATIONS)
        self._checkpoints = int(self._share * _CHECKPOINTS)
        self._checkpoint_step = knots[-1][0]
        self._durations = deque[float](maxlen=_INTERVALS)  # seconds a step, in the last intervals between decisions
        self._costs: dict[Work, list[float]] = {}  # measured costs of a unit of other work, in steps
        self._validation_seconds = 0.0
        self._whole = self._train_until = math.inf
        self._decided: tuple[int, bool, bool, bool] = (-1, False, False, False)
        self._started = self._seen = self._mark = self._fitted = math.nan

    def start(self) -> None:
        """Start the clock for the steps; call this right before the first one."""
        self._started = self._seen = self._mark = self._clock()
        self._whole = max(0.0, self._deadline - self._started)
        step = self._knots[-1][0]
        self._last, self._next = step, step + 1  # steps of this decision and the next
        self._knots.append((self._next, self._share))

    def seconds_left(self) -> float:
        """Return the seconds until the deadline."""
        return self._deadline - self._clock()

    def recorded(self, steps: int, tolerance: float = _RECORD_TOLERANCE) -> tuple[Knot, ...]:
        """Return the schedule of the first ``steps`` steps as compacted knots."""
        done = [knot for knot in self._knots if knot[0] < steps]
        knots = (*done, (steps, interpolate(self._knots, steps)))
        return tuple((step, round(share, 6)) for step, share in compact(knots, tolerance))

    def total(self) -> int | None:
        """Return an estimate of the number of steps; None before there is one."""
        return round(self._last / self._share) if self._share > 0.01 else None

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step."""
        share = interpolate(self._knots[-2:], step)
        return self._config.lr * timed_learning_rate(step, share, warmup_steps(self._config))

    def kl_weight(self, step: int) -> float:
        """Return the KL's weight at a step, as a share of beta."""
        return kl_weight(interpolate(self._knots[-2:], step), 1.0, self._config.beta_warmup)

    def ends_after(self, steps: int) -> bool:
        """Return whether the time for steps is used up."""
        return self._decided[:2] == (steps, True)

    def validates_after(self, steps: int) -> bool:
        """Return whether the held-out images are measured after ``steps`` steps.

        They are at every tenth of the time, unless it would take too long.
        """
        return self._decided[0] == steps and self._decided[2]

    def checkpoints_after(self, steps: int) -> bool:
        """Return whether a checkpoint is written after ``steps`` steps.

        It is at every twentieth of the time, and after every ``checkpoint_every`` steps.
        """
        return self._decided[0] == steps and self._decided[3]

    def follow(self, steps: int) -> None:
        """Decide what follows, if a decision is due; call this after each step."""
        late = self._alone and self._clock() >= self._train_until
        if steps < self._next and not late:
            return
        ends, validates, checkpoints, interval, share = self._agree(self._decide(steps))
        self._decided = (steps, bool(ends), bool(validates), bool(checkpoints))
        self._knots[-1] = (steps, interpolate(self._knots, steps))
        if len(self._knots) > self._compacted + _KEPT_KNOTS:
            self._knots[self._compacted :] = compact(self._knots[self._compacted :], FINE_TOLERANCE)
            self._compacted = len(self._knots) - 1
        self._last, self._next = steps, steps + int(interval)
        self._knots.append((self._next, max(share, self._knots[-1][1])))

    def _decide(self, steps: int) -> tuple[float, ...]:
        """Decide what follows after ``steps`` steps.

        Returns whether to end, whether to validate, whether to write a checkpoint, the number of steps until the next
        decision, and the share of the time used then.
        """
        now = self._clock()
        self._durations.append((now - self._mark) / (steps - self._last))
        self._mark = now
        step = self._step_seconds()
        self._train_until = self._deadline - self._seconds_at_the_end() - step
        if len(self._durations) < _TRUSTED_INTERVALS:
            self._seen = now
            return now >= self._deadline, False, False, 1, self._share
        self._advance(now)
        ends = now >= self._train_until
        validates = not ends and self._validation_is_due(now)
        checkpoints = not ends and self._checkpoint_is_due(steps)
        interval = self._interval(steps)
        ahead = 1.0 if now >= self._train_until else min(1.0, interval * step / (self._train_until - now))
        return ends, validates, checkpoints, interval, self._share + (1.0 - self._share) * ahead

    def _step_seconds(self) -> float:
        return max(1e-9, statistics.median(self._durations)) if self._durations else 1e-9

    def _advance(self, now: float) -> None:
        """Update the share of the time used.

        The end of the time for steps may have moved. The share rises so that it reaches 1 at the new end.
        """
        span = self._train_until - self._seen
        self._share = 1.0 if span <= 0 else self._share + (1.0 - self._share) * min(1.0, (now - self._seen) / span)
        self._seen = now

    def _interval(self, steps: int) -> int:
        """Return the steps until the next decision, or the next report if earlier."""
        allowed = _INTERVAL_SHARE * self._whole / self._step_seconds()
        return max(1, min(int(allowed), REPORT_EVERY - steps % REPORT_EVERY))

    def _validation_is_due(self, now: float) -> bool:
        tenth = int(self._share * VALIDATIONS)
        seconds = self._ending.holdout_images * self._cost("evaluation") + self._cost("pictures")
        affordable = self._validation_seconds + seconds <= _VALIDATION_SHARE * (now - self._started)
        if tenth <= self._validations or not affordable or self._share > _LAST_VALIDATION:
            return False
        self._validations = tenth
        return True

    def _checkpoint_is_due(self, steps: int) -> bool:
        part = int(self._share * _CHECKPOINTS)
        if part <= self._checkpoints and steps - self._checkpoint_step < self._config.checkpoint_every:
            return False
        self._checkpoints, self._checkpoint_step = part, steps
        return True

    @contextmanager
    def aside(self, work: Work, amount: float = 1.0) -> Iterator[None]:
        """Measure how long ``amount`` units of other work take."""
        before = self._fitted = self._clock()
        yield
        self._mark = self._clock()  # the next step begins here
        seconds = self._mark - before
        if amount and self._durations:
            self._costs.setdefault(work, []).append(seconds / amount / self._step_seconds())
        if work != "checkpoint":
            self._validation_seconds += seconds

    def _cost(self, work: Work) -> float:
        """Return the seconds for a unit of work at the present speed."""
        if measured := self._costs.get(work):
            return statistics.median(measured) * self._step_seconds()
        if work == "evaluation":
            return _EVALUATION_COST / self._config.batch_size * self._step_seconds()
        images, seconds = _PICTURES_COST
        return images * self._cost("evaluation") + seconds if work == "pictures" else math.inf

    def _statistics_seconds(self) -> float:
        return min(_LARGEST_SHARE * self._whole, self._ending.statistics_images * self._cost("evaluation"))

    def _fit_seconds(self, images: int) -> float:
        if self._ending.dimensions is None:
            return 0.0
        amount = fit_work(images, self._ending.dimensions)
        return min(_LARGEST_SHARE * self._whole, amount * self._cost("fit")) if amount else 0.0

    def _seconds_at_the_end(self) -> float:
        """Estimate the seconds after the last step, with a margin."""
        validation = self._ending.holdout_images * self._cost("evaluation") + self._cost("pictures")
        fit = self._fit_seconds(self._ending.statistics_images)
        return _MARGIN * (self._statistics_seconds() + fit + 2 * validation) + _EXIT_SECONDS

    def statistics_go_on(self, images: int) -> bool:
        """Return whether there is time to evaluate more training images.

        ``images`` have been evaluated. There must also be time to fit the prior to them.
        """
        validation = self._ending.holdout_images * self._cost("evaluation")
        return self.seconds_left() > self._fit_seconds(images) + validation + self._cost("pictures") + _EXIT_SECONDS

    def fit_goes_on(self) -> bool:
        """Return whether there is time for another round of fitting the prior.

        It assumes that the round takes as long as the time since the last call, or since the fit began.
        """
        before, self._fitted = self._fitted, self._clock()
        return self.seconds_left() > self._fitted - before + self._cost("pictures") + _EXIT_SECONDS
