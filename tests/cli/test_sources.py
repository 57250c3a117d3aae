"""What `vaekit train` says of the pictures that it found."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def save(path: Path, *shape: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).save(path)


def test_leftovers_and_mixtures_are_said_with_counts(in_process: Run, tmp_path: Path) -> None:
    for number in range(12):
        save(tmp_path / f"pets/cat/{number}_mask.png", 16, 16)
        save(tmp_path / f"pets/cat/{number}_photo.png", 32, 24, 3)
        save(tmp_path / f"pets/cat/.ipynb_checkpoints/{number}.png", 8, 8)
    save(tmp_path / "pets/__MACOSX/dog/1.png", 8, 8)
    (tmp_path / "pets/cat/._1.png").write_bytes(b"no picture")
    trained = in_process("train", "pets", "--latent", "2", "--steps", "2", "--batch-size", "8")
    assert trained.returncode == 0, trained.stderr
    assert "pets: 24 images, 64 x 64 RGB, 1 class, in memory" in trained.stderr
    lines = trained.stderr.splitlines()
    for said in (
        "skipped 1 picture and 2 folders (names with a leading dot, or __MACOSX)",
        "12 grey images are read as RGB, because others are in colour",
        "images of 16 x 16 (12) and 32 x 24 (12) are resized to cover 64 x 64 and centre-cropped",
    ):
        assert lines.count(said) == 1, trained.stderr


def test_tiffs_that_lie_on_their_side_are_trained_on_upright(in_process: Run, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24), np.uint8)
    for number in range(12):
        (tmp_path / "scans").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"scans/{number}.tif", exif=exif)
    trained = in_process("train", "scans", "--latent", "2", "--steps", "2", "--batch-size", "8")
    assert trained.returncode == 0, trained.stderr
    assert "scans: 12 images, 24 x 16 grey, in memory" in trained.stderr
    assert "resized" not in trained.stderr
