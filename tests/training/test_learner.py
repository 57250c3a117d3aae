"""Training at lower precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vaekit.errors import UsageError
from vaekit.images.dataset import Images
from vaekit.training.checkpoint import load_checkpoint
from vaekit.training.config import Config
from vaekit.training.run import MODEL, load_run
from vaekit.training.trainer import Progress, Trainer

MakeConfig = Callable[..., Config]


class Killed(BaseException):
    """Simulates a kill."""


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
