"""The number of threads in a training with a time limit, on simulated machines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vaekit.training.adaptive_threads import AdaptiveThreads

Seconds = Callable[[int, float], float]
"""The duration of a step by the number of threads and the time."""


class Machine:
    """Takes steps on a simulated clock."""

    def __init__(self, most: int, seconds: Seconds) -> None:
        self.now, self.running, self.seconds, self.steps = 0.0, most, seconds, 0
        self.threads = AdaptiveThreads(most, clock=lambda: self.now, use=self.use)

    def use(self, threads: int) -> None:
        self.running = threads

    def train(self, seconds: float) -> int:
        """Train for that long; the number of steps."""
        end, steps = self.now + seconds, 0
        while self.now < end:
            with self.threads.step():
                self.now += self.seconds(self.running, self.now)
            steps += 1
        return steps


def alone(threads: int, now: float) -> float:
    """Return a step's seconds on an idle machine, where a tenth of the work cannot be shared."""
    return 0.04 * (0.1 + 0.9 / threads)


def beside_a_busy_loop(threads: int, now: float, cpus: int) -> float:
    """Return a step's seconds where a thread has only half of its processor if there is one for each."""
    return alone(threads, now) * (2 if threads == cpus else 1)


def test_an_idle_machine_keeps_all_threads_and_loses_little() -> None:
    machine = Machine(2, alone)
    steps = machine.train(180)
    assert machine.threads.chosen == 2
    assert steps > 0.97 * 180 / alone(2, 0)


@pytest.mark.parametrize("cpus", [2, 4, 16])
def test_beside_a_busy_loop_one_thread_fewer_is_used(cpus: int) -> None:
    machine = Machine(cpus, lambda threads, now: beside_a_busy_loop(threads, now, cpus))
    steps = machine.train(180)
    assert machine.threads.chosen == cpus - 1
    assert steps > 0.93 * 180 / alone(cpus - 1, 0)


def test_beside_several_programs_most_processors_are_still_used() -> None:
    machine = Machine(16, lambda threads, now: alone(threads, now) * (2 if threads > 12 else 1))
    machine.train(600)
    assert 10 <= machine.threads.chosen <= 12


def test_the_threads_come_back_when_the_other_work_ends() -> None:
    machine = Machine(2, lambda threads, now: beside_a_busy_loop(threads, now, 2) if now < 60 else alone(threads, now))
    machine.train(50)
    assert machine.threads.chosen == 1
    machine.train(40)
    assert machine.threads.chosen == 2


def test_a_long_stall_changes_nothing() -> None:
    stalls = iter([30.0])
    machine = Machine(2, lambda threads, now: alone(threads, now) + (next(stalls, 0.0) if now > 20 else 0.0))
    machine.train(120)
    assert machine.threads.chosen == 2


def test_a_single_thread_is_never_changed() -> None:
    used: list[int] = []
    machine = Machine(1, alone)
    machine.threads = AdaptiveThreads(1, clock=lambda: machine.now, use=used.append)
    machine.train(30)
    assert used == []


def test_slow_steps_make_few_trials() -> None:
    machine = Machine(2, lambda threads, now: 50 * alone(threads, now))
    steps = machine.train(1800)
    assert steps > 0.95 * 1800 / (50 * alone(2, 0))


def test_reset_uses_the_first_number_again() -> None:
    machine = Machine(2, lambda threads, now: beside_a_busy_loop(threads, now, 2))
    machine.train(30)
    machine.threads.reset()
    assert machine.running == 2
