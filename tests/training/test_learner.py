"""One step: lower precision, and batches in parts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vaekit.errors import UsageError, VaekitError
from vaekit.images.dataset import Images
from vaekit.images.shapes import draw_shapes
from vaekit.training.checkpoint import load_checkpoint
from vaekit.training.config import Config
from vaekit.training.learner import Learner
from vaekit.training.networks import VAENetwork
from vaekit.training.processes import ProcessGroup
from vaekit.training.run import MODEL, load_run
from vaekit.training.trainer import Progress, Trainer, memory_named

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


def gradients(config: Config) -> list[Tensor]:
    """Return the gradients of one step, without batch normalisation."""
    torch.manual_seed(0)
    network = VAENetwork.of(config)
    for module in list(network.modules()):
        for name, inner in module.named_children():
            if isinstance(inner, nn.BatchNorm2d | nn.BatchNorm1d):
                setattr(module, name, nn.Identity())
    learner = Learner(config, network, torch.device("cpu"), ProcessGroup())
    pixels = draw_shapes(config.batch_size, config.image_shape[1:]).images
    eps = np.random.default_rng(0).standard_normal((learner.objective.samples, len(pixels), config.latent_numbers))
    draws, _ = learner.step(0, pixels, eps.astype(np.float32), 1e-3, 0.7)
    assert draws.z.shape == eps.shape
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"likelihood": "laplace", "downscale": 4},
        {"objective": "iwae", "iwae_samples": 3},
        {"free_bits": 0.2, "mc_samples": 2},
        {"likelihood": "bernoulli"},
        {"sigma": 0.1},
    ],
    ids=str,
)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(settings: dict[str, Any]) -> None:
    config = Config("x", 3, 16, 12, latent=3, batch_size=12, **settings)
    whole, parts = (gradients(dataclasses.replace(config, accumulate=count)) for count in (1, 3))
    assert len(whole) == len(parts) > 10
    scale = max(float(gradient.abs().max()) for gradient in whole)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("parts", [5, 20])
def test_parts_that_do_not_divide_the_batch_are_refused(
    tmp_path: Path, images: Images, make_config: MakeConfig, parts: int
) -> None:
    config = make_config(batch_size=24, accumulate=parts)
    with pytest.raises(UsageError, match=f"--accumulate {parts} must divide the batch of 24 images into parts of 2"):
        Trainer(config, images, tmp_path / "run")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_running_out_of_memory_names_what_to_change(
    tmp_path: Path,
    images: Images,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    accumulate: int,
) -> None:
    def step(*arguments: object) -> None:
        torch.empty(1 << 50)

    monkeypatch.setattr(Learner, "step", step)
    config = make_config(batch_size=24, accumulate=accumulate)
    named = r"lower --batch-size, split the batch" if accumulate == 1 else r"lower --batch-size, or lower --size"
    with pytest.raises(VaekitError, match=f"^out of memory at a batch of 24 images of .*: {named}"):
        Trainer(config, images, tmp_path / "run").run()


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="something else"), memory_named(Config("x", 3, 16, 16)):
        raise RuntimeError("something else")
    with pytest.raises(VaekitError, match="out of memory"), memory_named(Config("x", 3, 16, 16)):
        raise MemoryError


def test_fp16_is_refused_where_its_loss_cannot_be_scaled(
    tmp_path: Path, images: Images, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **options: self)
    with pytest.raises(UsageError, match="use bf16"):
        Trainer(make_config(precision="fp16"), images, tmp_path / "run", device="mps")
