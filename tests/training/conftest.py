"""Tiny images and settings, so that a training takes a second."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read as PyTorch loads: threads that spin while they wait starve beside other work, and tests do not run alone.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import pytest

from vaekit.images.dataset import Images, open_source
from vaekit.images.shapes import draw_shapes
from vaekit.training.config import Config
from vaekit.training.trainer import Outcome, Trainer

MakeConfig = Callable[..., Config]

_BASE = Config(
    source="shapes.npy",
    channels=3,
    height=12,
    width=9,
    latent=2,
    likelihood="gaussian",
    sigma=None,
    beta=1.0,
    steps=10,
    batch_size=32,
    lr=4e-3,
    seed=0,
)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """240 coloured shapes of 12 x 9 pixels."""
    path = tmp_path_factory.mktemp("source") / "shapes.npy"
    np.save(path, draw_shapes(240, (12, 9)).images)
    return open_source(str(path))


@pytest.fixture
def make_config() -> MakeConfig:
    """Settings that fit ``images``, with changes: ``make_config(steps=3)``."""

    def make(**changes: Any) -> Config:
        return dataclasses.replace(_BASE, **changes)

    return make


@pytest.fixture(scope="session")
def trained(images: Images, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A run of sixty steps, and what it came to."""
    path = tmp_path_factory.mktemp("trained") / "run"
    return path, Trainer(dataclasses.replace(_BASE, steps=60), images, path).run()
