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
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import vaekit as package
from vaekit import vae as vae_module
from vaekit.bundle.reading import read_bundle
from vaekit.errors import BundleError, UsageError
from vaekit.images.shapes import draw_shapes
from vaekit.maths.elbo import kl_standard_normal, log_likelihood, posterior_sample
from vaekit.maths.tiles import Tiling
from vaekit.output.grid import save_picture
from vaekit.vae import VAE

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)

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


@quick
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


@pytest.mark.parametrize("size", [(3, 12), (16, 0), (-4, 4)])
def test_smaller_sizes_are_refused(vae: VAE, size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="heights and widths must be 4 or more for this model"):
        vae.at(*size)


@quick
@given(height=st.integers(4, 30), width=st.integers(4, 30))
def test_sizes_between_are_padded_by_reflection_and_cropped(vae: VAE, height: int, width: int) -> None:
    other, images = (
        vae.at(height, width),
        draw_shapes(2, (32, 32)).images[:, :, :height, :width].astype(np.float32) / np.float32(255),
    )
    padded = np.pad(images, ((0, 0), (0, 0), (0, -height % 4), (0, -width % 4)), "reflect")
    whole = vae.at(*padded.shape[2:])
    assert other.latent_shape == whole.latent_shape == (2, -(-height // 4), -(-width // 4))
    mu, logvar = other.posterior(images)
    assert np.array_equal(mu, whole.encode(padded)[0])
    assert np.array_equal(other.decode(mu), whole.decode(mu)[:, :, :height, :width])
    terms = other.elbo_terms(images)  # of the image's own pixels
    decoded = other.decode(posterior_sample(mu, logvar))
    assert terms.reconstruction == pytest.approx(log_likelihood(images, decoded, other.manifest.likelihood))


def with_context(folder: Path, pixels: int | None) -> Path:
    """Copy the bundle with a manifest that states how far its networks look."""
    copy = Path(shutil.copytree(FREE, folder / f"context-{pixels}"))
    document = json.loads((copy / "manifest.json").read_text())
    document["image"] |= {} if pixels is None else {"context": pixels}
    (copy / "manifest.json").write_text(json.dumps(document))
    return copy


@pytest.mark.parametrize(("size", "tile"), [((64, 40), 16), ((31, 57), 12), ((9, 100), 24), ((16, 16), 32)])
def test_tiles_give_the_result_of_the_whole(tmp_path: Path, size: tuple[int, int], tile: int) -> None:
    bundle = with_context(tmp_path, 4)
    whole, tiled = (package.load(bundle, provider="cpu", tile=side).at(*size) for side in (0, tile))
    images = np.random.default_rng(0).random((2, 3, *size), np.float32)
    seen: list[tuple[int, int]] = []
    tiled.follow = lambda done, total: seen.append((done, total))
    for found, wanted in zip(tiled.posterior(images), whole.posterior(images), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert seen == [(done, seen[-1][1]) for done in range(1, seen[-1][1] + 1)]
    np.testing.assert_allclose(tiled.reconstruct(images), whole.reconstruct(images), atol=1e-5)
    np.testing.assert_allclose(tiled.score(images), whole.score(images), rtol=1e-6)


def test_large_images_are_computed_in_tiles_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_module, "LARGE_IMAGE", 64 * 64)
    monkeypatch.setattr(vae_module, "DEFAULT_TILE", 32)
    local = package.load(with_context(tmp_path, 4), provider="cpu")
    assert local.at(64, 64).tiling() is None
    assert local.at(64, 68).tiling() == Tiling(8, 1)
    unknown = package.load(with_context(tmp_path, None), provider="cpu")
    assert unknown.at(256, 256).tiling() is None
    assert package.load(FREE, provider="cpu", tile=32).at(8, 8).tiling() == Tiling(8, 0, 2)  # blended: not known


@pytest.mark.parametrize(("context", "tile"), [(4, 8), (4, 15), (None, 3), (64, 128)])
def test_tiles_that_are_too_small_are_refused(tmp_path: Path, context: int | None, tile: int) -> None:
    small = package.load(with_context(tmp_path, context), provider="cpu", tile=tile).at(64, 64)
    with pytest.raises(UsageError, match=f"a tile must be a multiple of 4 pixels, from .*, not {tile}"):
        small.encode(np.zeros((1, 3, 64, 64), np.float32))


def test_a_model_of_one_size_has_no_tiles() -> None:
    fixed = package.load(MAP, provider="cpu", tile=8)
    with pytest.raises(UsageError, match="takes images of one size only"):
        fixed.sample(1)
    assert package.load(MAP, provider="cpu", tile=0).sample(1).shape == (1, 3, 16, 12)
    with pytest.raises(UsageError, match="the tile must be 0 or more pixels, not -1"):
        package.load(MAP, tile=-1)


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
    assert_fails(vaekit("sample", "-m", FREE, "--size", "24x3"), 2, "must be 4 or more")
    assert_fails(vaekit("sample", "-m", FREE, "--size", "own"), 2, "--size own is the size of pictures")
    assert_fails(vaekit("sample", "-m", FREE, "--tile", "6"), 2, "a tile must be a multiple of 4 pixels")
    assert_fails(vaekit("sample", "-m", MAP, "--size", "24x8"), 2, "exported with free sizes")
    assert_fails(vaekit("verify", "-m", FREE, "--size", "24x8"), 2, "verify accepts no --size")
    flagged = vaekit("score", "images.npy", "--flag-above", "p99", "-m", FREE, "--size", "24x8")
    assert_fails(flagged, 2, "no held-out scores of this kind and size", "nats")
    told = vaekit("info", "-m", FREE)
    assert "--size may be anything from 4x4 on" in told.stdout


def test_pictures_keep_their_own_size(vaekit: Run, assert_fails: Fails, tmp_path: Path) -> None:
    for name, size in (("a", (21, 30)), ("b", (21, 30)), ("c", (40, 9))):
        save_picture(np.moveaxis(draw_shapes(1, size).images[0], 0, 2), tmp_path / f"{name}.png")
    free = ("-m", FREE)
    for command in (
        ("reconstruct", "a.png", "-o", "one.png"),  # a single picture keeps its size unasked
        ("reconstruct", "a.png", "b.png", "--size", "own", "-o", "two.png", "--tile", "16"),
        ("encode", "a.png", "--size", "own", "-o", "z.npz"),
        ("decode", "z.npz", "--size", "21x30", "-o", "decoded"),
        ("interpolate", "a.png", "b.png", "--size", "own", "-o", "strip.png"),
        ("traverse", "a.png", "--size", "own", "--at", "5,7", "-o", "at.png"),
    ):
        done = vaekit(*command, *free)
        assert done.returncode == 0, done.stderr
    told = vaekit("encode", "a.png", "--size", "own", "-o", "again.npz", *free).stderr.splitlines()[-1]
    assert "--size 21x30" in told  # the next command has no picture whose size it could take
    assert "--flag-above" not in vaekit("score", "a.png", "--size", "own", *free).stderr  # no percentiles at this size
    with np.load(tmp_path / "z.npz") as arrays:
        assert arrays["mu"].shape == (1, 2, 6, 8)
    with Image.open(min((tmp_path / "decoded").iterdir())) as picture:
        assert picture.size == (30, 21)
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width - one.width >= 30
        assert one.height >= 2 * 21
    assert_fails(vaekit("encode", "a.png", "c.png", "--size", "own", *free), 2, "pictures of one size", "21x30, 40x9")
    assert_fails(vaekit("interpolate", "a.png", "c.png", "--size", "own", *free), 2, "pictures of one size")
    assert_fails(vaekit("traverse", "--at", "4", *free), 2, "--at 4 is not a position: give ROW,COL")
    assert_fails(vaekit("traverse", "--at", "4,0", *free), 2, "0,0 to 3,2 (row, column)")


@pytest.mark.parametrize("context", [None, 4])
def test_a_large_picture_keeps_its_size_only_where_tiles_bound_the_memory(
    vaekit: Run, tmp_path: Path, context: int | None
) -> None:
    Image.new("RGB", (1100, 1000), "teal").save(tmp_path / "large.png")
    done = vaekit("reconstruct", "large.png", "-m", with_context(tmp_path, context), "-o", "pair.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "pair.png") as picture:
        assert (picture.width > 1100) == (context is not None)


def test_a_traversal_may_shift_one_position(vae: VAE) -> None:
    base = vae.sample_latents(1)[0]
    rows = vae.traverse(base, dimensions=[1], steps=3, at=(2, 1))
    latents = np.repeat(base[None], 3, axis=0)
    latents[:, 1, 2, 1] += vae.traversed_values(1, 3, 2.5).astype(np.float32)
    assert np.array_equal(rows[0], vae.decode(latents))
    with pytest.raises(UsageError, match="vectors, which have no positions"):
        package.load(FREE.parent / "tiny", provider="cpu").traverse(at=(0, 0))
