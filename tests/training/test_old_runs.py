"""Runs from older versions of vaekit: they load, and an interrupted one resumes."""

from __future__ import annotations

import shutil
from pathlib import Path

from vaekit.images.dataset import open_source
from vaekit.training.checkpoint import load_checkpoint
from vaekit.training.config import load_config
from vaekit.training.run import is_finished, load_holdout, load_run
from vaekit.training.trainer import Trainer

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
