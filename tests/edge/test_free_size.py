"""Bundles with free height and width: every command works at other sizes, or says which sizes are possible."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import vaekit as package
from vaekit.bundle.reading import read_bundle
from vaekit.errors import BundleError, UsageError
from vaekit.images.shapes import draw_shapes
from vaekit.maths.elbo import kl_standard_normal, log_likelihood
from vaekit.vae import VAE

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

FREE, MAP = (Path(__file__).parents[1] / "bundles" / name for name in ("free", "map"))
SIZE = (24, 8)


def pictures(count: int = 5) -> NDArray[np.float32]:
    return draw_shapes(count, SIZE, start=64).images.astype(np.float32) / np.float32(255)


@pytest.fixture(scope="module")
def vae() -> VAE:
    """Return the model at a size that is not its default."""
    return package.load(FREE, provider="cpu").at(*SIZE)


def test_another_size_gives_what_the_graphs_give(vae: VAE) -> None:
    assert (vae.image_shape, vae.latent_shape) == ((3, 24, 8), (2, 6, 2))
    encoder, decoder = (onnxruntime.InferenceSession(FREE / f"{name}.onnx") for name in ("encoder", "decoder"))
    wanted_mu, wanted_logvar = encoder.run(["mu", "logvar"], {"image": pictures()})
    mu, logvar = vae.posterior(pictures())
    np.testing.assert_allclose(mu, wanted_mu, atol=1e-5)
    np.testing.assert_allclose(logvar, wanted_logvar, atol=1e-5)
    np.testing.assert_allclose(vae.decode(mu), decoder.run(["image"], {"z": mu})[0], atol=1e-5)


def test_scores_are_of_that_size(vae: VAE) -> None:
    terms = vae.elbo_terms(pictures())
    assert np.allclose(terms.kl, kl_standard_normal(*vae.posterior(pictures())).sum(axis=(1, 2, 3)))
    assert terms.reconstruction.shape == (5,)
    best = log_likelihood(pictures(), pictures(), vae.manifest.likelihood)  # the likelihood of an exact reconstruction
    assert (terms.reconstruction < best).all()
    assert vae.manifest.scores is None


@given(height=st.integers(1, 6), width=st.integers(1, 6), count=st.integers(1, 4))
def test_samples_of_any_size_do_not_depend_on_their_number(vae: VAE, height: int, width: int, count: int) -> None:
    other = vae.at(4 * height, 4 * width)
    latents = other.sample_latents(count, seed=3)
    assert latents.shape == (count, 2, height, width)
    assert np.array_equal(latents, other.sample_latents(5, seed=3)[:count])
    images = other.decode(latents)
    assert images.shape == (count, 3, 4 * height, 4 * width)
    assert 0 <= images.min() <= images.max() <= 1


def test_the_golden_vectors_stay_of_the_usual_size(vae: VAE) -> None:
    assert vae.verify().passed
    usual = vae.at(16, 12)
    assert usual.image_shape == (3, 16, 12)
    assert usual.manifest.scores is not None


def test_ways_and_sliders_have_that_size(vae: VAE) -> None:
    assert vae.interpolate(pictures()[0], pictures()[1], steps=3).shape == (3, 3, 24, 8)
    assert vae.traverse(pictures()[0], steps=4).shape == (2, 4, 3, 24, 8)


@pytest.mark.parametrize("size", [(10, 12), (16, 0), (-4, 4), (16, 13)])
def test_sizes_between_are_refused(vae: VAE, size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="multiples of 4"):
        vae.at(*size)


def test_a_bundle_of_one_size_takes_no_other() -> None:
    fixed = package.load(MAP, provider="cpu")
    assert fixed.at(16, 12).image_shape == (3, 16, 12)
    with pytest.raises(UsageError, match="images are 16 x 12; only a bundle that was exported with free sizes"):
        fixed.at(24, 8)


@pytest.mark.parametrize(
    ("step", "complaint"),
    [(5, "not a multiple of 5"), (0, "not a multiple of 0"), ("x", "damaged"), (None, "contradicts itself")],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, step: Any, complaint: str) -> None:
    copy = Path(shutil.copytree(FREE, tmp_path / "edited"))
    document = json.loads((copy / "manifest.json").read_text())
    document["image"]["multiple_of"] = step
    (copy / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=complaint):
        read_bundle(copy)


def test_commands_take_a_size(vaekit: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", draw_shapes(6, SIZE, start=64).images)
    size = ("-m", FREE, "--size", "24x8")
    sampled = vaekit("sample", "-n", "4", "-o", "samples", *size)
    assert sampled.returncode == 0, sampled.stderr
    assert "--size 24x8" in sampled.stderr.splitlines()[-1]  # the command to type next
    with Image.open(min((tmp_path / "samples").iterdir())) as picture:
        assert picture.size == (8, 24)
    encoded = vaekit("encode", "images.npy", "-o", "z.npz", "--no-resize", *size)
    assert encoded.returncode == 0, encoded.stderr
    with np.load(tmp_path / "z.npz") as arrays:
        assert arrays["mu"].shape == (6, 2, 6, 2)
    for command in (("decode", "z.npz"), ("reconstruct", "images.npy"), ("traverse",), ("score", "images.npy")):
        done = vaekit(*command, *size)
        assert done.returncode == 0, done.stderr


def test_commands_refuse_what_has_no_such_size(vaekit: Run, assert_fails: Fails, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", draw_shapes(6, SIZE).images)
    assert_fails(vaekit("sample", "-m", FREE, "--size", "24x9"), 2, "multiples of 4")
    assert_fails(vaekit("sample", "-m", MAP, "--size", "24x8"), 2, "exported with free sizes")
    assert_fails(vaekit("verify", "-m", FREE, "--size", "24x8"), 2, "verify accepts no --size")
    flagged = vaekit("score", "images.npy", "--flag-above", "p99", "-m", FREE, "--size", "24x8")
    assert_fails(flagged, 2, "no held-out scores at this size", "nats")
    told = vaekit("info", "-m", FREE)
    assert "--size may be any multiples of 4" in told.stdout
