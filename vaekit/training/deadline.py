"""Trainings whose length is a time: a schedule by the share of the time used, and the work that must fit in at the end.

The promise has two halves. The command ends at its deadline; and steps take at least nine tenths of the time between
start-up and the work after the last step, also where the machine changes its speed. So nothing is fixed by a first
measurement: the share of the time used is read from the clock as training goes, and how long the work at the end will
take is estimated again and again, from what the same work took before relative to a step.
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
"""What a training does beside its steps."""
Clock = Callable[[], float]
"""The time in seconds, as time.monotonic gives it."""
Agree = Callable[[Sequence[float]], Sequence[float]]
"""Give every process the first one's numbers."""

_EVALUATION_COST = 0.4  # of an image, as a share of its cost in a training step, until it is measured
_PICTURES_COST = 100, 0.3  # of previews and a saved model, in evaluated images and seconds, until it is measured
_LARGEST_SHARE = 0.05  # of the whole time, for the statistics at the end, and for the fit of the prior
_MARGIN = 1.15  # on the estimate of the work at the end
_EXIT_SECONDS = 1.0  # before Python reads the clock and after the last file is written

_INTERVALS = 9  # whose median is the duration of a step: one long stall does not change it
_TRUSTED_INTERVALS = 3  # before which nothing is concluded: the first steps count as start-up
_INTERVAL_SHARE = 0.005  # of the whole time, at most, between two decisions
_VALIDATION_SHARE = 0.05  # of the time used so far, at most, for validations
_LAST_VALIDATION = 0.95  # share of the training; after it comes the validation at the end
_KEPT_KNOTS = 100  # before they become fewer
FINE_TOLERANCE = KNOT_TOLERANCE / 10
"""Of the knots of a training that goes on, and of its checkpoints: what is lost each time, as a share."""
_RECORD_TOLERANCE = 0.7 * KNOT_TOLERANCE  # the rest may be lost before
_CHECKPOINTS = 20  # in a training, evenly spaced, beside those of every so many steps


def fit_work(count: int, dimensions: int) -> float:
    """Return how much work it is to fit the prior to that many latents, up to a factor."""
    return float(count * components_for(count, dimensions))


@dataclass(frozen=True)
class Ending:
    """How much there is to do after the last step."""

    statistics_images: int
    """At most this many training images are evaluated."""
    holdout_images: int
    """Held-out images, evaluated twice: in the last validation, and with the final variance."""
    dimensions: int
    """Of the latents, which the prior is fitted to."""


