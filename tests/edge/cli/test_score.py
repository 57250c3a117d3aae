from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import vaekit as package
from vaekit.bundle.manifest import ScoreStatistics
from vaekit.errors import UsageError
from vaekit_cli.scoring import threshold

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Fails = Callable[..., None]

SCRIPT = Path(sys.executable).with_name("vaekit")
FIELDS = ["path", "score", "reconstruction", "kl", "flagged"]

posix = pytest.mark.skipif(os.name != "posix", reason="signals, named pipes and file size limits of POSIX")


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def scored(tiny_bundle: Path, pixels: NDArray[np.uint8], seed: int = 0) -> list[float]:
    """Score grey pictures (N, 8, 8) with the library."""
    images = pixels[:, None].astype(np.float32) / np.float32(255)
    return [float(score) for score in package.load(tiny_bundle).score(images, seed=seed)]


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def listed(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Output


def test_scores_are_the_librarys_as_csv_and_as_json_lines(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    pixels = noise(70)
    np.save(tmp_path / "images.npy", pixels)
    table = vaekit("score", "images.npy", "-m", tiny_bundle)
    assert table.returncode == 0
    told, following = table.stderr.splitlines()
    assert all(word in told for word in ("70 images scored", "nats", "L = 1", "seed 0", "cpu"))
    assert following.startswith("next: vaekit score images.npy --flag-above p99 ")
    rows = list(csv.DictReader(table.stdout.splitlines()))
    assert list(rows[0]) == FIELDS
    lines = vaekit("score", "images.npy", "-m", tiny_bundle, "--json", "-q", "-o", "lines")
    assert (lines.returncode, lines.stdout, lines.stderr) == (0, "", "")
    found = objects((tmp_path / "lines").read_text())
    assert len(rows) == len(found) == 70
    expected = scored(tiny_bundle, pixels)
    for number, (row, line) in enumerate(zip(rows, found, strict=True)):
        assert list(line) == FIELDS
        assert row["path"] == line["path"] == f"images.npy[{number}]"
        assert line["score"] == line["kl"] - line["reconstruction"]
        assert line["score"] == pytest.approx(expected[number], rel=1e-5)
        assert line["flagged"] is None
        assert [float(row[name]) for name in FIELDS[1:4]] == [line[name] for name in FIELDS[1:4]]
        assert row["flagged"] == ""
        assert line["kl"] >= 0


def test_a_score_depends_on_neither_place_nor_neighbours(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    pixels = noise(5)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    names = [f"{number}.png" for number in range(5)]
    orders = (names, names[::-1], ["3.png"], [*names, *names])
    seen: list[dict[str, float]] = []
    for order, batch in zip(orders, ("64", "2", "64", "3"), strict=True):
        result = vaekit("score", *order, "-m", tiny_bundle, "--batch-size", batch, "--json", "-q")
        assert (result.returncode, result.stderr) == (0, "")
        found = objects(result.stdout)
        assert [line["path"] for line in found] == order
        seen.append({line["path"]: line["score"] for line in found})
    assert len(set(seen[0].values())) == 5
    for others in seen[1:]:
        assert others == {name: pytest.approx(seen[0][name], rel=1e-5) for name in others}
    reseeded = objects(vaekit("score", "3.png", "-m", tiny_bundle, "--seed", "9", "--json").stdout)[0]["score"]
    assert reseeded == pytest.approx(scored(tiny_bundle, pixels[3:4], seed=9)[0], rel=1e-5)
    assert reseeded != pytest.approx(seen[0]["3.png"], rel=1e-5)


def test_scores_above_a_threshold_are_flagged(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    quantiles = json.loads((tiny_bundle / "manifest.json").read_text())["scores"]["quantiles"]
    with np.load(tiny_bundle / "golden.npz") as golden:
        usual = np.rint(golden["image"] * 255).astype(np.uint8)[:, 0]
    pixels = np.concatenate((usual, noise(3)))
    np.save(tmp_path / "images.npy", pixels)
    expected = np.array(scored(tiny_bundle, pixels))
    middle = float(np.median(expected))
    for given, limit in (("p99", quantiles["p99"]), ("P50", quantiles["p50"]), (f"{middle + 0.1:.3f}", middle + 0.1)):
        result = vaekit("score", "images.npy", "-m", tiny_bundle, "--json", "--flag-above", given)
        assert result.returncode == 0
        flags = [line["flagged"] for line in objects(result.stdout)]
        assert np.abs(expected - limit).min() > 1e-3  # otherwise the result would depend on rounding
        assert flags == (expected > limit).tolist()
        assert 0 < sum(flags) < len(flags)
        assert f"{sum(flags)} of them above {given} ({limit:.1f} nats)" in result.stderr
        assert "next:" not in result.stderr
    table = vaekit("score", "images.npy", "-m", tiny_bundle, "--flag-above", "p99", "-q")
    assert {row["flagged"] for row in csv.DictReader(table.stdout.splitlines())} == {"True", "False"}


def test_unreadable_files_are_named_and_the_rest_is_scored(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path
) -> None:
    Image.fromarray(noise(1)[0]).save(tmp_path / 'with, "comma".png')
    (tmp_path / "broken.png").write_text("no picture")
    for as_json in (False, True):
        options = ["--json"] if as_json else []
        result = vaekit("score", *sorted(listed(tmp_path)), "-m", tiny_bundle, *options)
        assert_fails(result, 1, "1 of 2 images could not be read", "broken.png", "--skip-errors")
        assert "skipped: broken.png" in result.stderr
        rows = objects(result.stdout) if as_json else list(csv.DictReader(result.stdout.splitlines()))
        assert [row["path"] for row in rows] == ['with, "comma".png']
    skipped = vaekit("score", *sorted(listed(tmp_path)), "-m", tiny_bundle, "--skip-errors", "-q")
    assert (skipped.returncode, skipped.stderr) == (0, "")
    assert len(skipped.stdout.splitlines()) == 2


# Errors

REFUSED: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "nothing": ((), 2, ("--from-file",)),
    "a source that is not there": (("gone.png",), 1, ("gone.png",)),
    "an array beyond [0, 1]": (("loud.npy",), 1, ("loud.npy", "[0, 1]")),
    "a folder that is not there": (("good.npy", "-o", "none/s.csv"), 1, ("cannot write none/s.csv",)),
    "a folder in the file's place": (("good.npy", "-o", "folder"), 1, ("cannot write folder",)),
    "only unreadable pictures": (("broken.png",), 1, ("none of the 1 images", "broken.png")),
    "a seed below zero": (("good.npy", "--seed", "-1"), 2, ("--seed",)),
    "a threshold of no sense": (("good.npy", "--flag-above", "most"), 2, ("'most'", "p99", "nats")),
    "a threshold beyond all": (("good.npy", "--flag-above", "p100.5"), 2, ("'p100.5'", "p99")),
    "a threshold of no number": (("good.npy", "--flag-above", "nan"), 2, ("'nan'", "p99")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_scored_ends_in_one_line_and_writes_nothing(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, what: str
) -> None:
    np.save(tmp_path / "good.npy", noise(2))
    np.save(tmp_path / "loud.npy", np.full((2, 8, 8), 2.0))
    (tmp_path / "broken.png").write_text("no picture")
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.csv").write_text("old")
    before = listed(tmp_path)
    arguments, code, words = REFUSED[what]
    target = () if "-o" in arguments else ("-o", "old.csv")
    result = vaekit("score", *arguments, *target, env={"VAEKIT_MODEL": str(tiny_bundle)})
    assert_fails(result, code, *words)
    assert result.stdout == ""
    assert len([line for line in result.stderr.splitlines() if not line.startswith("skipped: ")]) == 1
    assert listed(tmp_path) == before
    assert (tmp_path / "old.csv").read_text() == "old"


def test_a_percentile_needs_held_out_scores(
    vaekit: Run, assert_fails: Fails, copied_bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", noise(2))
    manifest = json.loads((copied_bundle / "manifest.json").read_text())
    manifest["scores"] = None
    (copied_bundle / "manifest.json").write_text(json.dumps(manifest))
    assert_fails(vaekit("score", "images.npy", "-m", "bundle", "--flag-above", "p99"), 2, "held-out scores", "nats")
    flagged = vaekit("score", "images.npy", "-m", "bundle", "--flag-above", "-1e6", "--json")
    assert [line["flagged"] for line in objects(flagged.stdout)] == [True, True]


@posix
def test_a_full_disk_leaves_the_old_scores(assert_fails: Fails, tiny_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", noise(2000))
    (tmp_path / "s.csv").write_text("old")
    shell: list[str | Path] = ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh"]  # blocks of 512 bytes
    command: list[str | Path] = [*shell, SCRIPT, "score", "images.npy", "-m", tiny_bundle, "-o", "s.csv"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert_fails(result, 1, "cannot write s.csv", "File too large")
    assert listed(tmp_path) == {"images.npy", "s.csv"}
    assert (tmp_path / "s.csv").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("count", [1, 2000], ids=["at the end", "on the way"])
def test_results_that_do_not_fit_on_stdout_are_a_failure(
    assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, count: int
) -> None:
    np.save(tmp_path / "images.npy", noise(count))
    with open("/dev/full", "w") as full:
        command: list[str | Path] = [SCRIPT, "score", "images.npy", "-m", tiny_bundle, "-q"]
        result = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert_fails(result, 1, "No space left on device")
    assert "VAEKIT_DEBUG" not in result.stderr  # a traceback hint would mean an unexpected exception
    assert len(result.stderr.splitlines()) == 1


def test_a_reader_that_leaves_is_no_traceback(tiny_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", noise(5000))  # more than a pipe holds
    command: list[str | Path] = [SCRIPT, "score", "images.npy", "-m", tiny_bundle]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        assert process.stdout.readline() == f"{','.join(FIELDS)}\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1
    assert listed(tmp_path) == {"images.npy"}


@posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_in_mid_stream_leaves_the_old_scores(
    assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    np.save(tmp_path / "images.npy", noise(300))
    (tmp_path / "s.csv").write_text("old")
    (tmp_path / "list.txt").write_text("last.png\n")
    Image.new("L", (9_900, 9_900)).save(tmp_path / "last.png", compress_level=1)  # a picture that takes long
    arguments = ("score", "images.npy", "--from-file", "list.txt", "-m", tiny_bundle, "-o", "s.csv")
    pipe = subprocess.PIPE
    process = subprocess.Popen([SCRIPT, *arguments], cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)
    while process.poll() is None and not any(file.stat().st_size for file in tmp_path.glob(".s.csv.*")):
        time.sleep(0.002)
    process.send_signal(signal.Signals[name])
    try:
        output, told = process.communicate(timeout=60)
    finally:
        process.kill()
    code, word = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated")}[name]
    assert_fails(subprocess.CompletedProcess([], process.returncode, output, told), code, word)
    assert len(told.splitlines()) == 1
    assert listed(tmp_path) == {"images.npy", "list.txt", "last.png", "s.csv"}
    assert (tmp_path / "s.csv").read_text() == "old"


# --flag-above


HELD_OUT = ScoreStatistics(100, 0, {"p0": -40.0, "p50": 10.0, "p100": 80.0, "p99": 60.0, "p99.9": 79.0, "p9": 0.0})


@pytest.mark.parametrize(
    ("text", "nats"),
    [("p0", -40.0), ("p9", 0.0), ("p50", 10.0), ("p99", 60.0), ("P99", 60.0), ("p99.9", 79.0), ("p100", 80.0)],
)
def test_a_percentile_is_the_held_out_score(text: str, nats: float) -> None:
    assert threshold(text, HELD_OUT) == nats


@pytest.mark.parametrize(("text", "nats"), [("p4.5", -20.0), ("p74.5", 35.0), ("p99.45", 69.5), ("p99.95", 79.5)])
def test_a_percentile_between_known_ones_is_interpolated(text: str, nats: float) -> None:
    assert threshold(text, HELD_OUT) == pytest.approx(nats)


@pytest.mark.parametrize(("text", "nats"), [("12.5", 12.5), ("-3", -3.0), ("0", 0.0), ("1e3", 1000.0)])
def test_nats_are_taken_as_they_are_with_or_without_held_out_scores(text: str, nats: float) -> None:
    assert threshold(text, HELD_OUT) == threshold(text, None) == nats


NO_THRESHOLDS = [
    "",
    "p",
    "q99",
    "p101",
    "p-1",
    "pp",
    "p99p",
    "99%",
    "nan",
    "inf",
    "-inf",
    "pnan",
    "pinf",
    "1e999",
    "p1e9",
]


@pytest.mark.parametrize("text", NO_THRESHOLDS)
def test_what_is_no_threshold_is_refused_with_what_could_be(text: str) -> None:
    for statistics in (HELD_OUT, None):
        with pytest.raises(UsageError, match=r"not a threshold: give a percentile .* such as p99, or nats") as caught:
            threshold(text, statistics)
        assert repr(text) in str(caught.value)


def test_without_held_out_scores_a_percentile_is_refused() -> None:
    with pytest.raises(UsageError, match="has no held-out scores"):
        threshold("p99", None)
