"""Tiny images and settings, with which training takes a second."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# PyTorch reads this when it loads. Waiting threads must not spin, because tests share the processors with other work.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import pytest

from vaekit.errors import RunError
from vaekit.images.dataset import Images, open_source
from vaekit.images.shapes import draw_shapes
from vaekit.training.config import CONFIG, Config
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
    """Return 240 coloured shapes of 12 x 9 pixels."""
    path = tmp_path_factory.mktemp("source") / "shapes.npy"
    np.save(path, draw_shapes(240, (12, 9)).images)
    return open_source(str(path))


@pytest.fixture
def make_config() -> MakeConfig:
    """Return ``make_config(steps=3)``, which makes settings for ``images`` with changes."""

    def make(**changes: Any) -> Config:
        return dataclasses.replace(_BASE, **changes)

    return make


@pytest.fixture(scope="session")
def trained(images: Images, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Return a run of sixty steps, and its outcome."""
    path = tmp_path_factory.mktemp("trained") / "run"
    return path, Trainer(dataclasses.replace(_BASE, steps=60), images, path).run()


@pytest.fixture
def change_config() -> Callable[..., None]:
    """``change_config(run, latent=3)`` changes values in a run's config.json."""

    def change(run: Path, **changes: Any) -> None:
        document = json.loads((run / CONFIG).read_text())
        (run / CONFIG).write_text(json.dumps(document | changes))

    return change


@pytest.fixture
def refused() -> Callable[..., None]:
    """``refused(load, *words)``: loading raises RunError with one line that contains each of the words."""

    def check(load: Callable[[], object], *words: str) -> None:
        with pytest.raises(RunError) as caught:
            load()
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message, message

    return check
