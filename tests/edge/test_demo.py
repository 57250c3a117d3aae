"""The bundle that comes with vaekit."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import vaekit as package

Run = Callable[..., "subprocess.CompletedProcess[str]"]

DEMO = Path(package.__file__).parent / "demo"


def test_the_demo_is_small() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 400_000


def test_a_first_look(vaekit: Run, tmp_path: Path) -> None:
    result = vaekit("sample", "-m", "demo", "-n", "64", "-o", "grid.png")
    assert result.returncode == 0, result.stderr
    assert "grid.png: 64 images from the mixture prior of demo" in result.stderr
    with Image.open(tmp_path / "grid.png") as grid:
        assert np.asarray(grid).std() > 40
    assert vaekit("verify", "-m", "demo").returncode == 0


def test_the_demo_knows_classes() -> None:
    demo = package.load("demo", provider="cpu")
    assert "sandal" in demo.labels
    boots, bags = (demo.sample(20, label=label).mean(axis=0) for label in ("ankle boot", "bag"))
    assert np.abs(boots - bags).mean() > 0.1


def test_a_folder_of_that_name_comes_first(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "demo")
    assert "1 x 8 x 8" in vaekit("info", "-m", "demo").stdout
    shutil.rmtree(tmp_path / "demo")
    (tmp_path / "demo").mkdir()
    assert "has no manifest.json" in vaekit("info", "-m", "demo").stderr
