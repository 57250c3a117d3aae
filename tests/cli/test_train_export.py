"""`vaekit train` and `vaekit export` on the command line."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vaekit as library
from vaekit.images.shapes import draw_shapes
from vaekit.training.run import load_run
from vaekit_cli.console import command_line

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

FASHION_MNIST = Path(os.environ.get("VAEKIT_DATA") or "/usr/share/datasets", "fashion-mnist")

SHORT = ("--latent", "2", "--steps", "3", "--batch-size", "32")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def next_command(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the arguments of the command that the last line suggests."""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("next: vaekit "), result.stderr
    return shlex.split(last)[2:]


def picture_folder(folder: Path, count: int = 24) -> Path:
    for number, image in enumerate(draw_shapes(count, (8, 8)).images):
        path = folder / ("odd" if number % 2 else "even") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return folder


def test_train_export_sample_and_info_follow_each_other(
    vaekit: Run, in_process: Run, shapes: Path, tmp_path: Path
) -> None:
    trained = vaekit("train", shapes.name, *SHORT)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout == ""
    assert "150 images, 12 x 9 RGB, in memory; 135 to train on, 15 held out" in trained.stderr
    assert "ELBO" in trained.stderr
    assert next_command(trained) == ["export"]

    exported = vaekit(*next_command(trained))
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout == ""
    assert "parity holds at batch sizes 1, 2, 7, 64 (atol 1e-05, rtol 0.0001)" in exported.stderr
    assert "opset 17, IR 8" in exported.stderr

    sampled = vaekit(*next_command(exported))
    assert sampled.returncode == 0, sampled.stderr
    with Image.open(tmp_path / "grid.png") as picture:
        assert min(picture.size) > 100
    assert vaekit(*next_command(sampled)).returncode == 0

    described = vaekit("info")
    assert described.returncode == 0, described.stderr
    for words in ("3 x 12 x 9", "2 dimensions", "gaussian", "opset 17", "shapes.npy, 3 steps"):
        assert words in described.stdout
    assert json.loads(vaekit("info", "--json").stdout)["latent"]["shape"] == [2]
    assert library.load(tmp_path / "vae-onnx").sample(2).shape == (2, 3, 12, 9)

    # Another process writes the same graphs, byte for byte.
    assert in_process("export", "-o", "again").returncode == 0
    first, again = files_of(tmp_path / "vae-onnx"), files_of(tmp_path / "again")
    for name in ("encoder.onnx", "decoder.onnx"):
        assert again[name] == first[name]
    assert names_in(tmp_path) == {"again", "grid.png", "shapes.npy", "vae", "vae-onnx"}


def test_places_and_settings_are_those_asked_for(in_process: Run, shapes: Path, tmp_path: Path) -> None:
    trained = in_process(
        "train", shapes, *SHORT, "-o", "runs/first", "--size", "8x10", "--sigma", "0.2", "--beta", "0.5", "--seed", "7"
    )
    assert trained.returncode == 0, trained.stderr
    assert "images of 12 x 9 are resized" in trained.stderr
    assert "sigma 0.2" in trained.stderr
    config = json.loads((tmp_path / "runs" / "first" / "config.json").read_text())
    assert config["source"] == str(shapes)
    chosen = {"height": 8, "width": 10, "latent": 2, "sigma": 0.2, "beta": 0.5, "steps": 3, "batch_size": 32, "seed": 7}
    assert chosen.items() <= config.items()
    assert next_command(trained) == ["export", "runs/first"]

    exported = in_process("export", "runs/first", "-o", "bundle", "--opset", "21", "--golden", "samples", "--json")
    assert exported.returncode == 0, exported.stderr
    assert exported.stderr == ""
    document = json.loads(exported.stdout)
    assert document["parity"]["passed"] is True
    assert library.load(tmp_path / "bundle").manifest.graphs["decoder"].opset == 21

    strict = in_process("export", "runs/first", "-o", "other", "--atol", "0", "--rtol", "0")
    assert strict.returncode == 3
    assert strict.stderr.splitlines()[-1].startswith("error: parity failed, nothing was published: ")
    assert not (tmp_path / "other").exists()


def test_what_sample_says_to_type_next_uses_the_same_bundle(in_process: Run, copied_bundle: Path) -> None:
    sampled = in_process("sample", "-n", "4", "-m", copied_bundle)
    assert sampled.returncode == 0, sampled.stderr
    following = in_process(*next_command(sampled))
    assert following.returncode == 0, following.stderr


