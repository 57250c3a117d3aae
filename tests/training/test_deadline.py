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
        """Work for ``seconds`` at speed 1."""
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


def simulate(
    config: Config, speeds: Speeds, *, step: float = STEP, limit: float = LIMIT, images: int = 12_000
) -> Simulated:
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

# Seconds of a step at speed 1, and the limit.
LENGTHS = [(3.2, 600.0), (3.2, 180.0), (0.04, 30.0), (0.002, 30.0), (0.04, 600.0), (10.0, 300.0)]


def assert_promise_holds(found: Simulated, limit: float) -> None:
    """Check both promises: it ends in time, and steps get at least nine tenths of the time left for them."""
    assert found.ended <= 1.03 * limit
    end = found.ended - found.trained_until
    assert found.trained_until - STARTUP >= 0.9 * (limit - STARTUP - end)
    assert end <= 0.7 * limit


@pytest.fixture
def settings() -> Config:
    return Config(source="images.npy", channels=1, height=28, width=28)


@pytest.mark.parametrize("name", MACHINES)
def test_the_promise_holds_on_any_machine(settings: Config, name: str) -> None:
    found = simulate(settings, MACHINES[name])
    assert_promise_holds(found, LIMIT)
    assert found.ended - found.trained_until <= 0.1 * LIMIT
    assert found.statistics >= 8000
    assert found.fitted >= 0.35
    assert found.rates[-1] < 0.002 * settings.lr  # it came to the end of its schedule
    assert max(found.rates) > 0.95 * settings.lr
    assert len(found.validations) >= 5
    assert found.checkpoints >= 19
    assert len(found.knots) <= 48


@pytest.mark.parametrize(("step", "limit"), LENGTHS)
def test_the_promise_holds_for_any_length(settings: Config, step: float, limit: float) -> None:
    found = simulate(settings, [(0, 1.0)], step=step, limit=limit)
    assert_promise_holds(found, limit)
    assert found.statistics >= 500
    assert found.steps < 10 or found.rates[-1] < 0.002 * settings.lr


@pytest.mark.parametrize("stall", [1.0, 4.0, 10.0])
def test_a_stall_in_the_first_step_of_a_short_training_ends_nothing(settings: Config, stall: float) -> None:
    found = simulate(settings, [(0, 1.0), (STARTUP + 0.01, 0.0), (STARTUP + 0.01 + stall, 1.0)], limit=30)
    assert_promise_holds(found, 30)
    assert found.steps > 0.8 * (30 - STARTUP - stall) / STEP - 100
    assert max(found.rates) > 0.9 * settings.lr


def test_a_long_training_keeps_few_knots(settings: Config) -> None:
    speeds = [(float(second), 0.8 if second % 60 else 0.3) for second in range(0, 1200, 6)]
    found = simulate(settings, speeds, limit=1200)
    assert found.schedule is not None
    assert found.steps > 20_000
    assert len(found.schedule.recorded(found.steps, 0.0)) < 250


def test_steps_follow_the_machines_speed(settings: Config) -> None:
    idle, slow, doubled = (
        simulate(settings, MACHINES[name]).steps for name in ("steady", "four times slower", "doubles its speed")
    )
    assert slow == pytest.approx(idle / 4, rel=0.2)
    assert slow < doubled < idle
    hiccup = simulate(settings, MACHINES["hiccup in the first second"]).steps
    assert hiccup == pytest.approx(idle, rel=0.03)


def test_a_deadline_that_is_past_allows_one_step(settings: Config) -> None:
    assert simulate(settings, [(0, 1.0)], limit=STARTUP - 1).steps == 1


