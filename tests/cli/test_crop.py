"""`vaekit train --crop`: training on random crops of larger images."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vaekit
from vaekit.images.picture import read_image
from vaekit.maths.surprise import measure
from vaekit.training.config import load_config
from vaekit.training.run import load_holdout, load_run, load_whole_pictures

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SHORT = ("--crop", "--size", "8x12", "--latent", "2", "--batch-size", "16", "-q")


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """Write twelve grey pictures of 40 x 50 pixels and more, with stripes."""
    (tmp_path / "textures").mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        height, width = 40 + number, 50 + 2 * number
        stripes = 127 + 100 * np.sin(np.arange(width) * random.uniform(0.3, 1) + np.arange(height)[:, None] * 0.2)
        Image.fromarray(stripes.astype(np.uint8)).save(tmp_path / "textures" / f"{number:02d}.png")
    return tmp_path / "textures"


def test_a_run_on_crops_resumes_and_repeats(in_process: Run, textures: Path, tmp_path: Path) -> None:
    assert in_process("train", textures.name, *SHORT, "--steps", "6", "-o", "whole").returncode == 0
    config = load_config(tmp_path / "whole")
    assert (config.crop, config.image_shape) == (True, (1, 8, 12))
    assert in_process("train", "--config", "whole/config.json", "-q", "-o", "again").returncode == 0
    whole, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again"))
    assert whole == again
    figures = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert figures[-1]["split"] == "validation"


def test_held_out_crops_are_of_pictures_that_are_not_trained_on(
    in_process: Run, textures: Path, tmp_path: Path
) -> None:
    done = in_process("train", textures.name, *SHORT[:-1], "--steps", "2", "--val", "0.25", "-o", "run")
    assert done.returncode == 0, done.stderr
    held_out = load_holdout(load_run(tmp_path / "run"))
    pictures = [read_image(path, 1, None)[0] for path in sorted(textures.iterdir())]

    def owner(crop: np.ndarray) -> int:
        for number, picture in enumerate(pictures):
            windows = np.lib.stride_tricks.sliding_window_view(picture, crop.shape)
            if (windows == crop).all(axis=(2, 3)).any():
                return number
        raise AssertionError("this crop is in no picture")

    owners = {owner(crop[0]) for crop in held_out}
    assert len(owners) == 3
    per_picture = [(picture.shape[0] // 8) * (picture.shape[1] // 12) for picture in pictures]
    assert len(held_out) == sum(per_picture[number] for number in owners)
    assert f"{sum(per_picture) - len(held_out):,} to train on, {len(held_out)} held out" in done.stderr


def test_a_bundle_knows_what_is_usual_in_whole_pictures(in_process: Run, textures: Path, tmp_path: Path) -> None:
    crops = ("--crop", "--size", "16", "--latent", "2", "--downscale", "8", "--batch-size", "16", "-q")
    done = in_process("train", textures.name, *crops, "--steps", "30", "--val", "0.5", "-o", "run")
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "run")
    kept = load_whole_pictures(run)
    held_out = load_holdout(run)
    assert len(kept) == 6
    for picture in kept:
        assert any(np.array_equal(picture, read_image(path, 1, None)) for path in textures.iterdir())
        assert any(np.array_equal(picture[:, :16, :16], crop) for crop in held_out)
    assert in_process("export", "run", "-o", "b", "-q").returncode == 0
    vae = vaekit.load(tmp_path / "b", provider="cpu")
    statistics, kind = vae.residual_statistics()
    assert kind == "contrast"
    pairs = []
    for picture in kept:
        image = picture[None].astype(np.float32) / np.float32(255)
        pairs.append((image, vae.at(*image.shape[2:]).reconstruct(image)))
    crops_of = held_out.astype(np.float32) / np.float32(255)
    expected = measure(crops_of, vae.reconstruct(crops_of), statistics.smooth, pairs)
    assert expected.contrast is not None
    assert statistics.contrast is not None
    for found, wanted in zip(statistics.contrast, expected.contrast, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-5)
    at_own_size = vae.manifest.scores_at_own_size
    assert set(at_own_size) == {"map", "peak", "mahalanobis"}
    assert {found.images for found in at_own_size.values()} == {6}
    done = in_process("score", textures.name, "-m", "b", "--size", "own", "--score-by", "peak", "--flag-above", "p99")
    assert done.returncode == 0, done.stderr
    assert "above p99" in done.stderr
    done = in_process("score", textures.name, "-m", "b", "--size", "own", "--flag-above", "p99")
    assert "no held-out scores of this kind and size" in done.stderr


def test_evaluate_crops_as_training_did(in_process: Run, textures: Path, tmp_path: Path) -> None:
    assert in_process("train", textures.name, *SHORT, "--steps", "2", "-o", "run").returncode == 0
    done = in_process("evaluate", "run", textures.name, "--json")
    assert done.returncode == 0, done.stderr
    sizes = [(40 + number, 50 + 2 * number) for number in range(12)]
    assert json.loads(done.stdout)["images"] == sum((height // 8) * (width // 12) for height, width in sizes)


def test_a_picture_smaller_than_the_crop_is_one_line(in_process: Run, textures: Path) -> None:
    done = in_process("train", textures.name, "--crop", "--size", "45", "-q", "-o", "run")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "5 of 12 images are smaller than the crop of 45x45, such as textures/00.png of 40x50" in done.stderr
