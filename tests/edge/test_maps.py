"""Bundles with latent maps (c, h, w) or deterministic encoders: every command works, or says why not."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vaekit as package
from vaekit.bundle.manifest import Manifest, Scaling, dump_json
from vaekit.bundle.reading import read_bundle
from vaekit.errors import BundleError, SourceError, UsageError
from vaekit.images.shapes import draw_shapes
from vaekit.maths import latents, noise
from vaekit.maths.elbo import kl_standard_normal, log_likelihood
from vaekit.output.latents import Spill, open_latents
from vaekit.types import Array
from vaekit.vae import VAE

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]
Change = Callable[[dict[str, Any]], object]

BUNDLES = Path(__file__).parents[1] / "bundles"
MAP, DETERMINISTIC = BUNDLES / "map", BUNDLES / "deterministic"
LATENT, IMAGE = (2, 4, 3), (3, 16, 12)

both = pytest.mark.parametrize("bundle", [MAP, DETERMINISTIC], ids=lambda path: path.name)


def pictures(count: int, start: int = 64) -> Array:
    """Draw shapes that the bundles were not exported with, float32 (count, 3, 16, 12)."""
    return draw_shapes(count, IMAGE[1:], start=start).images.astype(np.float32) / np.float32(255)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write 70 pictures to images.npy, in the folder where commands run."""
    path = tmp_path / "images.npy"
    np.save(path, draw_shapes(70, IMAGE[1:], start=64).images)
    return path


def load(bundle: Path) -> VAE:
    return package.load(bundle, provider="cpu")


def edited(bundle: Path, folder: Path, change: Change) -> Path:
    """Return a copy of a bundle with a changed manifest."""
    copy = Path(shutil.copytree(bundle, folder / "edited"))
    document = json.loads((copy / "manifest.json").read_text())
    change(document)
    (copy / "manifest.json").write_text(json.dumps(document))
    return copy


# The manifest


def test_bundles_of_older_formats_are_read(tiny_bundle: Path) -> None:
    versions = {bundle: read_bundle(bundle).document["format_version"] for bundle in (tiny_bundle, MAP, DETERMINISTIC)}
    assert versions == {tiny_bundle: 1, MAP: 2, DETERMINISTIC: 2}


