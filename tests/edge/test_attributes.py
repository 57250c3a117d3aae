"""Labels in the latent space: `traverse --toward`, `encode --attributes` and the same from Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vaekit as package
from vaekit.bundle.manifest import Manifest
from vaekit.bundle.reading import read_bundle
from vaekit.errors import BundleError, UsageError
from vaekit.maths.attributes import Attributes, Factor
from vaekit.types import Array
from vaekit.vae import VAE

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

LABELS = Path(__file__).parents[1] / "bundles" / "labels"
NAMES = ("circle", "square", "triangle")
FACTORS = ("hue", "size", "square rotation", "triangle rotation", "x", "y", "background hue")
quick = settings(max_examples=50, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def vae() -> VAE:
    return package.load(LABELS, provider="cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, pixels in zip(paths, np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def two(dimensions: int = 2) -> Attributes:
    """Return labels whose means are 0 and 4 along the first axis, and a read-out that divides them at 2."""
    means, weights = np.zeros((2, 2, dimensions))
    means[1, 0] = 4
    weights[1, 0] = 3
    return Attributes(("low", "high"), np.array([10, 30]), means, weights, np.array([0.0, -6.0]), 0.9)


@quick
@given(at=st.floats(-5, 9), other=st.floats(-100, 100))
def test_scores_are_a_softmax_and_ignore_other_dimensions(at: float, other: float) -> None:
    found = two().scores(np.array([[at, other]], np.float32))
    assert found.dtype == np.float32
    assert found.sum() == pytest.approx(1)
    assert found[0, 1] == pytest.approx(1 / (1 + np.exp(6 - 3 * np.float32(at))), abs=1e-5)


def test_scores_of_far_latents_do_not_overflow() -> None:
    np.testing.assert_array_equal(two().scores(np.array([[3e38, 0], [-3e38, 0]], np.float32)), [[0, 1], [1, 0]])


def test_maps_are_averaged_over_their_positions() -> None:
    maps = np.random.default_rng(0).standard_normal((3, 2, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(two().scores(maps), two().scores(maps.mean(axis=(2, 3))), rtol=1e-5)


def test_the_way_to_a_label_puts_its_mean_in_place_of_the_own_one() -> None:
    low, high, between = (np.array([x, 1.0], np.float32) for x in (-2, 7, 2))
    shares = np.array([0, 0.5, 1, -2])
    cases: list[tuple[str, Array, float]] = [
        ("high", low, 4),
        ("low", high, -4),
        ("high", high, 0),
        ("high", between, 2),
    ]
    for name, latent, whole in cases:
        expected = np.array([[share * whole, 0] for share in shares])
        np.testing.assert_allclose(two().moves(name, latent, shares), expected, atol=1e-3)


def test_a_factor_without_a_period_moves_along_a_line() -> None:
    size = Factor("size", 0.0, 10.0, 2.0, np.array([[1.0, 0.5]]), np.array([[1.0, 0.0]]), np.array([0.5]), 1.0)
    np.testing.assert_allclose(size.values(np.array([[0, 9], [2, 9]], np.float32)), [11, 15])
    moves = size.moves(np.array([5, 5], np.float32), np.array([0, 1, -2]))
    np.testing.assert_allclose(moves, np.array([[0, 0], [1, 0.5], [-2, -1]]))


@quick
@given(turn=st.floats(0, 0.999), period=st.sampled_from([1.0, 0.25, 1 / 3]))
def test_a_factor_with_a_period_moves_on_a_circle(turn: float, period: float) -> None:
    hue = Factor("hue", period, 0.0, 1.0, 3 * np.eye(2), np.eye(2) / 3, np.zeros(2), 1.0)
    mu = 3 * np.array([np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)], np.float32)
    assert np.cos(2 * np.pi * (hue.values(mu[None])[0] / period - turn)) == pytest.approx(1, abs=1e-6)
    assert 0 <= hue.values(mu[None])[0] < period
    moved = mu + hue.moves(mu, np.array([0, 0.25, 1]))
    np.testing.assert_allclose(moved[[0, 2]], [mu, mu], atol=1e-5)  # a whole period leads back
    np.testing.assert_allclose(moved[1], [-mu[1], mu[0]], atol=1e-5)


def test_an_image_moves_along_that_way(vae: VAE) -> None:
    attributes = vae.attributes
    assert attributes.labels == NAMES
    assert attributes.names == (*NAMES, *FACTORS)
    assert attributes.images.sum() == 64
    image = np.random.default_rng(1).random((1, 8, 8), np.float32)
    moved = vae.toward(image, ["square", "circle"], steps=5, strength=2)
    assert moved.shape == (2, 5, 1, 8, 8)
    mu = vae.encode(image[None])[0][0]
    for row, label in zip(moved, ("square", "circle"), strict=True):
        expected = vae.decode((mu + attributes.moves(label, mu, np.array([0, 0.5, 1, 1.5, 2]))).astype(np.float32))
        np.testing.assert_allclose(row, expected, atol=1e-5)
    np.testing.assert_allclose(vae.toward(mu, ["square"], steps=5, strength=2), moved[:1], atol=1e-5)


def test_what_cannot_be_moved_is_refused(vae: VAE, tiny_bundle: Path) -> None:
    latent = np.zeros(2, np.float32)
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"labels": ["squares"]}, "The nearest is 'square'"),
        ({"labels": []}, "one label or more"),
        ({"labels": ["circle"], "steps": 1}, "2 steps or more"),
        ({"labels": ["circle"], "strength": 0.0}, "a strength that is not 0"),
        ({"labels": ["circle"], "strength": float("nan")}, "a strength that is not 0"),
    ]
    for arguments, words in refusals:
        with pytest.raises(UsageError, match=words):
            vae.toward(latent, **arguments)
    with pytest.raises(UsageError, match="has no attributes"):
        package.load(tiny_bundle, provider="cpu").toward(np.zeros((3, 8, 8), np.float32), ["circle"])


def test_the_command_moves_a_picture(vaekit: Run, pictures: list[Path], tmp_path: Path) -> None:
    done = vaekit("traverse", pictures[0], "--toward", "all", "--steps", "3", "-m", LABELS, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["labels"] == [*NAMES, *FACTORS]
    assert document["dimensions"] == []
    told = vaekit("traverse", pictures[0], "--toward", "square", "--strength", "-1", "-m", LABELS, "-o", "one.png")
    assert told.returncode == 0, told.stderr
    assert "moved towards square in 9 steps, up to -1" in told.stderr
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "traverse.png") as three:
        assert one.width > 2 * three.width
        assert one.height < three.height


def test_the_command_refuses_in_one_line(
    vaekit: Run, assert_fails: Fails, pictures: list[Path], tiny_bundle: Path
) -> None:
    toward = ("traverse", "--toward", "square", "-m", LABELS)
    assert_fails(vaekit(*toward), 2, "--toward moves an IMAGE")
    assert_fails(vaekit(*toward, pictures[0], "-n", "2"), 2, "--toward moves an IMAGE")
    assert_fails(vaekit("traverse", pictures[0], "--toward", "sqare", "-m", LABELS), 2, "The nearest is 'square'")
    assert_fails(vaekit(*toward, pictures[0], "--strength", "0"), 2, "a strength that is not 0")
    assert_fails(vaekit("traverse", "--strength", "2", "-m", LABELS), 2, "--strength belongs to --toward")
    assert_fails(vaekit("traverse", pictures[0], "--toward", "all", "-m", tiny_bundle), 2, "has no attributes")
    assert_fails(vaekit("encode", pictures[0], "--attributes", "-m", tiny_bundle), 2, "has no attributes")
    assert_fails(vaekit("encode", pictures[0], "--attributes", "-m", LABELS, "-o", "a.npy"), 2, "can only hold mu")


def test_encode_writes_the_scores_beside_mu(vaekit: Run, pictures: list[Path], tmp_path: Path, vae: VAE) -> None:
    done = vaekit("encode", *pictures, "--attributes", "-m", LABELS, "-o", "a.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["attribute_names"].tolist() == [*NAMES, *FACTORS]
        assert arrays["attributes"].dtype == np.float32
        np.testing.assert_allclose(arrays["attributes"], vae.attributes.read(arrays["mu"]), rtol=1e-6)
    first = (tmp_path / "a.npz").read_bytes()
    assert vaekit("encode", *pictures, "--attributes", "-m", LABELS, "-o", "a.npz").returncode == 0
    assert (tmp_path / "a.npz").read_bytes() == first
    assert vaekit("decode", "a.npz", "-m", LABELS, "-o", "d.png").returncode == 0


def test_parquet_has_a_column_for_each_label(vaekit: Run, pictures: list[Path], tmp_path: Path, vae: VAE) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert vaekit("encode", *pictures, "--attributes", "-m", LABELS, "-o", "a.parquet").returncode == 0
    table = parquet.read_table(tmp_path / "a.parquet")
    names = [f"attribute_{name}" for name in (*NAMES, *FACTORS)]
    assert table.column_names == ["path", "mu", "logvar", *names]
    mu = np.array(table["mu"].to_pylist(), np.float32)
    found = np.stack([table[name].to_numpy() for name in names], 1)
    np.testing.assert_allclose(found, vae.attributes.read(mu), rtol=1e-6)


def test_info_tells_how_often_the_read_out_is_right(vaekit: Run, vae: VAE) -> None:
    told = vaekit("info", "-m", LABELS)
    assert (
        f"circle, square, triangle; the likeliest is right for {vae.attributes.accuracy:.0%} of images" in told.stdout
    )
    assert f"hue (R^2 {vae.attributes.factors[0].r2:.2f}), size" in told.stdout


def test_the_manifest_survives_a_round_trip() -> None:
    manifest = read_bundle(LABELS).manifest
    again = Manifest.from_json(manifest.to_json()).attributes
    assert manifest.attributes is not None
    assert again is not None
    assert again.names == manifest.attributes.names
    for part in ("images", "means", "weights", "biases", "accuracy"):
        np.testing.assert_array_equal(getattr(again, part), getattr(manifest.attributes, part))
    for factor, other in zip(again.factors, manifest.attributes.factors, strict=True):
        assert (factor.name, factor.period, factor.mean, factor.std) == (
            other.name,
            other.period,
            other.mean,
            other.std,
        )
        for part in ("directions", "weights", "biases", "r2"):
            np.testing.assert_array_equal(getattr(factor, part), getattr(other, part))


def change_label(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["attributes"]["labels"][0].update({key: value})


def change_factor(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["attributes"]["factors"][0].update({key: value})


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another name": (change_label("name", "square"), "all of them different"),
    "an empty name": (change_label("name", ""), "all of them different"),
    "a number as name": (change_label("name", 3), "not a list of labels with names"),
    "a mean of another length": (change_label("mean", [0.0]), "damaged"),
    "a bias that is not finite": (change_label("bias", float("nan")), "NaN or infinity"),
    "no images": (change_label("images", 0), "labels without images"),
    "no accuracy": (lambda d: d["attributes"].pop("accuracy"), "'accuracy' is missing"),
    "no labels": (lambda d: d["attributes"].update(labels=[]), "not vectors of one length"),
    "a factor of a label's name": (change_factor("name", "square"), "all of them different"),
    "a factor of other dimensions": (change_factor("directions", [[0.0], [0.0]]), "inconsistent shapes"),
    "a factor of one number too few": (change_factor("biases", [0.0]), "of another shape"),
    "a factor that is not finite": (change_factor("mean", float("inf")), "not finite"),
    "a factor of flat directions": (change_factor("directions", [0.0, 1.0]), "not vectors of one length"),
    "a text": (lambda d: d.update(attributes="many"), "damaged"),
    "other dimensions": (
        lambda d: (
            [row.update(mean=[0.0] * 3, weights=[0.0] * 3) for row in d["attributes"]["labels"]],
            d["attributes"].pop("factors"),
        ),
        "attributes do not have 2 dimensions",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_attributes_are_refused(tmp_path: Path, what: str) -> None:
    bundle = Path(shutil.copytree(LABELS, tmp_path / "labels"))
    change, word = DAMAGED[what]
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=word):
        read_bundle(bundle)
