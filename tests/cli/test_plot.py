"""`vaekit plot` of models with one and two latent dimensions."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("d", [1, 2])
def test_few_dimensions_are_drawn_as_they_are_and_two_beside_their_decoded_plane(
    in_process: Run, shapes: Path, tmp_path: Path, d: int
) -> None:
    trained = in_process("train", shapes.name, "--latent", str(d), "--steps", "3", "--batch-size", "32", "-q")
    assert trained.returncode == 0, trained.stderr
    assert in_process("export", "-q").returncode == 0
    drawn = in_process("plot", shapes.name, "--json")
    assert drawn.returncode == 0, drawn.stderr
    assert json.loads(drawn.stdout)["axes"] == ["z0", "z1"][:d]
    with Image.open(tmp_path / "latent.png") as picture:
        width, height = picture.size
        pixels = np.asarray(picture.convert("RGB"))
    assert (width > 2 * height) is (d == 2)
    if d == 2:  # the grey images of an untrained decoder fill the plane on the right
        right = pixels[height // 4 : 3 * height // 4, 2 * width // 3 : 9 * width // 10]
        assert (right.min(axis=2) < 250).mean() > 0.9
