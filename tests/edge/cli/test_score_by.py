"""`vaekit score --score-by`, `--false-alarms` and `--size own`."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vaekit as package
from vaekit.errors import UsageError
from vaekit.maths.anomaly import ELBO_SCORES, MAP_SCORES, SCORES, ScoreName, p_values, scores_of_maps, unit_of
from vaekit.output.grid import save_picture

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]
WithResiduals = Callable[..., Path]


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def write_images(path: Path, bundle: Path, count: int, seed: int, unusual: int = 0) -> None:
    """Write samples of the model as an array, the last ones with their colours inverted."""
    pixels = np.rint(package.load(bundle).sample(count, seed=seed) * 255).astype(np.uint8)
    pixels[count - unusual :] = 255 - pixels[count - unusual :]
    np.save(path, pixels.transpose(0, 2, 3, 1).squeeze())


@pytest.mark.parametrize("by", SCORES)
def test_scores_of_every_kind_are_the_librarys(
    vaekit: Run, with_residuals: WithResiduals, tmp_path: Path, by: ScoreName
) -> None:
    bundle = with_residuals()
    write_images(tmp_path / "images.npy", bundle, 9, 2, unusual=3)
    images = np.load(tmp_path / "images.npy")[:, None].astype(np.float32) / np.float32(255)
    vae = package.load(bundle)
    wanted = vae.score(images, by=by)
    assert wanted.shape == (9,)
    if by in MAP_SCORES:
        np.testing.assert_allclose(wanted, scores_of_maps(vae.score_map(images))[by])
    result = vaekit("score", "images.npy", "-m", bundle, "--score-by", by, "--json")
    assert result.returncode == 0
    found = objects(result.stdout)
    assert [line["score"] for line in found] == pytest.approx(wanted.tolist(), rel=1e-4)
    assert [line.get("score_by", "elbo") for line in found] == [by] * 9
    terms = vae.elbo_terms(images)
    assert [line["kl"] for line in found] == pytest.approx(terms.kl.tolist(), rel=1e-4)
    assert f"in {unit_of(by)} per image" in result.stderr
    assert ("L = 1" in result.stderr) == (by in ELBO_SCORES)  # the others draw no z
    assert ("--flag-above p99" in result.stderr) == (by == "elbo")


def test_unusual_images_score_higher_by_the_map(with_residuals: WithResiduals, tmp_path: Path) -> None:
    bundle = with_residuals()
    write_images(tmp_path / "images.npy", bundle, 40, 2, unusual=20)
    images = np.load(tmp_path / "images.npy")[:, None].astype(np.float32) / np.float32(255)
    scores = package.load(bundle).score(images, by="map")
    assert np.median(scores[20:]) > np.quantile(scores[:20], 0.9)


def test_a_deterministic_model_is_scored_by_its_map(
    vaekit: Run, assert_fails: Fails, with_residuals: WithResiduals, tmp_path: Path
) -> None:
    bundle = with_residuals("deterministic")
    vae = package.load(bundle)
    pixels = np.rint(vae.sample(3) * 255).astype(np.uint8)
    np.save(tmp_path / "images.npy", pixels.transpose(0, 2, 3, 1))
    done = vaekit("score", "images.npy", "-m", bundle, "--score-by", "map", "-q")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["reconstruction"], row["kl"], row["score_by"]) for row in rows] == [("", "", "map")] * 3
    assert_fails(vaekit("score", "images.npy", "-m", bundle, "--score-by", "kl"), 2, "deterministic")


def test_percentiles_of_other_scores_flag_too(
    vaekit: Run, assert_fails: Fails, with_residuals: WithResiduals, tmp_path: Path
) -> None:
    bundle = with_residuals()
    write_images(tmp_path / "images.npy", bundle, 20, 2, unusual=10)
    document = json.loads((bundle / "manifest.json").read_text())
    document["scores_by"] = {"map": {"images": 50, "seed": 0, "quantiles": {"p0": -1.0, "p100": 5.0}}}
    (bundle / "manifest.json").write_text(json.dumps(document))
    options = ("images.npy", "-m", bundle, "--score-by", "map", "--flag-above", "p50", "--json")
    result = vaekit("score", *options)
    found = objects(result.stdout)
    assert [line["flagged"] for line in found] == [line["score"] > 2.0 for line in found]
    assert 0 < sum(line["flagged"] for line in found) < 20
    assert "above p50 (2.0 standard deviations)" in result.stderr
    assert_fails(vaekit("score", *options, "--map-by", "gradient"), 2, "no held-out scores")
    document["scores_by"]["map"]["quantiles"] = {"p0": float("nan")}
    (bundle / "manifest.json").write_text(json.dumps(document))
    assert_fails(vaekit("score", *options), 1, "manifest.json")


def test_usual_images_are_flagged_at_the_rate(vaekit: Run, with_residuals: WithResiduals, tmp_path: Path) -> None:
    bundle = with_residuals()
    write_images(tmp_path / "good.npy", bundle, 99, 3)
    write_images(tmp_path / "new.npy", bundle, 60, 4, unusual=10)
    for target, options in (("good.csv", ()), ("good.jsonl", ("--json",))):
        made = vaekit("score", "good.npy", "-m", bundle, "--score-by", "map", "-o", target, *options)
        assert made.returncode == 0
        if options:  # a watch's line of a picture that could not be read
            with open(tmp_path / target, "a", encoding="utf-8") as file:
                file.write(json.dumps({"path": "broken.png", "error": "it is truncated"}) + "\n")
        result = vaekit(
            "score",
            "new.npy",
            "-m",
            bundle,
            "--score-by",
            "map",
            "--json",
            "--false-alarms",
            "0.1",
            "--calibration",
            target,
        )
        found = objects(result.stdout)
        assert list(found[0]) == ["path", "score", "reconstruction", "kl", "flagged", "p_value", "score_by"]
        scores, good = (package.load(bundle).score(read(tmp_path / name), by="map") for name in ("new.npy", "good.npy"))
        np.testing.assert_allclose([line["p_value"] for line in found], p_values(scores, good), atol=0.011)
        assert all(line["flagged"] == (line["p_value"] <= 0.1) for line in found)
        usual = sum(line["flagged"] for line in found[:50])
        assert usual <= 12
        assert sum(line["flagged"] for line in found[50:]) >= 8
        assert "flagged at a rate of 0.1 false alarms, by 99 good images" in result.stderr


def read(path: Path) -> Any:
    return np.load(path)[:, None].astype(np.float32) / np.float32(255)


REFUSED: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "a rate alone": (("--false-alarms", "0.1"), 2, ("--calibration go together",)),
    "a calibration alone": (("--calibration", "good.csv"), 2, ("--calibration go together",)),
    "a rate of nothing": (("--false-alarms", "0", "--calibration", "good.csv"), 2, ("between 0 and 1",)),
    "a rate that is no number": (("--false-alarms", "nan", "--calibration", "good.csv"), 2, ("between 0 and 1",)),
    "too few images": (("--false-alarms", "0.05", "--calibration", "good.csv"), 2, ("19 images or more", "has 10")),
    "other scores": (("--false-alarms", "0.1", "--calibration", "good.csv", "--score-by", "kl"), 2, ("by elbo",)),
    "two thresholds": (("--false-alarms", "0.1", "--calibration", "good.csv", "--flag-above", "p9"), 2, ("one of",)),
    "no file": (("--false-alarms", "0.1", "--calibration", "gone.csv"), 1, ("cannot read gone.csv",)),
    "a picture": (("--false-alarms", "0.1", "--calibration", "images.npy"), 1, ("holds no scores", "-o FILE")),
    "an empty file": (("--false-alarms", "0.1", "--calibration", "empty"), 1, ("holds no scores",)),
    "infinite scores": (("--false-alarms", "0.1", "--calibration", "inf.csv"), 1, ("not finite",)),
    "a list": (("--false-alarms", "0.1", "--calibration", "list.json"), 1, ("holds no scores",)),
    "percentiles of another score": (("--flag-above", "p99", "--score-by", "kl"), 2, ("no held-out scores",)),
    "no statistics": (("--score-by", "map"), 2, ("export it again",)),
    "a map without maps": (("--map-by", "pixel"), 2, ("--map-by only applies to",)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_flagged_ends_in_one_line(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, what: str
) -> None:
    write_images(tmp_path / "images.npy", tiny_bundle, 10, 0)
    assert vaekit("score", "images.npy", "-m", tiny_bundle, "-o", "good.csv", "-q").returncode == 0
    (tmp_path / "empty").touch()
    (tmp_path / "inf.csv").write_text("path,score\na,inf\n")
    (tmp_path / "list.json").write_text('{"score": [1]}\n')
    arguments, code, words = REFUSED[what]
    assert_fails(vaekit("score", "images.npy", "-m", tiny_bundle, *arguments), code, *words)


def test_maps_have_no_mixture_and_so_no_density(
    vaekit: Run, assert_fails: Fails, bundles: Path, tmp_path: Path
) -> None:
    write_images(tmp_path / "colour.npy", bundles / "map", 2, 0)
    refused = vaekit("score", "colour.npy", "-m", bundles / "map", "--score-by", "density")
    assert_fails(refused, 2, "no mixture prior", "none is fitted to maps")


def test_a_score_of_no_such_name_is_refused(tiny_bundle: Path) -> None:
    vae = package.load(tiny_bundle)
    with pytest.raises(UsageError, match=r"no score 'luck': choose one of elbo, .*mahalanobis"):
        vae.score(vae.sample(1), by="luck")


def test_pictures_of_several_sizes_keep_their_own(
    vaekit: Run, assert_fails: Fails, with_residuals: WithResiduals, tmp_path: Path
) -> None:
    bundle = with_residuals("free")
    vae = package.load(bundle)
    sizes = [(8, 8), (16, 12), (13, 21)]
    images = []
    for number, size in enumerate(sizes):
        drawn = vae.at(16, 24).sample(1, seed=number)[0, :, : size[0], : size[1]]
        pixels = np.rint(drawn * 255).astype(np.uint8)
        save_picture(pixels.transpose(1, 2, 0), tmp_path / f"{number}.png")
        images.append(pixels.astype(np.float32) / np.float32(255))
    names = [f"{number}.png" for number in range(3)]
    done = vaekit("score", *names, "-m", bundle, "--size", "own", "--score-by", "map", "--maps", "maps", "--json")
    assert done.returncode == 0
    for number, (line, image) in enumerate(zip(objects(done.stdout), images, strict=True)):
        assert line["score"] == pytest.approx(float(vae.at(*sizes[number]).score(image[None], by="map")[0]), rel=1e-4)
        assert np.load(tmp_path / "maps" / f"{number:06}-{number}.npy").shape == image.shape[1:]
    Image.new("RGB", (2, 30)).save(tmp_path / "thin.png")
    result = vaekit("score", "thin.png", *names, "-m", bundle, "--size", "own", "-q")
    assert_fails(result, 1, "1 of 4 images could not be read", "thin.png", "must be 4 or more")
    assert len(result.stdout.splitlines()) == 4
    refused = vaekit("score", *names, "-m", bundle, "--size", "own", "--flag-above", "p99")
    assert_fails(refused, 2, "no held-out scores of this kind and size")