@pytest.mark.parametrize("name", MACHINES)
def test_a_repeated_training_has_the_same_learning_rates_without_a_clock(settings: Config, name: str) -> None:
    found = simulate(settings, MACHINES[name])
    repeated = StepSchedule(dataclasses.replace(settings, steps=found.steps, schedule=found.knots))
    again = [repeated.learning_rate(step) for step in range(found.steps)]
    allowed = max(math.pi / 2, 5) * KNOT_TOLERANCE * settings.lr  # the rise, in a fifth of the time at most, is steeper
    assert max(abs(a - b) for a, b in zip(again, found.rates, strict=True)) <= allowed
    later = range(found.steps // 4, found.steps)
    assert max(abs(again[step] - found.rates[step]) for step in later) <= 0.008 * settings.lr
    assert repeated.ends_after(found.steps)


def test_the_kls_weight_follows_the_share_of_the_time(settings: Config) -> None:
    warm = dataclasses.replace(settings, beta_warmup=0.5)
    found = simulate(warm, MACHINES["doubles its speed"])
    repeated = StepSchedule(dataclasses.replace(warm, steps=found.steps, schedule=found.knots))
    weights = [repeated.kl_weight(step) for step in range(found.steps)]
    full = weights.index(1.0)
    assert full == pytest.approx(found.steps / 3, rel=0.05)  # half of the time, at half of the speed
    assert weights[full // 2] == pytest.approx(0.5, abs=0.05)
    assert StepSchedule(settings).kl_weight(0) == 1.0


def test_expensive_validations_are_rare(settings: Config) -> None:
    found = simulate(settings, [(0, 1.0)], step=3.2, limit=600)
    assert 1 <= len(found.validations) <= 3
    assert simulate(settings, [(0, 1.0)]).validations == pytest.approx(
        [STARTUP / LIMIT + part / 10 * 165.5 / LIMIT for part in range(1, 10)], abs=0.02
    )


@pytest.mark.parametrize("tolerance", [0.0, 0.001, 0.05])
def test_fewer_knots_give_the_same_shares_within_the_tolerance(tolerance: float) -> None:
    knots = [
        (step, 0.5 - 0.5 * math.cos(math.pi * step / 1000) + 0.004 * math.sin(step)) for step in range(0, 1001, 10)
    ]
    kept = compact(knots, tolerance)
    assert kept[0] == knots[0]
    assert kept[-1] == knots[-1]
    assert set(kept) <= set(knots)
    for step, share in knots:
        assert interpolate(kept, step) == pytest.approx(share, abs=tolerance + 1e-9)
    assert (len(kept) == len(knots)) == (tolerance == 0.0)


def test_shares_between_knots_and_beyond() -> None:
    knots = [(0, 0.0), (10, 0.5), (20, 1.0)]
    assert [interpolate(knots, step) for step in (-1, 0, 4, 10, 15, 20, 25)] == [0.0, 0.0, 0.2, 0.5, 0.75, 1.0, 1.0]
    assert compact([(0, 0.0)], 0.1) == ((0, 0.0),)


def test_a_resumed_schedule_goes_on_where_it_stood(settings: Config) -> None:
    machine = Machine([(0, 1.0)])
    ending = Ending(12_000, 1000, 16)

    def train(schedule: TimedSchedule, steps: range) -> None:
        schedule.start()
        for step in steps:
            assert not schedule.ends_after(step)
            machine.work(STEP)
            schedule.follow(step + 1)

    first = TimedSchedule(settings, 180, ending, clock=machine.clock)
    train(first, range(1000))
    knots, left = first.recorded(1000, 0.0005), first.seconds_left()
    machine.now += 1e5  # a day later
    second = TimedSchedule(settings, machine.now + left, ending, knots=knots, clock=machine.clock)
    train(second, range(1000, 1500))
    assert second.learning_rate(1500) == pytest.approx(first.learning_rate(1000) * 0.8, rel=0.1)
    record = second.recorded(1500)
    assert interpolate(record, 1000) == pytest.approx(knots[-1][1], abs=KNOT_TOLERANCE)
    assert record[-1][0] == 1500
    unbroken = TimedSchedule(settings, 180, ending, clock=(other := Machine([(0, 1.0)])).clock)
    unbroken.start()
    for step in range(1500):
        other.work(STEP)
        unbroken.follow(step + 1)
    assert record[-1][1] == pytest.approx(unbroken.recorded(1500)[-1][1], abs=0.01)


def test_the_first_process_decides_for_all(settings: Config) -> None:
    machines = Machine([(0, 1.0)]), Machine([(0, 0.3), (20, 1.5)])
    said: list[list[float]] = []
    heard = iter(said)

    def tell(numbers: object) -> list[float]:
        said.append(list(numbers))  # type: ignore[call-overload]
        return said[-1]

    ending = Ending(12_000, 1000, 16)
    first = TimedSchedule(settings, 60, ending, agree=tell, clock=machines[0].clock)
    second = TimedSchedule(settings, 60, ending, agree=lambda numbers: next(heard), clock=machines[1].clock)
    first.start()
    second.start()
    step = 0
    while not first.ends_after(step):
        assert first.learning_rate(step) == second.learning_rate(step)
        assert first.validates_after(step) == second.validates_after(step)
        step += 1
        for schedule, machine in ((first, machines[0]), (second, machines[1])):
            machine.work(STEP)
            schedule.follow(step)
    assert second.ends_after(step)
    assert first.recorded(step) == second.recorded(step)
    assert len(said) <= step / 4  # an exchange every few steps
