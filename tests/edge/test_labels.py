"""Drawing images of a class: labels of the mixture and of a learned prior, from Python and by `vaekit sample`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vaekit as package
from vaekit.bundle.manifest import Manifest
from vaekit.bundle.reading import read_bundle
from vaekit.errors import BundleError, UsageError
from vaekit.maths.flow import guided, integrate, one_hot
from vaekit.maths.prior import draw_mixture
from vaekit.types import Array
from vaekit.vae import VAE

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

LABELS = Path(__file__).parents[1] / "bundles" / "labels"
NAMES = ("top", "left", "right")
CENTRES = {"top": 90.0, "left": 210.0, "right": 330.0}  # degrees; arcs reach 45 to both sides


@pytest.fixture(scope="module")
def vae() -> VAE:
    return package.load(LABELS, provider="cpu")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LABELS, tmp_path / "labels"))


def away(latents: Array, label: str) -> Array:
    """Return the angles between latents (N, 2) and the middle of a label's arc, in degrees."""
    angles = np.rad2deg(np.arctan2(latents[:, 1], latents[:, 0])) - CENTRES[label]
    return np.asarray(np.abs((angles + 180) % 360 - 180))


@pytest.mark.parametrize("prior", ["flow", "mixture"])
@pytest.mark.parametrize("label", NAMES)
def test_latents_of_a_label_lie_in_its_arc(vae: VAE, prior: str, label: str) -> None:
    assert vae.labels == NAMES
    latents = vae.sample_latents(500, seed=2, prior=prior, label=label)
    off = away(latents, label)
    assert np.mean(off < 55) > 0.98
    assert np.mean(off > 15) > 0.5  # all along the arc
    radius = np.hypot(*latents.T)
    assert np.abs(radius - 2).mean() < (0.12 if prior == "flow" else 0.4)


def test_without_a_label_classes_are_as_frequent_as_in_training(vae: VAE) -> None:
    for prior in ("flow", "mixture"):
        latents = vae.sample_latents(3000, seed=1, prior=prior)
        shares = [np.mean(away(latents, label) < 60) for label in NAMES]
        assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.03)


def test_sample_k_does_not_depend_on_the_number(vae: VAE) -> None:
    for label in (None, "left"):
        many = vae.sample_latents(30, seed=4, label=label)
        np.testing.assert_allclose(vae.sample_latents(3, seed=4, start=20, label=label), many[20:23], atol=1e-5)
        np.testing.assert_allclose(vae.sample(5, seed=4, label=label), vae.decode(many[:5]), atol=1e-5)


def test_latents_follow_from_the_manifest_and_the_graph_alone(vae: VAE) -> None:
    flow, mixture = vae.manifest.flow, vae.manifest.mixture
    assert flow is not None
    assert mixture is not None
    assert flow.start == "mixture"
    only = mixture.of_label(1)
    assert only is not None
    mean, std = np.array(flow.mean, np.float32), np.array(flow.std, np.float32)
    given, free = one_hot(np.full(6, 1), 3), one_hot(np.full(6, -1), 3)

    def run(z: Array, t: Array, label: Array) -> Array:
        return vae.graph("prior").run(["velocity"], {"z": z, "t": t, "label": label})[0]

    for guidance in (1.0, 2.5, 0.0):

        def velocity(z: Array, t: Array, guidance: float = guidance) -> Array:
            return guided(run(z, t, given), run(z, t, free), guidance)

        expected = mean + std * integrate(velocity, (draw_mixture(only, 6, seed=9) - mean) / std, flow.steps)
        found = vae.sample_latents(6, seed=9, label="left", guidance=guidance)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_guidance_is_linear_in_both_velocities() -> None:
    given, free = np.full((2, 3), 2, np.float32), np.full((2, 3), 0.5, np.float32)
    for guidance, expected in ((0, 0.5), (1, 2), (3, 5)):
        np.testing.assert_array_equal(guided(given, free, guidance), np.full((2, 3), expected, np.float32))


def test_what_cannot_be_drawn_is_refused_in_words(vae: VAE, tiny_bundle: Path) -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"label": "rigth"}, "no label 'rigth'. The nearest is 'right'; there are top, left, right"),
        ({"label": ""}, "no label ''"),
        (
            {"label": "top", "prior": "normal"},
            "the normal prior does not know the label top: use the prior flow or mix",
        ),
        ({"guidance": 2.0}, "guidance needs the flow and a label"),
        ({"guidance": 2.0, "label": "top", "prior": "mixture"}, "guidance needs the flow and a label"),
        ({"guidance": float("nan"), "label": "top"}, "must be a finite number"),
    ]
    for arguments, words in refusals:
        with pytest.raises(UsageError) as caught:
            vae.sample_latents(1, **arguments)
        assert words in str(caught.value)
    with pytest.raises(UsageError, match="has no labels"):
        package.load(tiny_bundle, provider="cpu").sample_latents(1, label="top")


