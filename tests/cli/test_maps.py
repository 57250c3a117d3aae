"""`vaekit train --downscale`: from images to a bundle whose latents are maps, and its use."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vaekit
from vaekit.images.shapes import draw_shapes
from vaekit.output.grid import save_picture
from vaekit.training.config import load_config

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SHORT = ("--latent", "3", "--downscale", "4", "--preset", "tiny", "--batch-size", "24", "--steps", "12", "-q")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and export a small model with maps; the folder of images.npy, run and bundle."""
    from vaekit.images.dataset import open_source
    from vaekit.training.config import Config
    from vaekit.training.trainer import Trainer
    from vaekit_export.publish import export_run

    folder = tmp_path_factory.mktemp("maps")
    np.save(folder / "images.npy", draw_shapes(150, (16, 12)).images)
    config = Config(
        source=str(folder / "images.npy"),
        channels=3,
        height=16,
        width=12,
        latent=3,
        downscale=4,
        preset="tiny",
        batch_size=24,
        steps=12,
    )
    Trainer(config, open_source(config.source), folder / "run").run()
    export_run(folder / "run", folder / "bundle")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder, where commands run."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_run_with_maps_repeats_resumes_and_is_evaluated(in_process: Run, here: Path) -> None:
    for command in (
        ("train", "images.npy", *SHORT, "-o", "a"),
        ("train", "--config", "a/config.json", "-q", "-o", "b"),
    ):
        done = in_process(*command)
        assert done.returncode == 0, done.stderr
    assert (here / "a" / "model.safetensors").read_bytes() == (here / "b" / "model.safetensors").read_bytes()
    assert load_config(here / "a").latent_shape == (3, 4, 3)
    done = in_process("evaluate", "a", "--iwae-samples", "3", "--json")
    figures = json.loads(done.stdout)
    assert len(figures["kl_per_dimension"]) == 3
    assert sum(figures["kl_per_dimension"]) == pytest.approx(figures["kl"])
    assert figures["elbo"] <= -figures["nll"] + 1
    assert "channels" in in_process("evaluate", "a", "--iwae-samples", "1").stdout
    done = in_process("train", "images.npy", *SHORT[:-1], "-o", "told")
    assert "prior: N(0, I): no mixture is fitted to maps" in done.stderr


def test_a_large_photograph_is_reconstructed_in_tiles(in_process: Run, here: Path) -> None:
    save_picture(np.moveaxis(draw_shapes(1, (90, 151)).images[0], 0, 2), here / "photo.png")
    for tile, output in (("0", "whole.png"), ("64", "tiled.png")):
        done = in_process("reconstruct", "photo.png", "-m", "bundle", "--tile", tile, "-o", output)
        assert done.returncode == 0, done.stderr
    with Image.open(here / "whole.png") as whole, Image.open(here / "tiled.png") as tiled:
        assert whole.size[1] >= 2 * 90
        difference = np.asarray(whole).astype(int) - np.asarray(tiled)
    assert np.abs(difference).max() <= 1
    done = in_process("reconstruct", "photo.png", "-m", "bundle", "--tile", "16")
    assert done.returncode == 2
    assert "a tile must be a multiple of 4 pixels, from" in done.stderr


def test_a_laplace_likelihood_goes_from_training_to_the_edge(in_process: Run, here: Path) -> None:
    done = in_process("train", "images.npy", *SHORT[:-1], "--likelihood", "laplace", "-o", "laplace")
    assert done.returncode == 0, done.stderr
    assert "sqrt(2)/sigma x absolute error" in done.stderr
    assert in_process("export", "laplace", "-o", "robust").returncode == 0
    manifest = json.loads((here / "robust" / "manifest.json").read_text())
    assert manifest["likelihood"]["name"] == "laplace"
    assert manifest["requires"] == ["likelihood-laplace"]
    assert manifest["likelihood"]["sigma"] > 0
    assert abs(manifest["parity"]["delta_elbo"]) < 1e-2
    assert vaekit.load(here / "robust", provider="cpu").score(draw_shapes(3, (16, 12)).images / np.float32(255)).shape
    figures = json.loads(in_process("evaluate", "laplace", "--iwae-samples", "2", "--json").stdout)
    assert figures["elbo"] == pytest.approx(manifest["parity"]["elbo"], rel=0.1)


def test_the_bundle_takes_every_multiple_of_the_downscale(made: Path) -> None:
    vae = vaekit.load(made / "bundle", provider="cpu")
    assert vae.latent_shape == (3, 4, 3)
    assert vae.manifest.image.multiple_of == 4
    assert vae.priors == ("normal",)
    assert vae.verify().passed
    larger = vae.at(20, 32)
    images = np.random.default_rng(0).random((2, 3, 20, 32), np.float32)
    mu, _ = larger.encode(images)
    assert mu.shape == (2, 3, 5, 8)
    assert larger.decode(mu).shape == images.shape
    parity = vae.manifest.parity["results"]
    assert any("at 20x20" in result["inputs"] for result in parity)


@pytest.mark.parametrize(
    "command",
    [
        "encode images.npy -o latents.npz",
        "reconstruct images.npy -o pairs.png",
        "interpolate --from-seed 0 --to-seed 1 -o strip.png",
        "traverse -o traverse.png",
        "score images.npy --flag-above p99",
        "plot images.npy -o plot.png",
        "verify",
        "info",
        "compress bundle -o small --int8 --weights-only --seconds 0",
    ],
)
def test_every_command_takes_such_a_bundle(in_process: Run, here: Path, command: str) -> None:
    words = command.split()
    done = in_process(*words, *(() if words[0] == "compress" else ("-m", "bundle")))
    assert done.returncode == 0, done.stderr


def test_sample_says_what_its_prior_is_worth(in_process: Run, here: Path) -> None:
    done = in_process("sample", "-m", "bundle", "-n", "4", "-o", "grid.png")
    assert done.returncode == 0, done.stderr
    (said,) = (line for line in done.stderr.splitlines() if "maps" in line)
    assert "expect textures, not pictures" in said
    with Image.open(here / "grid.png") as picture:
        assert picture.width > 2 * 12


def test_percentiles_belong_to_the_usual_size(in_process: Run, here: Path) -> None:
    Image.new("RGB", (32, 20)).save(here / "wide.png")
    done = in_process("score", "wide.png", "-m", "bundle", "--size", "20x32", "--flag-above", "p99")
    assert done.returncode != 0
    assert "no percentiles" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--downscale", "8"), "--downscale 8 does not divide 16x12: resize the images with --size 16x16 or 16x8"),
        (("--downscale", "6"), "--downscale must be 2, 4, 8, 16 or 32, not 6"),
        (("--downscale", "32"), "--downscale 32 does not divide 16x12: resize the images with --size 32x32"),
    ],
)
def test_a_downscale_that_does_not_fit_is_one_line(
    in_process: Run, here: Path, options: tuple[str, ...], said: str
) -> None:
    done = in_process("train", "images.npy", "-q", *options, "-o", "no")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {said}"]


def test_weights_of_maps_begin_another_run(in_process: Run, here: Path) -> None:
    done = in_process("train", "images.npy", "--steps", "2", "-q", "--init", "run", "-o", "tuned")
    assert done.returncode == 0, done.stderr
    config = load_config(here / "tuned")
    assert (config.downscale, config.latent, config.preset) == (4, 3, "tiny")