@both
def test_a_manifest_survives_the_way_to_json_and_back(bundle: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    newest = document | {"format_version": 3, "requires": []}
    assert json.loads(dump_json(Manifest.from_json(document).to_json())) == newest


def test_the_scaling_of_the_latents_is_kept() -> None:
    assert read_bundle(MAP).manifest.latent.scaling == Scaling(0.5, 0.125)
    assert read_bundle(DETERMINISTIC).manifest.latent.scaling is None


def test_a_scaling_may_have_numbers_for_each_channel() -> None:
    manifest = read_bundle(MAP).manifest
    channels = manifest.latent.shape[0]
    scaling = Scaling(0.5, 0.0, (0.25,) * channels, (2.0,) * channels)
    kept = dataclasses.replace(manifest, latent=dataclasses.replace(manifest.latent, scaling=scaling))
    document = json.loads(dump_json(kept.to_json()))
    assert document["latent"]["scaling"]["std"] == [2.0] * channels
    assert Manifest.from_json(document).latent.scaling == scaling
    assert set(json.loads(dump_json(manifest.to_json()))["latent"]["scaling"]) == {"factor", "shift"}
    for wrong in ([1.0] * (channels + 1), [float("nan")] * channels, ["a"] * channels, 1.0):
        document["latent"]["scaling"]["mean"] = wrong
        with pytest.raises((ValueError, TypeError)):
            Manifest.from_json(document)


def test_statistics_are_of_channels() -> None:
    vae = load(MAP)
    seen = pictures(64, start=0)  # the images that the bundle was exported with
    mu, logvar = vae.posterior(seen)
    latent = vae.manifest.latent
    assert latent.mean == pytest.approx(mu.mean(axis=(0, 2, 3), dtype=np.float64), abs=1e-4)
    assert latent.std == pytest.approx(mu.std(axis=(0, 2, 3), dtype=np.float64), rel=1e-4)
    assert latent.kl == pytest.approx(kl_standard_normal(mu, logvar).sum(axis=(2, 3)).mean(axis=0), rel=1e-4)
    assert load(DETERMINISTIC).manifest.latent.kl == ()


DAMAGES: dict[str, Change] = {
    "a flat latent": lambda document: document["latent"].update(shape=[4, 3]),
    "an empty latent": lambda document: document["latent"].update(shape=[2, 0, 3]),
    "statistics of one channel": lambda document: document["latent"].update(mean=[0.0]),
    "another posterior": lambda document: document.update(posterior="deterministic"),
    "an unknown likelihood": lambda document: document["likelihood"].update(name="cauchy"),
    "a gaussian without sigma": lambda document: document["likelihood"].update(sigma=None),
    "scores without a likelihood": lambda document: document.update(likelihood={"name": "none", "sigma": None}),
    "a scaling without its shift": lambda document: document["latent"]["scaling"].pop("shift"),
    "a scaling without end": lambda document: document["latent"]["scaling"].update(factor=math.inf),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_manifest_is_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_bundle(edited(MAP, tmp_path, DAMAGES[what]))


# The library


@both
def test_latents_are_maps(bundle: Path) -> None:
    vae = load(bundle)
    assert (vae.latent_shape, vae.image_shape) == (LATENT, IMAGE)
    assert vae.priors == ("normal",)
    mu, logvar = vae.encode(pictures(70))
    assert mu.shape == (70, *LATENT)
    assert mu.dtype == np.float32
    assert (logvar is None) == (bundle == DETERMINISTIC)
    decoded = vae.decode(mu)
    assert decoded.shape == (70, *IMAGE)
    assert 0 <= decoded.min() < decoded.max() <= 1
    assert np.array_equal(vae.reconstruct(pictures(70)), decoded)


def test_the_posterior_of_a_deterministic_encoder_is_refused() -> None:
    mu, logvar = load(MAP).posterior(pictures(2))
    assert mu.shape == logvar.shape == (2, *LATENT)
    with pytest.raises(UsageError, match="deterministic encoder"):
        load(DETERMINISTIC).posterior(pictures(2))


def test_samples_are_the_noise_in_the_order_of_the_map() -> None:
    vae = load(MAP)
    drawn = vae.sample_latents(5, seed=3, temperature=0.5)
    flat = 0.5 * noise.standard_normal(3, 0, 5, math.prod(LATENT))
    assert np.array_equal(drawn, flat.astype(np.float32).reshape(5, *LATENT))
    assert np.array_equal(vae.sample_latents(2, seed=3, temperature=0.5, start=3), drawn[3:])
    assert vae.sample(2).shape == (2, *IMAGE)


@pytest.mark.parametrize("mode", ["linear", "slerp"])
def test_the_way_between_maps_is_that_between_their_vectors(mode: str) -> None:
    a, b = load(MAP).sample_latents(2, seed=1)
    way = latents.interpolate(a, b, 5, mode)
    assert way.shape == (5, *LATENT)
    assert np.array_equal(way.reshape(5, -1), latents.interpolate(a.ravel(), b.ravel(), 5, mode))
    assert np.array_equal(load(MAP).interpolate(a, b, 5, mode=mode), load(MAP).decode(way))


@both
def test_a_traversal_moves_a_whole_channel_and_nothing_else(bundle: Path) -> None:
    vae = load(bundle)
    base = vae.sample_latents(1)[0]
    moved = vae.traverse(base, dimensions=(1,), steps=3, span=2.0)
    assert moved.shape == (1, 3, *IMAGE)
    reach = 2.0 * max(vae.manifest.latent.std[1], 1.0)
    expected = np.repeat(base[None], 3, axis=0)
    expected[:, 1] += np.array([-reach, 0, reach], np.float32)[:, None, None]
    assert moved[0] == pytest.approx(vae.decode(expected), abs=1e-6)
    assert vae.traverse(steps=2).shape == (2, 2, *IMAGE)
    with pytest.raises(UsageError, match="0 to 1"):
        vae.traverse(dimensions=(2,))


def test_the_most_active_channels_come_first() -> None:
    assert list(np.diff([load(MAP).manifest.latent.kl[j] for j in load(MAP).dimensions])) <= [0]
    assert list(np.diff([load(DETERMINISTIC).manifest.latent.std[j] for j in load(DETERMINISTIC).dimensions])) <= [0]


def test_a_score_is_the_elbo_of_the_map() -> None:
    vae, images = load(MAP), pictures(70)
    mu, logvar = vae.posterior(images)
    eps = noise.standard_normal(4, 0, 1, math.prod(LATENT)).reshape(LATENT)
    decoded = vae.decode((mu + np.exp(logvar / 2) * eps).astype(np.float32))
    terms = vae.elbo_terms(images, seed=4)
    assert terms.kl == pytest.approx(kl_standard_normal(mu, logvar).reshape(70, -1).sum(axis=1), rel=1e-6)
    assert terms.reconstruction == pytest.approx(log_likelihood(images, decoded, vae.manifest.likelihood), rel=1e-5)
    assert vae.score(images, seed=4) == pytest.approx(terms.kl - terms.reconstruction)
    assert vae.score(images[:1]) == pytest.approx(vae.score(images)[:1], abs=1e-3)


def test_the_scores_in_the_manifest_are_of_the_images_it_was_exported_with() -> None:
    vae = load(MAP)
    assert vae.manifest.scores is not None
    assert vae.manifest.scores.images == 64
    assert vae.manifest.scores.quantiles["p50"] == pytest.approx(np.median(vae.score(pictures(64, start=0))), rel=1e-5)


def test_a_model_without_an_elbo_refuses_to_score(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="deterministic"):
        load(DETERMINISTIC).score(pictures(1))
    silent = edited(MAP, tmp_path, lambda d: d.update(likelihood={"name": "none", "sigma": None}, scores=None))
    with pytest.raises(UsageError, match="no likelihood"):
        load(silent).score(pictures(1))


@both
def test_golden_vectors_are_replayed(bundle: Path) -> None:
    found = load(bundle).verify()
    assert found.passed
    codes = ["mu"] if bundle == DETERMINISTIC else ["mu", "logvar"]
    assert [check.output for check in found.outputs] == [*codes, "image"]


@both
@pytest.mark.parametrize("shape", [(5, 24), (5, 2, 3, 4), (2, 4, 3)])
def test_latents_of_another_shape_are_refused(bundle: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"\(N, 2, 4, 3\)"):
        load(bundle).decode(np.zeros(shape, np.float32))


# Commands


@both
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_maps_are_encoded_into_files_and_decoded_from_them(
    vaekit: Run, source: Path, tmp_path: Path, bundle: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    encoded = vaekit("encode", source.name, "-m", bundle, "-o", f"z{suffix}")
    assert encoded.returncode == 0, encoded.stderr
    assert "maps of 2 x 4 x 3" in encoded.stderr
    mu, logvar = load(bundle).encode(pictures(70))
    rows = open_latents(tmp_path / f"z{suffix}", LATENT)
    assert np.concatenate(list(rows.chunks(32))) == pytest.approx(mu, abs=1e-6)
    if suffix == ".npz":
        with np.load(tmp_path / "z.npz", allow_pickle=False) as arrays:
            assert sorted(arrays.files) == ["mu", "paths"] if logvar is None else ["logvar", "mu", "paths"]
            assert logvar is None or arrays["logvar"] == pytest.approx(logvar, abs=1e-5)
    decoded = vaekit("decode", f"z{suffix}", "-m", bundle, "-o", "out")
    assert decoded.returncode == 0, decoded.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 70


def test_a_parquet_file_states_the_shape_of_its_maps(vaekit: Run, source: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert vaekit("encode", source.name, "-m", DETERMINISTIC, "-o", "z.parquet").returncode == 0
    schema = parquet.read_schema(tmp_path / "z.parquet")
    assert schema.names == ["path", "mu"]
    assert schema.metadata[b"latent_shape"] == b"2x4x3"
    assert str(schema.field("mu").type) == "fixed_size_list<element: float>[24]"
    with pytest.raises(SourceError, match=r"2x4x3.*\(N, 4, 2, 3\)"):
        open_latents(tmp_path / "z.parquet", (4, 2, 3))
    with pytest.raises(SourceError, match=r"\(N, 4\)"):
        open_latents(tmp_path / "z.parquet", (4,))


@pytest.mark.parametrize("name", ["z.npy", "z.npz"])
def test_flat_latents_are_refused_with_the_shape_that_is_wanted(
    vaekit: Run, assert_fails: Fails, tmp_path: Path, name: str
) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 24), np.float32)) if name == "z.npy" else np.savez(buffer, z=np.zeros((3, 24), "f4"))
    (tmp_path / name).write_bytes(buffer.getvalue())
    assert_fails(vaekit("decode", name, "-m", MAP), 1, "(3, 24)", "(N, 2, 4, 3)")


def test_latents_that_are_not_finite_are_named_by_row(vaekit: Run, assert_fails: Fails, tmp_path: Path) -> None:
    z = np.zeros((3, *LATENT), np.float32)
    z[2, 1, 3, 2] = np.nan
    np.save(tmp_path / "z.npy", z)
    assert_fails(vaekit("decode", "z.npy", "-m", MAP), 1, "row 2")


def test_an_interrupted_encode_of_maps_resumes(tmp_path: Path) -> None:
    mu = load(DETERMINISTIC).encode(pictures(6))[0]
    paths = tuple(f"{k}.png".encode() for k in range(6))

    def spill(*, resume: bool) -> Spill:
        return Spill(tmp_path / "z.npz", LATENT, "same", resume=resume, overwrite=False, arrays=("mu",))

    with spill(resume=False) as work:
        work.append(mu[:4], None, paths[:4], 1)
    with spill(resume=True) as work:
        assert (work.rows, work.failures) == (4, 1)
        work.append(mu[4:], None, paths[4:], 0)
        work.finish()
    with np.load(tmp_path / "z.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["mu"], mu)
        assert sorted(arrays.files) == ["mu", "paths"]


PICTURES = {
    "sample": ("sample", "-n", "6", "-o", "out.png"),
    "reconstruct": ("reconstruct", "images.npy", "--limit", "5", "-o", "out.png"),
    "interpolate": ("interpolate", "--from-seed", "0", "--to-seed", "1", "--mode", "slerp", "-o", "out.png"),
    "traverse": ("traverse", "--steps", "3", "-o", "out.png"),
}


@both
@pytest.mark.parametrize("command", PICTURES)
def test_commands_draw_their_pictures(vaekit: Run, source: Path, tmp_path: Path, bundle: Path, command: str) -> None:
    drawn = vaekit(*PICTURES[command], "-m", bundle)
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(tmp_path / "out.png") as picture:
        assert min(picture.size) > 2 * IMAGE[2]
    following = drawn.stderr.strip().splitlines()[-1]
    assert following.startswith("next: vaekit ")
    assert bundle == MAP or "vaekit score" not in following


@both
def test_plot_draws_the_means_of_channels(vaekit: Run, source: Path, tmp_path: Path, bundle: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = vaekit("plot", source.name, "-o", "out.png", "-m", bundle, "--json")
    assert drawn.returncode == 0, drawn.stderr
    assert json.loads(drawn.stdout)["axes"] == ["channel means of mu, 0", "channel means of mu, 1"]
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_score_scores_maps_and_refuses_what_is_deterministic(
    vaekit: Run, assert_fails: Fails, source: Path, tmp_path: Path
) -> None:
    scored = vaekit("score", source.name, "-m", MAP, "--json", "--flag-above", "p99")
    assert scored.returncode == 0, scored.stderr
    values = [json.loads(line)["score"] for line in scored.stdout.splitlines()]
    assert values == pytest.approx(load(MAP).score(pictures(70)), rel=1e-5)
    refused = vaekit("score", source.name, "-m", DETERMINISTIC, "-o", "scores.csv")
    assert_fails(refused, 2, "deterministic", "logvar")
    assert {path.name for path in tmp_path.iterdir()} == {"images.npy"}


@both
def test_verify_bench_and_info_know_the_bundle(vaekit: Run, bundle: Path) -> None:
    verified = vaekit("verify", "-m", bundle, "--json", "--provider", "cpu")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["passed"]
    timed = vaekit("bench", "-m", bundle, "--batch", "2", "--threads", "1", "--seconds", "0.01", "--json")
    assert timed.returncode == 0, timed.stderr
    assert json.loads(timed.stdout)["best"]["encode"]["images_per_second"] > 0
    described = vaekit("info", "-m", bundle)
    assert described.returncode == 0, described.stderr
    words = ["format 2", "maps of 2 x 4 x 3", f"came from {bundle.name}-bundle, checked on images of shapes"]
    if bundle == MAP:
        words += ["diagonal posterior", "(z - 0.125) * 0.5", "gaussian, sigma 0.2", "of 64 held-out images"]
    else:
        words += ["deterministic posterior", "likelihood none", "scores none: its encoder is deterministic"]
    told = " ".join(described.stdout.split())
    for word in words:
        assert word in told
