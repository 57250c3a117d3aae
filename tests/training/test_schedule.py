"""Schedules: the learning rate, the KL's weight, and deadlines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from vaekit.images.dataset import Images
from vaekit.training.checkpoint import load_checkpoint
from vaekit.training.config import Config, load_config
from vaekit.training.learner import Learner
from vaekit.training.run import METRICS, is_finished, load_run
from vaekit.training.schedule import (
    KNOT_TOLERANCE,
    StepSchedule,
    interpolate,
    kl_weight,
    learning_rate,
    steps_of,
    timed_learning_rate,
)
from vaekit.training.trainer import Trainer

MakeConfig = Callable[..., Config]


def metrics(run: Path, part: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [record for record in records if record["split"] == part]


def test_length_in_steps_or_in_epochs() -> None:
    assert steps_of(1000, 100, steps=7) == 7
    assert steps_of(1050, 100, epochs=3) == 30
    assert steps_of(50, 100, epochs=3) == 3
    assert steps_of(1000, 100) > 0


def test_the_learning_rate_rises_and_falls_to_zero(make_config: MakeConfig) -> None:
    schedule = StepSchedule(make_config(steps=100, batch_size=1000, lr=1.0))
    rates = [schedule.learning_rate(step) for step in range(101)]
    assert 0 < rates[0] < rates[5] < rates[9] <= 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert max(rates) > 0.95
    assert learning_rate(0, 1.0, 1.0) == 1.0


def test_the_learning_rate_by_time_rises_over_a_fifth_at_most() -> None:
    assert timed_learning_rate(0, 0.0, 100) == pytest.approx(0.01)
    assert timed_learning_rate(99, 0.05, 100) > 0.99  # over the images, where there is time
    assert timed_learning_rate(2, 0.1, 100) == pytest.approx(0.5, abs=0.02)  # over a fifth of the time, where not
    assert timed_learning_rate(5, 1.0, 100) == pytest.approx(0, abs=1e-12)


def test_the_kls_weight_rises_over_its_share_of_the_steps() -> None:
    assert [kl_weight(step, 100, 0.2) for step in (0, 5, 10, 20, 99)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert [kl_weight(step, 100, 0.0) for step in (0, 99)] == [1.0, 1.0]
    assert kl_weight(0.0, 1.0, 0.2) == 0.0
    assert kl_weight(0.0, 1.0, 0.0) == 1.0


class SlowLearner:
    """Moves a clock on with each step and each evaluated image; the network's own work takes no time on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: float = 0.1) -> None:
        self.now, learn, evaluate = 100.0, Learner.step, Learner.evaluate

        def slow_step(learner: Learner, *arguments: Any) -> Any:
            self.now += step
            return learn(learner, *arguments)

        def slow_evaluate(learner: Learner, parts: Iterable[Any]) -> Any:
            return evaluate(learner, (self.counted(part, step) for part in parts))

        monkeypatch.setattr(Learner, "step", slow_step)
        monkeypatch.setattr(Learner, "evaluate", slow_evaluate)

    def counted(self, part: Any, step: float) -> Any:
        self.now += 0.01 * step * len(part)
        return part

    def clock(self) -> float:
        return self.now


