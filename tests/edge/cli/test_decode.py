from __future__ import annotations

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
from vaekit.images.pixels import to_uint8
from vaekit.output.grid import grid

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Fails = Callable[..., None]
Finished = Callable[["subprocess.Popen[str]"], Result]

SCRIPT = Path(sys.executable).with_name("vaekit")

posix = pytest.mark.skipif(os.name != "posix", reason="signals and file size limits of POSIX")


def latents(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def listed(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


# Output


def test_a_grid_is_the_librarys(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    z = latents(10)
    np.savez(tmp_path / "z.npz", mu=latents(3, seed=1), z=z)  # decode uses z if there are both
    result = vaekit("decode", "z.npz", "-m", tiny_bundle, "--columns", "3")
    assert (result.returncode, result.stdout) == (0, "")
    assert listed(tmp_path) == {"z.npz", "decoded.png"}
    np.testing.assert_array_equal(pixels(tmp_path / "decoded.png"), grid(package.load(tiny_bundle).decode(z), 3))
    told, following = result.stderr.splitlines()
    assert all(word in told for word in ("decoded.png", "10 images", "z.npz", "cpu"))
    assert following.startswith("next: vaekit ")


def test_a_folder_gets_exactly_one_picture_a_row(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    z = latents(300)  # enough for several writing processes
    np.savez(tmp_path / "z.npz", mu=z, logvar=z, paths=np.array(["a"] * 300, "S"))
    (tmp_path / "out").mkdir()
    result = vaekit("decode", "z.npz", "-m", tiny_bundle, "-o", "out", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"output": "out", "count": 300, "provider": "cpu", "model": str(tiny_bundle)}
    assert listed(tmp_path) == {"z.npz", "out"}
    assert sorted(listed(tmp_path / "out")) == [f"{number:06}.png" for number in range(300)]
    written = np.stack([pixels(tmp_path / "out" / f"{number:06}.png") for number in range(300)])
    np.testing.assert_array_equal(written, to_uint8(package.load(tiny_bundle).decode(z))[:, 0])


def test_latents_come_in_every_format(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    z = latents(5)
    np.save(tmp_path / "half.npy", z.astype(np.float16))
    np.save(tmp_path / "double.npy", z.astype(np.float64))
    np.savez_compressed(tmp_path / "only.npz", any_name=z)
    for name in ("half.npy", "double.npy", "only.npz"):
        result = vaekit("decode", name, "-m", tiny_bundle, "-o", f"{name}.png", "-q")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        difference = np.abs(pixels(tmp_path / f"{name}.png").astype(int) - grid(package.load(tiny_bundle).decode(z)))
        assert difference.max() <= 1


def test_what_encode_wrote_decodes_to_what_reconstructing_gives(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    vae = package.load(tiny_bundle)
    expected = grid(vae.reconstruct(images[:, None].astype(np.float32) / np.float32(255)))
    for suffix in ("npz", "npy", "parquet"):
        assert vaekit("encode", "images.npy", "-m", tiny_bundle, "-o", f"z.{suffix}").returncode == 0
        assert vaekit("decode", f"z.{suffix}", "-m", tiny_bundle, "-o", f"{suffix}.png").returncode == 0
        assert np.abs(pixels(tmp_path / f"{suffix}.png").astype(int) - expected).max() <= 1


# Errors


class Payload:
    """Leaves a trace if a pickle of it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("payload-ran",)


def with_value(value: float, row: int) -> NDArray[np.float64]:
    z = latents(400).astype(np.float64)
    z[row, 2] = value
    return z


REFUSED: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "no latents": ((), 2, ("latents",)),
    "a file that is not there": (("gone.npz",), 1, ("gone.npz", "vaekit encode")),
    "a picture": (("picture.png",), 2, ("picture.png", ".npz, .npy, .parquet")),
    "a folder": (("full",), 2, ("full", ".npz")),
    "latents of the wrong width": (("wide.npy",), 1, ("wide.npy", "(10, 5)", "(N, 4)")),
    "latents that are no rows": (("flat.npy",), 1, ("flat.npy", "(4,)", "(N, 4)")),
    "whole numbers": (("whole.npy",), 1, ("whole.npy", "int64", "floats")),
    "NaN": (("nan.npy",), 1, ("nan.npy", "row 7")),
    "infinity in a later part": (("infinite.npy",), 1, ("infinite.npy", "row 333")),
    "a number beyond float32": (("huge.npy",), 1, ("huge.npy", "row 20")),
    "NaN for a folder": (("infinite.npy", "-o", "new"), 1, ("infinite.npy", "row 333")),
    "no rows": (("hollow.npy",), 1, ("hollow.npy", "no latents")),
    "arrays of other names": (("others.npz",), 1, ("others.npz", "a, b", "`z`")),
    "pickles": (("pickled.npz",), 1, ("pickled.npz", "pickled objects")),
    "pickles in a .npy": (("pickled.npy",), 1, ("pickled.npy", "pickled objects")),
    "no archive": (("junk.npz",), 1, ("junk.npz", "cannot be read")),
    "no array": (("junk.npy",), 1, ("junk.npy", "cannot be read")),
    "no parquet file": (("junk.parquet",), 1, ("junk.parquet", "cannot be read")),
    "a file that is cut short": (("cut.npy",), 1, ("cut.npy", "cut short", "row 396")),
    "a grid too large": (("many.npy",), 2, ("30,000 images", "million pixels", "folder")),
    "another suffix": (("good.npy", "-o", "z.gif"), 2, ("z.gif", ".png")),
    "a folder that is not empty": (("good.npy", "-o", "full"), 1, ("full", "not empty")),
    "a file in the folder's place": (("good.npy", "-o", "file"), 1, ("cannot write file", "file")),
    "a file for a folder above": (("good.npy", "-o", "file/new"), 1, ("cannot write file/new",)),
    "a folder that is not there": (("good.npy", "-o", "none/z.png"), 1, ("cannot write none/z.png",)),
    "no columns": (("good.npy", "--columns", "0"), 2, ("--columns",)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_decoded_ends_in_one_line_and_writes_nothing(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, what: str
) -> None:
    if what == "no parquet file":
        pytest.importorskip("pyarrow")
    arrays: dict[str, NDArray[Any]] = {
        "good": latents(2),
        "long": latents(400),
        "wide": np.zeros((10, 5), np.float32),
        "flat": latents(1)[0],
        "whole": np.ones((3, 4), np.int64),
        "nan": with_value(np.nan, 7),
        "infinite": with_value(-np.inf, 333),
        "huge": with_value(1e300, 20),
        "hollow": latents(0),
        "many": np.zeros((30_000, 4), np.float16),
        "pickled": np.array([Payload()], object),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    np.savez(tmp_path / "others.npz", a=latents(1), b=latents(1))
    np.savez(tmp_path / "pickled.npz", allow_pickle=True, z=np.array([Payload()], object))
    for name in ("junk.npz", "junk.npy", "junk.parquet", "picture.png", "file"):
        (tmp_path / name).write_text("junk")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "long.npy").read_bytes()[: -4 * 4 * 4 + 3])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old").touch()
    before = listed(tmp_path)
    arguments, code, words = REFUSED[what]
    result = vaekit("decode", *arguments, env={"VAEKIT_MODEL": str(tiny_bundle)})
    assert_fails(result, code, *words)
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)
    assert listed(tmp_path) == before
    assert listed(tmp_path / "full") == {"old"}


@posix
@pytest.mark.parametrize(("output", "kilobytes"), [("old.png", 1), ("new", 0)])
def test_a_full_disk_leaves_the_old_picture_or_none(
    assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, output: str, kilobytes: int
) -> None:
    np.save(tmp_path / "z.npy", latents(100))
    (tmp_path / "old.png").write_text("old")
    shell: list[str | Path] = [
        "sh",
        "-c",
        'ulimit -f "$1"; shift; exec "$@"',
        "sh",
        str(2 * kilobytes),
    ]  # blocks of 512 bytes
    command: list[str | Path] = [*shell, SCRIPT, "decode", "z.npy", "-m", tiny_bundle, "-o", output]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert_fails(result, 1, f"cannot write {output}", "File too large")
    assert len(result.stderr.splitlines()) == 1
    assert listed(tmp_path) == {"z.npy", "old.png"}
    assert (tmp_path / "old.png").read_text() == "old"


@posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_folder_is_written_leaves_nothing(
    assert_fails: Fails, finished: Finished, tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    np.save(tmp_path / "z.npy", np.zeros((100_000, 4), np.float16))
    command: list[str | Path] = [SCRIPT, "decode", "z.npy", "-m", tiny_bundle, "-o", "out"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    while process.poll() is None and not any(tmp_path.glob(".out.*/*.png")):
        time.sleep(0.002)
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C is sent to every process of the terminal
    else:
        process.terminate()
    result = finished(process)
    code, word = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated")}[name]
    assert_fails(result, code, word)
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)
    assert listed(tmp_path) == {"z.npy"}
