"""The manifest's numbers hold at the edge: scores, tolerances and golden vectors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import vaekit
from vaekit.bundle.reading import read_bundle
from vaekit.defaults import SMOOTH
from vaekit.errors import UsageError
from vaekit.maths.anomaly import MAP_SCORES, SCORES
from vaekit.maths.surprise import measure
from vaekit.training.run import Run, load_holdout
from vaekit.types import PROVIDER_CLASSES, Array
from vaekit_export.parity import Tolerances
from vaekit_export.publish import Export, export_run


def golden_of(bundle: Path) -> dict[str, Array]:
    with np.load(bundle / "golden.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_golden_vectors_replay_at_the_edge(published: Export) -> None:
    vae = vaekit.load(published.path)
    golden = golden_of(published.path)
    mu, logvar = vae.posterior(golden["image"])
    for actual, expected in (
        (mu, golden["mu"]),
        (logvar, golden["logvar"]),
        (vae.decode(golden["z"]), golden["decoded"]),
    ):
        assert len(expected) == 8
        np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-4)
    assert vae.sample(3).shape == (3, 3, 16, 13)


def test_scores_of_held_out_images_are_kept_by_percentile(published: Export, tiny_run: Run) -> None:
    statistics = read_bundle(published.path).manifest.scores
    assert statistics is not None
    images = load_holdout(tiny_run).astype(np.float32) / 255
    assert statistics.images == len(images) == 20
    percentiles = [float(name.removeprefix("p")) for name in statistics.quantiles]
    assert set(range(101)) | {99.5, 99.9} == set(percentiles)
    assert percentiles == sorted(percentiles)
    values = list(statistics.quantiles.values())
    assert values == sorted(values)
    scores = vaekit.load(published.path, provider="cpu").score(images, seed=statistics.seed)
    assert (values[0], values[-1]) == pytest.approx((scores.min(), scores.max()), abs=0.01)
    np.testing.assert_allclose(values, np.percentile(scores, percentiles), atol=0.01)
    assert statistics.quantiles["p50"] == pytest.approx(np.median(scores), abs=0.01)
    assert scores.std() > 1  # otherwise the checks above would be trivial


def test_the_seed_of_the_scores_is_the_one_that_score_takes(published: Export, tiny_run: Run) -> None:
    images = load_holdout(tiny_run).astype(np.float32) / 255
    vae = vaekit.load(published.path, provider="cpu")
    statistics = vae.manifest.scores
    assert statistics is not None
    assert np.array_equal(vae.score(images), vae.score(images, seed=statistics.seed))
    assert not np.allclose(vae.score(images), vae.score(images, seed=statistics.seed + 1), atol=0.01)


def test_a_flagged_part_of_the_held_out_images_is_what_the_percentile_says(published: Export, tiny_run: Run) -> None:
    vae = vaekit.load(published.path, provider="cpu")
    assert vae.manifest.scores is not None
    scores = vae.score(load_holdout(tiny_run).astype(np.float32) / 255)
    for percentile in (25, 50, 90):
        flagged = (scores > vae.manifest.scores.quantiles[f"p{percentile}"]).mean()
        assert flagged == pytest.approx(1 - percentile / 100, abs=0.06)


def test_devices_may_differ_by_more_the_less_they_are_like_this_one(published: Export) -> None:
    tolerances = read_bundle(published.path).manifest.tolerances
    assert set(tolerances) == {"fp32"}
    assert tuple(tolerances["fp32"]) == PROVIDER_CLASSES
    cpu, accelerator, reduced = tolerances["fp32"].values()
    gate = Tolerances()
    for part in ("atol", "rtol"):
        assert getattr(gate, part) <= getattr(cpu, part) <= getattr(accelerator, part) <= getattr(reduced, part)
        assert getattr(accelerator, part) < getattr(reduced, part) < 0.1
    assert read_bundle(published.path).document["verify"]["fp32"]["cpu"] == {"atol": cpu.atol, "rtol": cpu.rtol}


def test_a_published_bundle_verifies_itself(published: Export) -> None:
    found = vaekit.load(published.path, provider="cpu").verify()
    assert found.passed
    assert found.outputs[-1].differing_pixels == 0


def test_golden_images_are_held_out_ones(published: Export, tiny_run: Run) -> None:
    expected = load_holdout(tiny_run)[:8].astype(np.float32) / np.float32(255)
    assert np.array_equal(golden_of(published.path)["image"], expected)


def test_statistics_of_residuals_are_those_of_the_held_out_images(published: Export, tiny_run: Run) -> None:
    vae = vaekit.load(published.path, provider="cpu")
    images = load_holdout(tiny_run).astype(np.float32) / np.float32(255)
    statistics, _ = vae.residual_statistics()
    expected = measure(images, vae.reconstruct(images), SMOOTH)
    for name, value in dataclasses.asdict(expected).items():
        np.testing.assert_allclose(getattr(statistics, name), value, rtol=1e-3, atol=1e-6)
    assert abs(float(vae.score_map(images).mean())) < 0.05


def test_every_score_has_percentiles_of_the_held_out_images(published: Export, tiny_run: Run) -> None:
    vae = vaekit.load(published.path, provider="cpu")
    images = load_holdout(tiny_run).astype(np.float32) / np.float32(255)
    statistics = vae.manifest.scores_by
    assert set(statistics) == set(SCORES) - {"elbo"}
    for name in SCORES:
        found = vae.manifest.statistics_of(name)
        assert found is not None
        assert found.images == len(images)
        expected, spread = vae.score(images, by=name), float(np.std(vae.score(images, by=name)))
        middle = float(np.percentile(expected, 50))
        if name in MAP_SCORES:  # from the statistics of the other half of the images, which fit less well
            assert middle < found.percentile(50) < middle + 3 * spread
        else:
            assert found.percentile(50) == pytest.approx(middle, abs=1e-3 * spread)
    assert vae.manifest.at_size(*vae.image_shape[1:]).scores_by == statistics


def test_residuals_can_be_smoothed_further(tiny_run: Run, tmp_path: Path) -> None:
    done = export_run(tiny_run.path, tmp_path / "b", smooth=4.0)
    statistics, _ = vaekit.load(done.path, provider="cpu").residual_statistics()
    assert statistics.smooth == 4.0
    for smooth in (-1.0, 51.0, float("nan")):
        with pytest.raises(UsageError, match="residuals can be smoothed over 0 to 50 pixels"):
            export_run(tiny_run.path, tmp_path / "c", smooth=smooth)