def test_a_deadline_sets_the_length_and_config_repeats_it(
    tmp_path: Path, images: Images, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, run = SlowLearner(monkeypatch), tmp_path / "run"
    rates = list[float]()
    learn = Learner.step

    def noting(learner: Learner, *arguments: Any) -> Any:
        rates.append(arguments[3])
        return learn(learner, *arguments)

    monkeypatch.setattr(Learner, "step", noting)
    config = make_config(steps=7, max_minutes=0.5)
    outcome = Trainer(config, images, run, deadline=slow.now + 30, clock=slow.clock).run()
    assert 120 <= slow.now <= 131
    assert not outcome.interrupted
    assert is_finished(run)
    assert 200 <= outcome.steps <= 300
    assert load_config(run) == outcome.config
    assert outcome.config.steps == outcome.steps
    assert outcome.config.max_minutes is None
    assert outcome.config.schedule is not None
    assert outcome.config.schedule[-1][0] == outcome.steps
    assert load_run(run).summary["steps"] == outcome.steps
    first, rates = rates, []
    again = Trainer(load_config(run), images, tmp_path / "again").run()
    assert again.steps == outcome.steps
    assert again.config == outcome.config
    assert max(abs(a - b) for a, b in zip(first, rates, strict=True)) < 5 * KNOT_TOLERANCE * config.lr


def test_a_deadline_that_is_past_still_gives_a_model(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    outcome = Trainer(make_config(), images, tmp_path / "run", deadline=time.monotonic()).run()
    assert outcome.steps > 0
    assert math.isfinite(outcome.elbo)
    assert load_run(tmp_path / "run").config == outcome.config


def test_a_timed_training_that_was_stopped_resumes_with_the_time_it_had_left(
    tmp_path: Path, images: Images, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, run = SlowLearner(monkeypatch), tmp_path / "run"
    config = make_config(max_minutes=0.5)
    halfway = slow.now + 15
    stopped = Trainer(
        config, images, run, deadline=slow.now + 30, clock=slow.clock, stop=lambda: slow.now > halfway
    ).run()
    assert stopped.interrupted
    assert not is_finished(run)
    assert load_config(run).max_minutes == 0.5
    checkpoint = load_checkpoint(run)
    assert checkpoint is not None
    assert checkpoint.step == stopped.steps
    assert checkpoint.seconds_left == pytest.approx(15, abs=0.5)
    step, share = checkpoint.knots[-1]
    assert step == stopped.steps
    assert share == pytest.approx(0.5, abs=0.1)
    slow.now += 1e5
    deadline = slow.now + (checkpoint.seconds_left or 0)
    ended = Trainer(load_config(run), images, run, checkpoint=checkpoint, deadline=deadline, clock=slow.clock).run()
    assert not ended.interrupted
    assert deadline - 10 < slow.now <= deadline + 1
    assert ended.steps > 1.5 * stopped.steps
    assert ended.config.schedule is not None
    assert ended.config.schedule[-1][0] == ended.steps
    assert ended.config.schedule[-1][1] == pytest.approx(1.0, abs=0.01)
    assert interpolate(ended.config.schedule, stopped.steps) == pytest.approx(share, abs=0.006)


def test_a_run_killed_after_its_deadline_was_recorded_resumes_by_its_steps(
    tmp_path: Path, images: Images, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, run = SlowLearner(monkeypatch), tmp_path / "run"

    def kill(trainer: Trainer, *arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_finish", kill)
        with pytest.raises(KeyboardInterrupt):
            Trainer(make_config(max_minutes=0.5), images, run, deadline=slow.now + 30, clock=slow.clock).run()
    config, checkpoint = load_config(run), load_checkpoint(run)
    assert checkpoint is not None
    assert config.max_minutes is None
    assert Trainer(config, images, run, checkpoint=checkpoint).run().steps == config.steps > checkpoint.step
    assert is_finished(run)


def test_a_warm_up_is_in_force_while_training(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    peaks = []
    for share in (0.0, 1.0):
        path = tmp_path / str(share)
        Trainer(make_config(steps=30, beta=20.0, sigma=0.1, beta_warmup=share), images, path).run()
        peaks.append(max(record["kl"] for record in metrics(path, "training")))
    assert peaks[1] > 1.3 * peaks[0]


def test_validations_and_checkpoints_are_evenly_spaced(make_config: MakeConfig) -> None:
    schedule = StepSchedule(make_config(steps=1000, checkpoint_every=300))
    assert [step for step in range(1, 1001) if schedule.validates_after(step)] == list(range(100, 1001, 100))
    assert [step for step in range(1, 1001) if schedule.checkpoints_after(step)] == [300, 600, 900]
    assert not any(StepSchedule(make_config(steps=40)).validates_after(step) for step in range(1, 41))
