"""`VAE.score_map` and `vaekit score --maps`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vaekit as package
from vaekit.errors import BundleError, UsageError
from vaekit.maths.surprise import surprise
from vaekit.output.heat import HOTTEST, heat, overlay
from vaekit.types import Array

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]
WithResiduals = Callable[..., Path]

BUNDLES = Path(__file__).parents[1] / "bundles"


def test_the_map_is_that_of_the_reconstruction_at_mu(with_residuals: WithResiduals) -> None:
    vae = package.load(with_residuals(), provider="cpu")
    images = np.concatenate((vae.sample(5, seed=9), 1 - vae.sample(2, seed=9)))
    statistics, kind = vae.residual_statistics()
    assert kind == "pixel"
    found = vae.score_map(images)
    assert found.shape == (7, 8, 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, surprise(images, vae.reconstruct(images), statistics, "pixel"), rtol=1e-4)
    assert found[5:].max() > 3 > np.median(found[:5])
    assert not np.allclose(found, vae.score_map(images, by="gradient"))


def test_statistics_without_brightness_give_no_map_by_brightness(with_residuals: WithResiduals) -> None:
    vae = package.load(with_residuals(levels=None, brightness_mean=None, brightness_std=None), provider="cpu")
    with pytest.raises(UsageError, match="no statistics of residuals by brightness: export it again"):
        vae.score_map(vae.sample(1), by="brightness")


NO_CONTRAST = dict.fromkeys(("contrast_levels", "distances", "contrast_mean", "contrast_std"))


def test_models_of_free_sizes_without_statistics_of_contrast_compare_by_gradient(with_residuals: WithResiduals) -> None:
    vae = package.load(with_residuals("free", **NO_CONTRAST), provider="cpu")
    assert vae.residual_statistics()[1] == "gradient"
    with pytest.raises(UsageError, match="no statistics of residuals by contrast: export it again"):
        vae.score_map(vae.sample(1), by="contrast")


def test_models_of_free_sizes_compare_by_contrast(with_residuals: WithResiduals) -> None:
    vae = package.load(with_residuals("free"), provider="cpu")
    assert vae.residual_statistics()[1] == "contrast"
    assert vae.at(24, 9).score_map(np.zeros((1, 3, 24, 9), np.float32)).shape == (1, 24, 9)
    assert vae.score_map(vae.sample(1), by="pixel").shape == (1, 16, 12)
    with pytest.raises(UsageError, match="needs images of the bundle's own size"):
        vae.at(24, 9).score_map(np.zeros((1, 3, 24, 9), np.float32), by="pixel")


def test_what_has_no_map_is_refused(with_residuals: WithResiduals) -> None:
    with pytest.raises(UsageError, match=r"has no statistics of residuals.*export it again"):
        package.load(BUNDLES / "tiny", provider="cpu").score_map(np.zeros((1, 1, 8, 8), np.float32))
    vae = package.load(with_residuals(), provider="cpu")
    with pytest.raises(UsageError, match="no map by 'row': choose one of pixel, gradient"):
        vae.score_map(np.zeros((1, 1, 8, 8), np.float32), by="row")


@pytest.mark.parametrize(
    "changes",
    [{"edges": None}, {"edges": np.zeros(3)}, {"pixel_mean": np.full((8, 8), np.nan)}, {"distances": np.ones(3)}],
)
def test_damaged_statistics_are_refused(with_residuals: WithResiduals, changes: dict[str, Any]) -> None:
    vae = package.load(with_residuals(**changes), provider="cpu")
    with pytest.raises(BundleError, match=r"residuals\.npz cannot be read"):
        vae.score_map(np.zeros((1, 1, 8, 8), np.float32))


def test_a_changed_file_is_refused(with_residuals: WithResiduals) -> None:
    copy = with_residuals()
    (copy / "residuals.npz").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"residuals\.npz was changed after export"):
        package.load(copy)


def test_the_command_writes_numbers_and_pictures(
    with_residuals: WithResiduals, vaekit: Run, assert_fails: Fails, tmp_path: Path
) -> None:
    bundle = with_residuals()
    images: Array = package.load(bundle, provider="cpu").sample(3, seed=4)
    np.save(tmp_path / "images.npy", np.rint(images[:, 0] * 255).astype(np.uint8))
    done = vaekit("score", "images.npy", "-m", bundle, "--maps", "maps", "-o", "scores.csv")
    assert done.returncode == 0, done.stderr
    assert "in standard deviations above the usual error" in done.stderr
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert len(names) == 6
    assert all(name.startswith(f"{number:06}-") for number in range(3) for name in names[2 * number : 2 * number + 2])
    maps = np.stack([np.load(path) for path in sorted((tmp_path / "maps").glob("*.npy"))])
    quantised = np.rint(images * 255).astype(np.float32) / np.float32(255)
    np.testing.assert_allclose(maps, package.load(bundle, provider="cpu").score_map(quantised), rtol=1e-3, atol=1e-3)
    with Image.open(tmp_path / "maps" / names[1]) as picture:
        assert picture.width > 3 * 64
    assert_fails(vaekit("score", "images.npy", "-m", bundle, "--maps", "maps"), 1, "the folder is not empty")
    assert_fails(vaekit("score", "images.npy", "-m", bundle, "--map-by", "pixel"), 2, "--map-by only applies to --maps")
    assert_fails(vaekit("score", "images.npy", "-m", BUNDLES / "tiny", "--maps", "other"), 2, "export it again")
    assert not (tmp_path / "other").exists()


def test_colours_go_from_black_to_light() -> None:
    found = heat(np.linspace(0, 1, 50, dtype=np.float32))
    light = found.astype(int).sum(axis=1)
    assert light[0] == 0
    assert (np.diff(light) >= 0).all()
    assert light[-1] > 600


def test_the_picture_is_grey_where_nothing_surprises_and_hot_where_it_does() -> None:
    image = np.full((3, 64, 64), 0.5, np.float32)
    calm, hot = (overlay(image, image, np.full((64, 64), value, np.float32)) for value in (-1.0, HOTTEST))
    assert calm.shape == hot.shape
    middle, third = calm.shape[0] // 2, slice(140, 190)
    assert {tuple(pixel) for pixel in calm[middle, third].tolist()} == {(128, 128, 128)}
    assert {tuple(pixel) for pixel in hot[middle, third].tolist()} == {(252, 255, 165)}
