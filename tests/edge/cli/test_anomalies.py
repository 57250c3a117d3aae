"""`vaekit evaluate --anomalies`, on an edge without PyTorch."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vaekit as package
from vaekit.maths.anomaly import SCORES
from vaekit.maths.detection import curve_of_scores
from vaekit.output.grid import save_picture

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]
WithResiduals = Callable[..., Path]


def write_pictures(root: Path, bundle: Path, count: int = 12, size: tuple[int, int] | None = None) -> None:
    """Write samples of the model as good ones, and others with a bright or a dark square as defects, with masks."""
    vae = package.load(bundle)
    vae = vae if size is None else vae.at(*size)
    images = np.rint(vae.sample(3 * count, seed=5) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    for number, image in enumerate(images):
        kind = ("good", "burn", "spot")[number % 3]
        mask = np.zeros(image.shape[:2], np.uint8)
        if kind != "good":
            mask[2:5, 3:6] = 255
            image[2:5, 3:6] = {"burn": 0, "spot": 255}[kind]
        (root / "test" / kind).mkdir(parents=True, exist_ok=True)
        save_picture(image, root / "test" / kind / f"{number}.png")
        if kind != "good":
            (root / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
            name = f"{number}_mask.png" if kind == "burn" else f"{number}.png"
            Image.fromarray(mask).save(root / "ground_truth" / kind / name)


def test_the_figures_are_those_of_the_scores(vaekit: Run, with_residuals: WithResiduals, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    bundle = with_residuals()
    write_pictures(tmp_path, bundle)
    result = vaekit("evaluate", bundle, "test", "--anomalies", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert (found["normal"], found["good"], found["failures"], found["provider"]) == ("good", 12, 0, "cpu")
    assert list(found["kinds"]) == ["burn", "spot", "all"]
    assert [kind["images"] for kind in found["kinds"].values()] == [12, 12, 24]
    assert set(found["kinds"]["all"]["scores"]) == set(SCORES)
    lines = vaekit("score", "test", "-m", bundle, "--score-by", "map", "--json").stdout.splitlines()
    scores = [(row["score"], Path(row["path"]).parent.name) for row in map(json.loads, lines)]
    by_kind = {kind: np.array([score for score, own in scores if own == kind]) for kind in ("good", "burn", "spot")}
    for kind in ("burn", "spot"):
        expected = curve_of_scores(by_kind["good"], by_kind[kind])
        told = found["kinds"][kind]["scores"]["map"]
        assert told["auroc"] == pytest.approx(expected.auroc)
        assert told["average_precision"] == pytest.approx(expected.average_precision)
        assert told["false_alarms_at_95"] == pytest.approx(expected.false_alarms_at_95)
        assert found["kinds"][kind]["pixel_auroc"] > 0.8
        assert 0 < found["kinds"][kind]["pro"] <= 1


def test_a_table_and_the_worst_misses(vaekit: Run, with_residuals: WithResiduals, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    bundle = with_residuals("free")
    write_pictures(tmp_path, bundle, 3, size=(24, 16))
    options = ("--anomalies", "--worst", "worst.png", "--map-by", "brightness", "--score-by", "elbo")
    result = vaekit("evaluate", bundle, "test", *options)
    assert result.returncode == 0
    assert result.stdout.startswith("3 good images\n\nkind  images  score")
    assert "pixel AUROC  PRO to 0.3" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[-3:]] == ["burn", "spot", "all"]
    assert "worst.png: the defects that score lowest by elbo" in result.stderr
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.height > 7 * 24  # four defects and three good pictures
    small = vaekit("evaluate", bundle, "test", "--anomalies", "--size", "16x12", "--json")
    assert small.returncode == 0


def test_curves_and_histograms_are_plotted(vaekit: Run, with_residuals: WithResiduals, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    bundle = with_residuals()
    write_pictures(tmp_path, bundle, 4)
    result = vaekit("evaluate", bundle, "test", "--anomalies", "--plot", "roc.png", "--score-by", "peak")
    assert result.returncode == 0, result.stderr
    assert "roc.png: ROC curves and histograms of the score peak" in result.stderr
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.width > 1000
    vector = vaekit("evaluate", bundle, "test", "--anomalies", "--plot", "roc.svg", "-q")
    assert vector.returncode == 0
    assert (tmp_path / "roc.svg").read_text().startswith("<?xml")


def test_the_figure_has_a_curve_and_a_histogram_for_each_kind() -> None:
    pytest.importorskip("matplotlib")
    from vaekit.output.plots import detection_figure

    good, bad = np.arange(10.0), np.arange(8.0, 20.0)
    figure = detection_figure({"_scratch$": curve_of_scores(good, bad)}, {"good": good, "_scratch$": bad}, "score map")
    left, right = figure.axes
    legends = left.get_legend(), right.get_legend()
    assert legends[0] is not None
    assert legends[1] is not None
    assert [text.get_text() for text in legends[0].get_texts()] == [
        r" _scratch\$, AUROC 0.983",
        "chance, AUROC 0.5",
    ]
    assert len(legends[1].get_texts()) == 2
    assert right.get_xlabel() == "score map"


def test_without_masks_nothing_is_measured_by_pixel(vaekit: Run, with_residuals: WithResiduals, tmp_path: Path) -> None:
    bundle = with_residuals()
    write_pictures(tmp_path / "a", bundle, 2)
    (tmp_path / "a" / "test").rename(tmp_path / "pictures")
    (tmp_path / "pictures" / "broken.png").write_text("no picture")
    result = vaekit("evaluate", bundle, "pictures", "--anomalies", "--json", "--normal", "spot")
    found = json.loads(result.stdout)
    assert found["masks"] is None
    assert list(found["kinds"]) == ["burn", "good", "all"]
    assert found["kinds"]["all"]["pixel_auroc"] is None
    assert found["failures"] == 1


def test_a_bundle_without_statistics_has_the_other_scores(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path, tiny_bundle, 2)
    found = json.loads(vaekit("evaluate", tiny_bundle, "test", "--anomalies", "--json").stdout)
    assert set(found["kinds"]["all"]["scores"]) == {"elbo", "reconstruction", "kl", "mahalanobis", "density"}
    assert found["masks"] is None


REFUSED: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "no source": (("bundle", "--anomalies"), 2, ("needs SOURCE",)),
    "a run": (("run", "test", "--anomalies"), 2, ("measures a bundle, not run", "vaekit export run")),
    "a class that is not there": (("bundle", "test", "--anomalies", "--normal", "fine"), 2, ("'fine'", "burn, good")),
    "a limit": (("bundle", "test", "--anomalies", "--limit", "2"), 2, ("--limit and --binarize do not apply",)),
    "no classes": (("bundle", "test/good", "--anomalies"), 1, ("has no classes",)),
    "one class": (("bundle", "only", "--anomalies"), 2, ("only the class 'good'",)),
    "a kind named all": (("bundle", "named", "--anomalies"), 2, ("has a class 'all'", "rename it")),
    "no folder of masks": (("bundle", "test", "--anomalies", "--masks", "gone"), 1, ("no folder of masks gone",)),
    "a mask that is not there": (("bundle", "test", "--anomalies", "--masks", "empty"), 1, ("has no mask",)),
    "a mask of another size": (("bundle", "test", "--anomalies", "--masks", "large"), 1, ("is 9x9", "is 8x8")),
    "a black mask": (("bundle", "test", "--anomalies", "--masks", "black"), 1, ("is black",)),
    "a bundle without the option": (("bundle", "test"), 2, ("is a bundle", "--anomalies")),
    "masks alone": (("run", "--masks", "empty"), 2, ("only apply to --anomalies",)),
    "a map of no statistics": (("bare", "test", "--anomalies", "--map-by", "pixel"), 2, ("export it again",)),
    "worst of an array": (("bundle", "a.npz", "--anomalies", "--worst", "w.png"), 2, ("pictures of a folder",)),
    "a plot of no format": (("bundle", "test", "--anomalies", "--plot", "w.txt"), 2, ("w.txt",)),
    "a plot alone": (("run", "--plot", "p.png"), 2, ("only apply to --anomalies",)),
    "a plot of a score that is not there": (
        ("bare", "test", "--anomalies", "--plot", "p.png", "--score-by", "peak"),
        2,
        ("export it again",),
    ),
    "a picture of no format": (("bundle", "test", "--anomalies", "--worst", "w.txt"), 2, ("w.txt",)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_measured_ends_in_one_line(
    vaekit: Run, assert_fails: Fails, with_residuals: WithResiduals, tiny_bundle: Path, tmp_path: Path, what: str
) -> None:
    if "mask" in what:
        pytest.importorskip("scipy")
    if "plot of a score" in what:
        pytest.importorskip("matplotlib")
    bundle = with_residuals()
    bundle.rename(tmp_path / "bundle")
    write_pictures(tmp_path, tmp_path / "bundle", 1)
    shutil.copytree(tiny_bundle, tmp_path / "bare")
    for folder in ("run", "empty", "only/good"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "only" / "good" / "a.png").write_bytes((tmp_path / "test" / "good" / "0.png").read_bytes())
    shutil.copytree(tmp_path / "test", tmp_path / "named")
    shutil.copytree(tmp_path / "test" / "good", tmp_path / "named" / "all")
    for folder, size in (("large", 9), ("black", 8)):
        for kind, number in (("burn", 1), ("spot", 2)):
            (tmp_path / folder / kind).mkdir(parents=True)
            Image.new("L", (size, size)).save(tmp_path / folder / kind / f"{number}.png")
    arguments, code, words = REFUSED[what]
    assert_fails(vaekit("evaluate", *arguments), code, *words)
