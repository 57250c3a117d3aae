"""Choose how many threads compute a training step, while other programs come and go.

Threads wait for each other many times in a step. If another program takes half of one processor, all threads run at
half speed, and fewer threads are faster. The choice changes the last bits of the results, so it is only made in
trainings with a time limit, whose results depend on the machine's speed anyway.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vaekit.training.deadline import Clock

_STEPS = 10  # the last ones with the chosen count, whose median a trial is compared with
_TRIAL_STEPS, _TRIAL_SECONDS = 5, 0.25  # a trial has more steps than this and lasts at least this long
_GAIN = 0.95  # a trial must bring a step's duration below this share of it
_PAUSE = 30.0  # time to the next trial, in durations of the last


class AdaptiveThreads:
    """Tries other numbers of threads now and then, and keeps one with which steps are faster."""

    def __init__(
        self, most: int, clock: Clock = time.monotonic, use: Callable[[int], object] = torch.set_num_threads
    ) -> None:
        """Begin with ``most`` threads. ``use`` sets their number."""
        self._most, self._clock, self._use = most, clock, use
        self._chosen = self._running = most
        self._durations = deque[float](maxlen=_STEPS)  # of steps with the chosen count
        self._trial: list[float] = []  # durations of steps with the count on trial
        self._trials, self._next_trial, self._trial_began = 0, 0.0, 0.0

    @property
    def chosen(self) -> int:
        """Return the number of threads with which steps were fastest."""
        return self._chosen

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure a training step. The number of threads may change after it."""
        began = self._clock()
        yield
        now = self._clock()
        if self._running != self._chosen:
            self._follow_trial(now - began, now)
            return
        self._durations.append(now - began)
        if len(self._durations) == _STEPS and now >= self._next_trial and self._most > 1:
            self._begin_trial(now)

    def reset(self) -> None:
        """Use the number of threads that it began with."""
        self._run_with(self._most)

    def _begin_trial(self, now: float) -> None:
        candidates = self._candidates()
        self._run_with(candidates[self._trials % len(candidates)])
        self._trials += 1
        self._trial_began, self._trial = now, []

    def _candidates(self) -> list[int]:
        chosen, most = self._chosen, self._most
        near = (chosen - 1, chosen + 1, (chosen + most) // 2, chosen // 2, most)
        return [count for count in dict.fromkeys(near) if 1 <= count <= most and count != chosen]

    def _follow_trial(self, seconds: float, now: float) -> None:
        """Add a step to the trial, and decide if that was the last one."""
        self._trial.append(seconds)
        lasted = now - self._trial_began
        if len(self._trial) <= _TRIAL_STEPS or lasted < _TRIAL_SECONDS:
            return
        # The first step does not count: it prepares memory and kernels for this number of threads.
        if statistics.median(self._trial[1:]) < _GAIN * statistics.median(self._durations):
            self._chosen = self._running
            self._durations.clear()
        self._run_with(self._chosen)
        self._next_trial = now + _PAUSE * lasted

    def _run_with(self, threads: int) -> None:
        self._running = threads
        self._use(threads)