class TimedSchedule(Schedule):
    """A schedule by the share of the time used. Every few steps the first process reads the clock and decides.

    Between two decisions the share is a straight line to where it will probably be at the next one, so that a list of
    knots (step, share) describes the whole schedule.
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
        """The command ends at ``deadline`` on the ``clock``; ``knots`` are of the steps done before a resumption."""
        super().__init__(config)
        self._deadline, self._ending, self._clock = deadline, ending, clock
        self._alone, self._agree = agree is None, agree or (lambda numbers: numbers)
        self._knots, self._compacted = list(knots), len(knots) - 1  # up to that knot, there are as few as possible
        self._share = knots[-1][1]  # of the time used, by the clock
        self._validations = int(self._share * VALIDATIONS)
        self._checkpoints = int(self._share * _CHECKPOINTS)
        self._checkpoint_step = knots[-1][0]
        self._durations = deque[float](maxlen=_INTERVALS)  # of a step, in the last intervals between decisions
        self._costs: dict[Work, list[float]] = {}  # of work beside the steps, a unit of it in steps
        self._validation_seconds = 0.0
        self._whole = self._train_until = math.inf
        self._decided: tuple[int, bool, bool, bool] = (-1, False, False, False)
        self._started = self._seen = self._mark = self._fitted = math.nan

    def start(self) -> None:
        """Begin with the steps, after all that takes time before them."""
        self._started = self._seen = self._mark = self._clock()
        self._whole = max(0.0, self._deadline - self._started)
        step = self._knots[-1][0]
        self._last, self._next = step, step + 1  # steps of this decision and the next
        self._knots.append((self._next, self._share))

    def seconds_left(self) -> float:
        """Return the seconds until the deadline."""
        return self._deadline - self._clock()

    def recorded(self, steps: int, tolerance: float = _RECORD_TOLERANCE) -> tuple[Knot, ...]:
        """Return the knots of the schedule up to that many steps, as few as give it within the tolerance."""
        done = [knot for knot in self._knots if knot[0] < steps]
        knots = (*done, (steps, interpolate(self._knots, steps)))
        return tuple((step, round(share, 6)) for step, share in compact(knots, tolerance))

    def total(self) -> int | None:
        """Return how many steps there will probably be."""
        return round(self._last / self._share) if self._share > 0.01 else None

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step."""
        share = interpolate(self._knots[-2:], step)
        return self._config.lr * timed_learning_rate(step, share, warmup_steps(self._config))

    def kl_weight(self, step: int) -> float:
        """Return the share of beta in force at a step."""
        return kl_weight(interpolate(self._knots[-2:], step), 1.0, self._config.beta_warmup)

    def ends_after(self, steps: int) -> bool:
        """Whether the time for steps is used up."""
        return self._decided[:2] == (steps, True)

    def validates_after(self, steps: int) -> bool:
        """Whether the held-out images are measured: at every tenth of the time, where that does not take too much."""
        return self._decided[0] == steps and self._decided[2]

    def checkpoints_after(self, steps: int) -> bool:
        """Whether a checkpoint is written: at every twentieth of the time, and every ``checkpoint_every`` steps."""
        return self._decided[0] == steps and self._decided[3]

    def follow(self, steps: int) -> None:
        """Read the clock, where that is due, and decide how to go on; to be called after each step."""
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
        """Return whether to end, validate and write a checkpoint; the steps until the next decision; the share then."""
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
        """Move the share of the time used, which reaches 1 where the time for steps ends, wherever that has moved."""
        span = self._train_until - self._seen
        self._share = 1.0 if span <= 0 else self._share + (1.0 - self._share) * min(1.0, (now - self._seen) / span)
        self._seen = now

    def _interval(self, steps: int) -> int:
        """Return the steps until the next decision, which is due where figures are reported at the latest."""
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
        """Measure work that is no step: ``amount`` of it, in its own unit."""
        before = self._fitted = self._clock()
        yield
        self._mark = self._clock()  # the next step begins here
        seconds = self._mark - before
        if amount and self._durations:
            self._costs.setdefault(work, []).append(seconds / amount / self._step_seconds())
        if work != "checkpoint":
            self._validation_seconds += seconds

    def _cost(self, work: Work) -> float:
        """Return the seconds that a unit of work takes at the machine's present speed."""
        if measured := self._costs.get(work):
            return statistics.median(measured) * self._step_seconds()
        if work == "evaluation":
            return _EVALUATION_COST / self._config.batch_size * self._step_seconds()
        images, seconds = _PICTURES_COST
        return images * self._cost("evaluation") + seconds if work == "pictures" else math.inf

    def _statistics_seconds(self) -> float:
        return min(_LARGEST_SHARE * self._whole, self._ending.statistics_images * self._cost("evaluation"))

    def _fit_seconds(self, images: int) -> float:
        amount = fit_work(images, self._ending.dimensions)
        return min(_LARGEST_SHARE * self._whole, amount * self._cost("fit")) if amount else 0.0

    def _seconds_at_the_end(self) -> float:
        """Return how long the work after the last step will take, with a margin."""
        validation = self._ending.holdout_images * self._cost("evaluation") + self._cost("pictures")
        fit = self._fit_seconds(self._ending.statistics_images)
        return _MARGIN * (self._statistics_seconds() + fit + 2 * validation) + _EXIT_SECONDS

    def statistics_go_on(self, images: int) -> bool:
        """Whether there is time to evaluate more, after that many training images, and to fit the prior to them."""
        validation = self._ending.holdout_images * self._cost("evaluation")
        return self.seconds_left() > self._fit_seconds(images) + validation + self._cost("pictures") + _EXIT_SECONDS

    def fit_goes_on(self) -> bool:
        """Whether there is time to improve the fit of the prior as much again as since the last time this was asked."""
        before, self._fitted = self._fitted, self._clock()
        return self.seconds_left() > self._fitted - before + self._cost("pictures") + _EXIT_SECONDS