@pytest.mark.parametrize("place", ["runs/first", "my run", "it's", "$HOME"])
def test_a_command_to_type_next_can_be_typed(place: str) -> None:
    typed = command_line("vaekit export", ("", Path(place), Path("vae")), ("-m", place, "vae-onnx"), ("-o", "g", "g"))
    assert shlex.split(typed) == ["vaekit", "export", place, "-m", place]


def test_quiet_says_nothing(in_process: Run, shapes: Path) -> None:
    trained = in_process("train", shapes, *SHORT, "--quiet")
    assert (trained.returncode, trained.stdout, trained.stderr) == (0, "", "")


def test_files_that_cannot_be_read_are_named_counted_and_left_out(in_process: Run, tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures")
    whole = (folder / "even" / "00.png").read_bytes()
    (folder / "even" / "cut-short.png").write_bytes(whole[:-40])
    (folder / "odd" / "letter.jpg").write_text("a letter")
    trained = in_process("train", folder, "--latent", "2", "--steps", "2", "--batch-size", "8")
    assert trained.returncode == 0, trained.stderr
    assert "24 images, 8 x 8 RGB" in trained.stderr
    assert "skipped 2 files" in trained.stderr
    for name in ("cut-short.png", "letter.jpg"):
        assert sum(name in line for line in trained.stderr.splitlines()) == 1
    with np.load(tmp_path / "vae" / "holdout.npz") as holdout:
        assert len(holdout["images"]) == len(holdout["labels"]) == 2


def test_a_run_is_kept_unless_overwriting_is_asked_for(
    in_process: Run, assert_fails: Fails, shapes: Path, tmp_path: Path
) -> None:
    assert in_process("train", shapes, *SHORT).returncode == 0
    before = files_of(tmp_path / "vae")
    assert_fails(in_process("train", shapes, *SHORT, "--seed", "1"), 1, "already contains a run", "--overwrite")
    assert files_of(tmp_path / "vae") == before
    assert in_process("train", shapes, *SHORT, "--seed", "1", "--overwrite").returncode == 0
    after = files_of(tmp_path / "vae")
    assert after["model.safetensors"] != before["model.safetensors"]
    assert json.loads(after["config.json"])["seed"] == 1
    assert set(after) == set(before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--steps", "3", "--epochs", "1"), ("--epochs", "--steps", "--max-minutes")),
        (("--steps", "3", "--max-minutes", "1"), ("--epochs", "--steps", "--max-minutes")),
        (("--epochs", "3", "--max-minutes", "1"), ("--epochs", "--steps", "--max-minutes")),
        (("--size", "4"), ("4x4", "at least 8x8")),
        (("--size", "8x4"), ("8x4", "at least 8x8")),
        (("--size", "abc"), ("--size abc",)),
        (("--size", "8x8x8"), ("--size 8x8x8",)),
        (("--size", "-8"), ("--size",)),
        (("--sigma", "-1"), ("--sigma", "-1")),
        (("--sigma", "0"), ("--sigma", "0")),
        (("--sigma", "nan"), ("--sigma", "nan")),
        (("--sigma", "large"), ("--sigma", "large")),
        (("--sigma", "0.1", "--likelihood", "bernoulli"), ("--sigma", "bernoulli")),
        (("--lr", "0"), ("--lr", "0")),
        (("--lr", "-1"), ("--lr", "-1")),
        (("--lr", "nan"), ("--lr", "nan")),
        (("--beta", "-1"), ("--beta",)),
        (("--beta", "nan"), ("--beta",)),
        (("--beta", "inf"), ("--beta",)),
        (("--free-bits", "1e39"), ("--free-bits", "at most 3e+38")),
        (("--steps", "0"), ("--steps",)),
        (("--epochs", "0"), ("--epochs",)),
        (("--max-minutes", "0"), ("--max-minutes",)),
        (("--max-minutes", "nan"), ("--max-minutes",)),
        (("--latent", "0"), ("--latent",)),
        (("--batch-size", "1"), ("--batch-size",)),
        (("--batch-size", "136"), ("batch size", "135")),
        (("--seed", "-1"), ("--seed",)),
        (("--likelihood", "poisson"), ("--likelihood",)),
        (("--device", "abacus"), ("--device",)),
        (("--no-such-option",), ("--no-such-option",)),
        (("one", "too", "many"), ("too",)),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_exits_2(
    in_process: Run,
    assert_fails: Fails,
    shapes: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    assert_fails(in_process("train", shapes.name, *options), 2, *words)
    assert names_in(tmp_path) == {"shapes.npy"}


def test_a_source_that_holds_no_images_exits_1(in_process: Run, assert_fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("a letter")
    np.save(tmp_path / "two.npy", np.zeros((2, 8, 8), np.uint8))
    np.save(tmp_path / "flat.npy", np.zeros((20, 8), np.uint8))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    before = names_in(tmp_path)
    for source, words in {
        "nowhere": ("there is no source nowhere",),
        "nowhere/*.png": ("there is no source nowhere/*.png",),
        "empty": ("empty holds no images",),
        "letters": ("letters holds no images",),
        "letters/letter.txt": ("is not a source of images",),
        "two.npy": ("2 images are too few",),
        "flat.npy": ("flat.npy", "(20, 8)"),
        "cut.npz": ("cut.npz cannot be read",),
    }.items():
        assert_fails(in_process("train", source), 1, *words)
    assert names_in(tmp_path) == before


def test_pictures_none_of_which_can_be_read_exit_1(in_process: Run, assert_fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "photo.png").write_text("a letter")
    assert_fails(in_process("train", "broken"), 1, "no readable image", "photo.png")


def test_a_place_that_is_no_run_is_not_trained_into(
    in_process: Run, assert_fails: Fails, shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.jpg").write_text("a photo")
    assert_fails(in_process("train", shapes, "-o", "photos", "--overwrite"), 1, "photos", "not a run")
    assert names_in(tmp_path / "photos") == {"photo.jpg"}


def test_the_console_script_ends_as_the_function_does(vaekit: Run, assert_fails: Fails, tmp_path: Path) -> None:
    assert_fails(vaekit("train", "--sigma", "-1"), 2, "--sigma")
    assert_fails(vaekit("sample"), 1, "there is no bundle")
    assert names_in(tmp_path) == set()


def test_what_is_no_run_is_not_exported(in_process: Run, assert_fails: Fails) -> None:
    assert_fails(in_process("export", "."), 1, "is not a run", "vaekit train")


def test_nothing_is_not_exported(in_process: Run, assert_fails: Fails, tmp_path: Path) -> None:
    assert_fails(in_process("export"), 1, "there is no run at vae", "vaekit train -o vae")
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--opset", "16"), ("opset 16", "17 to ")),
        (("--opset", "99"), ("opset 99", "17 to ")),
        (("--opset", "new"), ("--opset",)),
        (("--atol", "-1"), ("--atol",)),
        (("--atol", "nan"), ("atol nan",)),
        (("--rtol", "inf"), ("rtol inf",)),
        (("--golden", "faces"), ("--golden",)),
    ],
    ids=" ".join,
)
def test_a_wrong_export_exits_2(
    in_process: Run, assert_fails: Fails, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_fails(in_process("export", *options), 2, *words)


def wait_for_metrics(training: subprocess.Popen[str], run: Path) -> None:
    deadline = time.monotonic() + 60
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert training.poll() is None, training.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_keeps_what_was_learnt(number: signal.Signals, shapes: Path, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("vaekit")
    command = [str(script), "train", shapes.name, "--latent", "2", "--steps", "1000000", "--batch-size", "32"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as training:
        try:
            wait_for_metrics(training, tmp_path / "vae")
            training.send_signal(number)
            _, said = training.communicate(timeout=60)
        finally:
            training.kill()
    assert training.returncode == 0, said
    assert "stopping: keeping what was learnt" in said
    assert "stopped early" in said
    assert said.splitlines()[-1] == "next: vaekit export"
    assert "Traceback" not in said
    assert load_run(tmp_path / "vae").mixture is not None


HIDE = """
import sys
from vaekit_cli.main import main
sys.modules[sys.argv.pop(1)] = None  # as if it were not installed
main()
"""


@pytest.mark.parametrize(
    ("command", "package"), [("train", "torch"), ("train", "safetensors"), ("export", "torch"), ("export", "onnx")]
)
def test_a_missing_extra_is_named_with_its_remedy(
    assert_fails: Fails, tmp_path: Path, command: str, package: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", HIDE, package, command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_fails(result, 1, package, "pip install 'vaekit[train]'")
    assert len(result.stderr.splitlines()) == 1
    assert names_in(tmp_path) == set()


@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason=f"{FASHION_MNIST} is not there: apt-get install dataset-fashion-mnist"
)
def test_fashion_mnist_trains(vaekit: Run, tmp_path: Path) -> None:
    trained = vaekit("train", "fashion-mnist", "--steps", "20", "--size", "14", "--latent", "2")
    assert trained.returncode == 0, trained.stderr
    assert "fashion-mnist: 60,000 images, 14 x 14 grey" in trained.stderr
    assert "images of 28 x 28 are resized" in trained.stderr
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert (config["channels"], config["height"], config["width"]) == (1, 14, 14)
    with np.load(tmp_path / "vae" / "holdout.npz") as holdout:
        assert holdout["images"].shape == (1000, 1, 14, 14)
        assert set(holdout["labels"]) == set(range(10))
