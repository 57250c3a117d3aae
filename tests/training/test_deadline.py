"""Trainings whose length is a time, on simulated machines: nothing here sleeps or times anything."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from vaekit.training.config import Config, Knot
from vaekit.training.deadline import Ending, TimedSchedule, fit_work
from vaekit.training.schedule import KNOT_TOLERANCE, StepSchedule, compact, interpolate

MakeConfig = Callable[..., Config]

Speeds = list[tuple[float, float]]
"""From which time on, in seconds, the machine has which speed; speed 0 is a stall."""

LIMIT = 180.0
STARTUP = 5.0
SLACK = 0.03 * LIMIT

STEP, CHECKPOINT, PICTURES = 0.04, 0.02, 0.15  # seconds at speed 1
EVALUATION = 0.3 * STEP / 128  # of an image
FIT = 6.0  # at the end, all its iterations


def fit_seconds(images: int) -> float:
    """At speed 1, with all iterations."""
    return FIT * fit_work(images, 16) / fit_work(12_000, 16)


@dataclass
class Machine:
    """A clock that work moves on."""

    speeds: Speeds
    now: float = 0.0

    def clock(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        """Do what takes so many seconds at speed 1."""
        changes = [start for start, _ in self.speeds]
        while seconds > 0:
            speed = [speed for start, speed in self.speeds if start <= self.now][-1]
            until = min([start for start in changes if start > self.now], default=math.inf)
            needed = seconds / speed if speed else math.inf
            if self.now + needed <= until:
                self.now += needed
                return
            seconds -= speed * (until - self.now)
            self.now = until


@dataclass
class Simulated:
    """What a simulated training came to."""

    steps: int = 0
    trained_until: float = 0.0
    ended: float = 0.0
    rates: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    """When they were, as shares of the limit."""
    checkpoints: int = 0
    statistics: int = 0
    """Images evaluated at the end."""
    fitted: float = 0.0
    """The share of the fit's iterations that were done."""
    knots: tuple[Knot, ...] = ()
    schedule: TimedSchedule | None = None


def simulate(config: Config, speeds: Speeds, *, step: float = STEP, limit: float = LIMIT, images: int = 12_000) -> Simulated:
    """Do what Trainer does, with a clock instead of a network."""
    machine, found = Machine(speeds), Simulated()
    evaluation = EVALUATION * step / STEP
    machine.work(STARTUP)
    found.schedule = schedule = TimedSchedule(config, limit, Ending(images, 1000, 16), clock=machine.clock)
    schedule.start()

    def validate() -> None:
        with schedule.aside("evaluation", 1000):
            machine.work(1000 * evaluation)
        with schedule.aside("fit", fit_work(1000, 16)):
            machine.work(fit_seconds(1000))
        with schedule.aside("pictures"):
            machine.work(PICTURES)

    while not schedule.ends_after(found.steps):
        found.rates.append(schedule.learning_rate(found.steps))
        machine.work(step)
        found.steps += 1
        found.trained_until = machine.now
        schedule.follow(found.steps)
        if schedule.validates_after(found.steps):
            found.validations.append(machine.now / limit)
            validate()
        if schedule.checkpoints_after(found.steps):
            found.checkpoints += 1
            with schedule.aside("checkpoint"):
                machine.work(CHECKPOINT)
    found.knots = schedule.recorded(found.steps)
    validate()
    while found.statistics < images and (not found.statistics or schedule.statistics_go_on(found.statistics)):
        machine.work(250 * evaluation)
        found.statistics += 250
    machine.work(1000 * evaluation)
    with schedule.aside("fit"):
        for _ in range(10):
            machine.work(fit_seconds(found.statistics) / 10)
            found.fitted += 0.1
            if not schedule.fit_goes_on():
                break
    machine.work(PICTURES)
    found.ended = machine.now
    return found


def drift(first: float, last: float, parts: int = 60) -> Speeds:
    """A speed that changes evenly over the limit."""
    return [(LIMIT * part / parts, first + (last - first) * part / parts) for part in range(parts)]


MACHINES: dict[str, Speeds] = {
    "steady": [(0, 1.0)],
    "four times slower": [(0, 0.25)],
    "hiccup in the first second": [(0, 1.0), (STARTUP + 0.02, 0.0), (STARTUP + 1, 0.05), (STARTUP + 2, 1.0)],
    "slow start": [(0, 0.2), (50, 1.0)],
    "slow end": [(0, 1.0), (140, 0.4)],
    "slow last tenth": [(0, 1.0), (0.9 * LIMIT, 0.4)],
    "grows slower": drift(1.0, 0.3),
    "grows faster": drift(0.3, 1.0),
    "a stall": [(0, 1.0), (60, 0.0), (100, 1.0)],
    "a stall in the last tenth": [(0, 1.0), (0.92 * LIMIT - 10, 0.0), (0.92 * LIMIT, 1.0)],
    "a short stall near the end": [(0, 1.0), (155, 0.0), (158, 1.0)],
    "doubles its speed": [(0, 0.5), (90, 1.0)],
    "doubles its speed at the end": [(0, 0.5), (160, 1.0)],
    "busy every other second": [(second, 1.0 if second % 2 else 0.3) for second in range(200)],
}
if __name__ == "__main__":
    base = Config(source="x", channels=1, height=28, width=28)
    def show(name, f, limit=LIMIT):
        share = (f.trained_until - STARTUP) / (limit - STARTUP - (f.ended - f.trained_until))
        print(f"{name:32} steps {f.steps:5} until {f.trained_until:6.1f} end {f.ended:6.1f} share {share:.3f} knots {len(f.knots)} val {len(f.validations)} stat {f.statistics} fit {f.fitted:.1f} ck {f.checkpoints} lastlr {f.rates[-1]:.5f}")
    for name, speeds in MACHINES.items():
        show(name, simulate(base, speeds))
    for step, limit in ((3.2, 600), (3.2,180), (0.04,30), (0.002, 60), (0.04, 3600), (10,120)):
        show(f"{step} {limit}", simulate(base, [(0,1.)], step=step, limit=limit), limit)
