"""Fixtures of the edge's tests."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vaekit as package
from vaekit.maths.surprise import measure


@pytest.fixture
def with_residuals(bundles: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a bundle and adds statistics of residuals, measured on its own samples."""

    def copied(name: str = "tiny", **changes: Any) -> Path:
        vae = package.load(bundles / name, provider="cpu")
        images = vae.sample(60, seed=1)
        statistics = dataclasses.asdict(measure(images, vae.reconstruct(images), 1.0)) | changes
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{key: value for key, value in statistics.items() if value is not None})
        copy = Path(shutil.copytree(bundles / name, tmp_path / name))
        (copy / "residuals.npz").write_bytes(buffer.getvalue())
        document = json.loads((copy / "manifest.json").read_text())
        document["residuals"] = {"file": "residuals.npz", "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        (copy / "manifest.json").write_text(json.dumps(document))
        return copy

    return copied
