"""Runs from older versions of vaekit: they load, and an interrupted one resumes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from vaekit.images.dataset import open_source
from vaekit.training.checkpoint import load_checkpoint
from vaekit.training.config import load_config
from vaekit.training.run import is_finished, load_holdout, load_run
from vaekit.training.trainer import Progress, Trainer

RUNS = Path(__file__).parents[1] / "runs"


def test_a_finished_run_of_format_2_loads() -> None:
    run = load_run(RUNS / "finished")
    assert is_finished(run.path)
    assert run.config.image_shape == (3, 8, 8)
    assert run.summary["steps"] == 40
    assert load_holdout(run).shape == (6, 3, 8, 8)


def test_an_interrupted_run_of_format_2_resumes(tmp_path: Path) -> None:
    path = Path(shutil.copytree(RUNS / "interrupted", tmp_path / "run"))
    checkpoint = load_checkpoint(path)
    assert checkpoint is not None
    images = open_source(str(RUNS / "shapes.npy"))
    config = load_config(path)
    stop = iter([False, False, True])
    outcome = Trainer(config, images, path, checkpoint=checkpoint, stop=lambda: next(stop)).run()
    assert outcome.interrupted
    assert outcome.steps == checkpoint.step + 2


def test_an_old_checkpoint_under_a_time_limit_has_all_of_its_time(tmp_path: Path) -> None:
    path = Path(shutil.copytree(RUNS / "interrupted", tmp_path / "run"))
    checkpoint = load_checkpoint(path)
    assert checkpoint is not None
    assert checkpoint.seconds_left is None
    config = dataclasses.replace(load_config(path), max_minutes=1.0)
    images = open_source(str(RUNS / "shapes.npy"))
    now = [0.0]

    def report(progress: Progress) -> None:
        now[0] += 5.0

    outcome = Trainer(
        config, images, path, checkpoint=checkpoint, deadline=60.0, clock=lambda: now[0], report=report
    ).run()
    assert not outcome.interrupted
    assert outcome.steps > checkpoint.step + 50
    assert outcome.config.schedule is not None
    assert outcome.config.schedule[0] == (checkpoint.step, 0.0)
    assert load_config(path) == outcome.config
