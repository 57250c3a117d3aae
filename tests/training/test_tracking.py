"""Experiment trackers and lower precision."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vaekit.errors import MissingExtraError, UsageError, VaekitError
from vaekit.images.dataset import Images
from vaekit.training.checkpoint import load_checkpoint
from vaekit.training.run import METRICS, MODEL, Config, load_config, load_run
from vaekit.training.tracking import check_tracker, tracking
from vaekit.training.trainer import Progress, Trainer

MakeConfig = Callable[..., Config]


class Killed(BaseException):
    """Stands for a kill."""


def scalars(run: Path, tag: str) -> dict[int, float]:
    """What TensorBoard reads back: figures by step."""
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


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_a_float32_model(
    tmp_path: Path, images: Images, make_config: MakeConfig, precision: str
) -> None:
    seen = list[Progress]()
    full = Trainer(make_config(steps=60), images, tmp_path / "full").run()
    low = Trainer(make_config(steps=60, precision=precision), images, tmp_path / "low", report=seen.append).run()
    assert seen[-1].elbo > seen[0].elbo + 50
    assert low.elbo == pytest.approx(full.elbo, abs=40)
    assert all(p.dtype == torch.float32 for p in load_run(tmp_path / "low").network.parameters())
    assert (tmp_path / "low" / MODEL).read_bytes() != (tmp_path / "full" / MODEL).read_bytes()
    assert math.isfinite(low.elbo)


def test_the_scale_of_the_loss_goes_on_too(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    def kill(progress: Progress) -> None:
        if progress.step == 20:
            raise Killed

    config = make_config(steps=30, precision="fp16", checkpoint_every=15)
    Trainer(config, images, tmp_path / "unbroken").run()
    with pytest.raises(Killed):
        Trainer(config, images, tmp_path / "run", report=kill).run()
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert checkpoint.scaler["scale"] > 1
    Trainer(config, images, tmp_path / "run", checkpoint=checkpoint).run()
    assert (tmp_path / "run" / MODEL).read_bytes() == (tmp_path / "unbroken" / MODEL).read_bytes()


def test_fp16_is_refused_where_its_loss_cannot_be_scaled(
    tmp_path: Path, images: Images, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **options: self)
    with pytest.raises(UsageError, match="use bf16"):
        Trainer(make_config(precision="fp16"), images, tmp_path / "run", device="mps")
