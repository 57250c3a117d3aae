"""Experiment trackers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vaekit.errors import MissingExtraError, VaekitError
from vaekit.images.dataset import Images
from vaekit.training.checkpoint import load_checkpoint
from vaekit.training.config import Config, load_config
from vaekit.training.run import METRICS
from vaekit.training.tracking import check_tracker, tracking
from vaekit.training.trainer import Progress, Trainer

MakeConfig = Callable[..., Config]


class Killed(BaseException):
    """Simulates a kill."""


def scalars(run: Path, tag: str) -> dict[int, float]:
    """Read TensorBoard's values by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return {event.step: event.value for event in accumulator.Scalars(tag)}


def test_tensorboard_reads_the_figures_back(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    Trainer(make_config(steps=60, track="tensorboard"), images, tmp_path / "run").run()
    training = scalars(tmp_path / "run", "training/elbo")
    assert list(training) == [10, 20, 30, 40, 50, 60]
    assert training[60] > training[10] + 50
    validation = scalars(tmp_path / "run", "validation/elbo")
    assert list(validation) == [50, 60]
    written = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert validation[60] == pytest.approx(written[-1]["elbo"], rel=1e-6)  # TensorBoard keeps float32


def test_a_resumed_training_has_each_step_once(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    def kill(progress: Progress) -> None:
        if progress.step == 50:
            raise Killed

    run = tmp_path / "run"
    config = make_config(steps=60, track="tensorboard", checkpoint_every=25)
    with pytest.raises(Killed):
        Trainer(config, images, run, report=kill).run()
    Trainer(load_config(run), images, run, checkpoint=load_checkpoint(run)).run()
    assert list(scalars(run, "training/elbo")) == [10, 20, 30, 40, 50, 60]


def test_a_tracker_that_is_not_installed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaekit.training.tracking.find_spec", lambda name: None)
    check_tracker(None)
    with pytest.raises(MissingExtraError, match=r"--track wandb needs accelerate and wandb: .*'vaekit\[wandb\]'"):
        check_tracker("wandb")


def test_a_tracker_that_does_not_start_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(tracker: object) -> None:
        raise RuntimeError("no server\ntoday")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.start", start)
    started = tracking("tensorboard", tmp_path, {}, 0)
    with pytest.raises(VaekitError, match=r"^--track tensorboard does not start: no server today$"), started:
        pass


def test_a_tracker_that_fails_warns_once_and_training_goes_on(
    tmp_path: Path,
    images: Images,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = []

    def log(tracker: object, figures: object, step: int) -> None:
        written = (tmp_path / "run" / METRICS).read_text().splitlines()
        assert step in [json.loads(line)["step"] for line in written]  # by the time that the tracker fails
        steps.append(step)
        raise OSError("the server\nis gone")

    def finish(tracker: object) -> None:
        raise OSError("still gone")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.log", log)
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.finish", finish)
    outcome = Trainer(make_config(steps=20, track="tensorboard"), images, tmp_path / "run").run()
    assert outcome.steps == 20
    assert steps == [10, 20, 20]
    warnings = [record.getMessage() for record in caplog.records if record.name == "vaekit.training"]
    assert warnings == ["--track tensorboard failed, training continues: the server is gone"]


def test_a_tracker_that_hangs_does_not_hold_up_the_training(
    tmp_path: Path,
    images: Images,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    back = threading.Event()
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.log", lambda *arguments, **rest: back.wait())
    monkeypatch.setattr("vaekit.training.tracking._LAST_SECONDS", 0.5)
    monkeypatch.setattr("vaekit.training.tracking._MOST_WAITING", 4)
    try:
        outcome = Trainer(make_config(steps=60, track="tensorboard"), images, tmp_path / "run").run()
    finally:
        back.set()
    assert outcome.steps == 60
    warnings = [record.getMessage() for record in caplog.records if record.name == "vaekit.training"]
    assert warnings == ["--track tensorboard failed, training continues: it has not taken the last 4 figures"]


def test_the_end_waits_for_a_tracker_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    back = threading.Event()
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.log", lambda *arguments, **rest: back.wait())
    monkeypatch.setattr("vaekit.training.tracking._LAST_SECONDS", 0.5)
    with tracking("tensorboard", tmp_path, {}, 0) as track:
        track({"training/elbo": 1.0}, 1)
    back.set()
    assert "within 0.5 seconds" in caplog.text
