"""Bundles with a learned prior: `prior.onnx`, sampling from it, and checks of it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vaekit as package
from vaekit.bundle.manifest import Manifest
from vaekit.bundle.reading import read_bundle
from vaekit.errors import BundleError, UsageError
from vaekit.maths.flow import integrate
from vaekit.maths.prior import draw_normal

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

FLOW = Path(__file__).parents[1] / "bundles" / "flow"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FLOW, tmp_path / "flow"))


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document))
    return bundle


def test_the_flow_carries_noise_to_the_ring_that_it_has_learnt() -> None:
    vae = package.load(FLOW, provider="cpu")
    assert vae.priors == ("flow", "normal")
    radius = np.hypot(*vae.sample_latents(2000, seed=3).T)
    assert radius.mean() == pytest.approx(2.0, abs=0.03)
    assert radius.std() < 0.14
    normal = vae.sample_latents(2000, seed=3, prior="normal")
    assert np.array_equal(normal, draw_normal(2, 2000, seed=3))
    angles = np.arctan2(*vae.sample_latents(2000, seed=3).T)
    assert np.histogram(angles, 8)[0].min() > 2000 / 8 / 2  # all around


def test_latents_follow_from_the_manifest_and_the_graph_alone() -> None:
    vae = package.load(FLOW, provider="cpu")
    flow = vae.manifest.flow
    assert flow is not None

    def velocity(z: np.ndarray, t: np.ndarray) -> np.ndarray:
        return vae.graph("prior").run(["velocity"], {"z": z, "t": t})[0]

    noise = draw_normal(2, 5, seed=9)
    expected = np.array(flow.mean) + np.array(flow.std) * integrate(velocity, noise, flow.steps)
    np.testing.assert_allclose(vae.sample_latents(5, seed=9), expected, rtol=1e-5, atol=1e-6)


def test_sample_k_does_not_depend_on_the_number_or_the_batch() -> None:
    many = package.load(FLOW, provider="cpu").sample_latents(40, seed=5)
    small = package.load(FLOW, provider="cpu", batch_size=7)
    np.testing.assert_allclose(small.sample_latents(40, seed=5), many, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(small.sample_latents(3, seed=5, start=20), many[20:23], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(small.sample(3, seed=5), small.decode(many[:3]), rtol=1e-4, atol=1e-5)


def test_temperature_scales_the_starting_noise_and_steps_are_counted() -> None:
    vae = package.load(FLOW, provider="cpu")
    still = vae.sample_latents(4, temperature=0.0)
    np.testing.assert_allclose(still, np.broadcast_to(still[:1], (4, 2)), atol=1e-6)
    coarse, fine = vae.sample_latents(500, prior_steps=2), vae.sample_latents(500, prior_steps=100)
    assert np.abs(np.hypot(*coarse.T) - 2).mean() > 3 * np.abs(np.hypot(*fine.T) - 2).mean()
    for steps in (0, 1001):
        with pytest.raises(UsageError, match="integrated in 1 to 1000 steps"):
            vae.sample_latents(1, prior_steps=steps)
    with pytest.raises(UsageError, match="steps belong to the flow"):
        vae.sample_latents(1, prior="normal", prior_steps=3)
    with pytest.raises(UsageError, match="no mixture prior"):
        vae.sample_latents(1, prior="mixture")


def test_a_bundle_without_a_flow_says_what_it_has(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="has no flow prior: choose one of mixture, normal"):
        package.load(tiny_bundle, provider="cpu").sample_latents(1, prior="flow")


def test_verify_replays_the_prior_too(vaekit: Run) -> None:
    found = package.load(FLOW, provider="cpu").verify()
    assert found.passed
    assert [check.graph for check in found.outputs] == ["encoder", "encoder", "decoder", "prior"]
    assert set(found.placement) == {"encoder", "decoder", "prior"}
    told = vaekit("verify", "-m", FLOW)
    assert told.returncode == 0
    assert "prior    velocity" in told.stdout


def test_a_prior_with_other_results_does_not_verify(copied: Path, vaekit: Run) -> None:
    with np.load(copied / "golden.npz") as arrays:
        golden = dict(arrays)
    golden["velocity"] = golden["velocity"] + np.float32(0.01)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **golden)
    (copied / "golden.npz").write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    rewrite(copied, lambda document: document["golden"].update(sha256=digest))
    result = vaekit("verify", "-m", "flow")
    assert result.returncode == 3
    assert "prior    velocity" in result.stdout


def test_the_manifest_survives_a_round_trip() -> None:
    bundle = read_bundle(FLOW)
    assert Manifest.from_json(bundle.manifest.to_json()) == bundle.manifest
    assert bundle.document["prior"]["default"] == "flow"


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no graph": (lambda d: d["graphs"].pop("prior"), "no graph of that name"),
    "too few means": (lambda d: d["prior"]["flow"].update(mean=[0.0]), "does not have 2 dimensions"),
    "no steps": (lambda d: d["prior"]["flow"].update(steps=0), "1 to 1000 steps"),
    "endless steps": (lambda d: d["prior"]["flow"].update(steps=10**9), "1 to 1000 steps"),
    "a mean that is not finite": (lambda d: d["prior"]["flow"].update(mean=[float("nan"), 0.0]), "finite"),
    "a negative deviation": (lambda d: d["prior"]["flow"].update(std=[-1.0, 1.0]), "negative"),
    "no deviation": (lambda d: d["prior"]["flow"].pop("std"), "'std' is missing"),
    "a text": (lambda d: d["prior"].update(flow="fast"), "damaged"),
    "another graph": (lambda d: d["graphs"].update(prior=d["graphs"]["decoder"]), "prior's inputs are declared as"),
    "a precision of no tolerance": (lambda d: d["graphs"]["prior"].update(precision="int8"), "no tolerances for int8"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_learned_prior_is_refused(copied: Path, what: str) -> None:
    change, word = DAMAGED[what]
    with pytest.raises(BundleError, match=word):
        read_bundle(rewrite(copied, change))


def test_a_changed_prior_is_refused(copied: Path) -> None:
    (copied / "prior.onnx").write_bytes((copied / "decoder.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"prior\.onnx was changed after export"):
        read_bundle(copied)
    (copied / "prior.onnx").unlink()
    with pytest.raises(BundleError, match=r"prior\.onnx is missing"):
        read_bundle(copied)


def test_golden_vectors_without_the_prior_are_damaged(copied: Path) -> None:
    tiny = FLOW.parent / "map" / "golden.npz"
    digest = hashlib.sha256(tiny.read_bytes()).hexdigest()
    shutil.copy(tiny, copied / "golden.npz")
    rewrite(copied, lambda document: document["golden"].update(sha256=digest))
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        package.load(copied, provider="cpu").verify()


def test_the_command_samples_from_the_flow(vaekit: Run, assert_fails: Fails, tmp_path: Path) -> None:
    done = vaekit("sample", "-n", "4", "-m", FLOW, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prior"] == "flow"
    assert "flow of 8 steps, or N(0, I)" in vaekit("info", "-m", FLOW).stdout
    told = vaekit("sample", "-n", "4", "-m", FLOW, "--prior-steps", "3", "--temperature", "0.5", "-o", "b.png")
    assert "4 images from the flow prior" in told.stderr
    assert (tmp_path / "b.png").exists()
    assert_fails(vaekit("sample", "-m", FLOW, "--prior-steps", "0"), 2, "--prior-steps", "1<=x<=1000")
    assert_fails(vaekit("sample", "-m", FLOW, "--prior", "normal", "--prior-steps", "3"), 2, "belong to the flow")
    assert_fails(vaekit("sample", "-m", FLOW, "--prior", "mixture"), 2, "no mixture prior")