def test_verify_replays_the_labels_too(vae: VAE) -> None:
    found = vae.verify()
    assert found.passed
    assert [check.output for check in found.outputs if check.graph == "prior"] == ["velocity"]


def width(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.width


def test_a_row_for_each_label(vaekit: Run, tmp_path: Path) -> None:
    done = vaekit("sample", "-m", LABELS, "--label", "all", "-n", "3", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["labels"] == list(NAMES)
    assert document["count"] == 9
    wide = vaekit("sample", "-m", LABELS, "--label", "left", "--label", "top", "-o", "two.png")
    assert "16 images of left, top from the flow prior" in wide.stderr
    assert "--label left --label top -n 8 -o two.png --seed 1" in wide.stderr.splitlines()[-1]
    assert width(tmp_path / "two.png") > 2 * width(tmp_path / "grid.png")
    one = vaekit("sample", "-m", LABELS, "--label", "left", "-n", "9", "-o", "one.png", "--guidance", "2")
    assert one.returncode == 0, one.stderr
    assert width(tmp_path / "one.png") < width(tmp_path / "grid.png")  # a square without titles


def test_a_folder_for_each_label(vaekit: Run, tmp_path: Path, assert_fails: Fails, copied: Path) -> None:
    assert vaekit("sample", "-m", LABELS, "--label", "all", "-n", "3", "-o", "out").returncode == 0
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert names == [f"{label}/{number:06}.png" for label in sorted(NAMES) for number in range(3)]
    rewrite(copied, lambda document: document.update(labels=["top", "../left", "a/right"]))
    assert_fails(vaekit("sample", "-m", copied, "--label", "all", "-o", "bad"), 2, "'../left' cannot be the name")
    assert not (tmp_path / "bad").exists()
    assert vaekit("sample", "-m", copied, "--label", "top", "--label", "a/right", "-n", "1", "-o", "b").returncode == 0
    assert (tmp_path / "b" / "a" / "right" / "000000.png").exists()


def test_the_command_refuses_in_one_line(vaekit: Run, assert_fails: Fails, tiny_bundle: Path) -> None:
    sample = ("sample", "-m", LABELS)
    assert_fails(vaekit(*sample, "--label", "botom"), 2, "no label 'botom'", "The nearest is")
    assert_fails(vaekit(*sample, "--label", "all", "--columns", "3"), 2, "leave out --columns")
    assert_fails(vaekit(*sample, "--label", "top", "--prior", "normal"), 2, "does not know the label top")
    assert_fails(vaekit(*sample, "--guidance", "2"), 2, "guidance needs")
    assert_fails(vaekit("sample", "-m", tiny_bundle, "--label", "all"), 2, "has no labels")


def test_info_names_the_labels(vaekit: Run) -> None:
    told = vaekit("info", "-m", LABELS)
    assert "labels" in told.stdout
    assert "top, left, right" in told.stdout


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document))
    return bundle


def test_the_manifest_survives_a_round_trip() -> None:
    manifest = read_bundle(LABELS).manifest
    again = Manifest.from_json(manifest.to_json())
    assert again.labels == manifest.labels == NAMES
    assert again.flow == manifest.flow
    assert again.requires == ("prior-label", "prior-starts-from-mixture")


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "two labels of one name": (lambda d: d.update(labels=["top", "top", "left"]), "the same name"),
    "an empty name": (lambda d: d.update(labels=["top", "", "left"]), "not a list of names"),
    "labels that are a text": (lambda d: d.update(labels="top"), "not a list of names"),
    "too few labels": (lambda d: d.update(labels=["top", "left"]), "labels are not numbers of labels|label weights"),
    "a component of no label": (lambda d: d["prior"]["mixture"].update(labels=[3] * 7), "not numbers of labels"),
    "a fraction as label": (lambda d: d["prior"]["mixture"].update(labels=[0.5] * 7), "not numbers of labels"),
    "too few components": (lambda d: d["prior"]["mixture"].update(labels=[0]), "not one for each component"),
    "too few weights": (lambda d: d["prior"]["flow"].update(label_weights=[0.5, 0.5]), "label weights"),
    "weights of another sum": (lambda d: d["prior"]["flow"].update(label_weights=[1, 1, 1, 1]), "label weights"),
    "no weights": (lambda d: d["prior"]["flow"].pop("label_weights"), "prior's inputs are declared as"),
    "another start": (lambda d: d["prior"]["flow"].update(start="here"), "start of a flow"),
    "no mixture": (lambda d: d["prior"].pop("mixture"), "starts from a mixture, but it has none"),
    "a deviation of nothing": (lambda d: d["prior"]["flow"].update(std=[0.0, 1.0]), "no deviation of 0"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_labels_are_refused(copied: Path, what: str) -> None:
    change, word = DAMAGED[what]
    with pytest.raises(BundleError, match=word):
        read_bundle(rewrite(copied, change))
