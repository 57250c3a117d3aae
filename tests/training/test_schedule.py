"""Schedules: the learning rate, the KL's weight, and deadlines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vaekit.images.dataset import Images
from vaekit.training.config import CONFIG, Config
from vaekit.training.run import METRICS, load_run
from vaekit.training.schedule import Schedule, kl_weight, learning_rate, steps_of
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


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 10) for step in range(101)]
    assert 0 < rates[0] < rates[5] < rates[9] <= 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert max(rates) > 0.95
    assert learning_rate(50, None, 10) == 1.0


def test_the_kls_weight_rises_over_its_share_of_the_steps() -> None:
    assert [kl_weight(step, 100, 0.2) for step in (0, 5, 10, 20, 99)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert [kl_weight(step, 100, 0.0) for step in (0, 99)] == [1.0, 1.0]
    assert kl_weight(5, None, 0.2) == 0.0
    assert kl_weight(5, None, 0.0) == 1.0


def test_a_deadline_becomes_a_recorded_number_of_steps(
    tmp_path: Path, images: Images, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaekit.training.schedule._MIXTURE_SECONDS", 0.0)
    outcome = Trainer(make_config(steps=7), images, tmp_path / "run", deadline=time.monotonic() + 4).run()
    recorded = json.loads((tmp_path / "run" / CONFIG).read_text())["steps"]
    assert recorded == outcome.config.steps
    assert 30 <= outcome.steps <= recorded
    assert recorded > 30


def test_a_deadline_that_is_past_still_gives_a_model(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    outcome = Trainer(make_config(), images, tmp_path / "run", deadline=time.monotonic()).run()
    assert outcome.steps > 0
    assert math.isfinite(outcome.elbo)
    assert load_run(tmp_path / "run").config == outcome.config


def test_a_warm_up_is_in_force_while_training(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    peaks = []
    for share in (0.0, 1.0):
        path = tmp_path / str(share)
        Trainer(make_config(steps=30, beta=20.0, sigma=0.1, beta_warmup=share), images, path).run()
        peaks.append(max(record["kl"] for record in metrics(path, "training")))
    assert peaks[1] > 1.3 * peaks[0]


def test_validations_and_checkpoints_are_evenly_spaced(make_config: MakeConfig) -> None:
    schedule = Schedule(make_config(steps=1000, checkpoint_every=300))
    assert [step for step in range(1, 1001) if schedule.validates_after(step)] == list(range(100, 1001, 100))
    assert [step for step in range(1, 1001) if schedule.checkpoints_after(step)] == [300, 600, 900]
    assert not any(Schedule(make_config(steps=40)).validates_after(step) for step in range(1, 41))
