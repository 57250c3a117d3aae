from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import vaekit as package
from vaekit.images.picture import read_image
from vaekit.system.machine import usable_cpus

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Fails = Callable[..., None]
Finished = Callable[["subprocess.Popen[str]"], Result]

SCRIPT = Path(sys.executable).with_name("vaekit")

posix = pytest.mark.skipif(os.name != "posix", reason="signals, named pipes and file size limits of POSIX")


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def listed(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def encoded(tiny_bundle: Path, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Encode grey pictures (N, 8, 8) with the library."""
    return package.load(tiny_bundle).posterior(pixels[:, None].astype(np.float32) / np.float32(255))


def assert_same_latents(actual: NDArray[Any], expected: NDArray[np.float32]) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)  # another batch size may round differently


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Write three pictures, one of another size and colour in a subfolder, and two unreadable files."""
    folder = tmp_path / "pictures"
    (folder / "deep" / "deeper").mkdir(parents=True)
    for name, pixels in zip(("b.png", "a.png"), noise(2, seed=1), strict=True):
        Image.fromarray(pixels).save(folder / name)
    colours = np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(colours).save(folder / "deep" / "deeper" / "c.PNG")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "deep" / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not an image")
    return folder


# Output


def test_a_folder_becomes_the_librarys_latents_and_unreadable_files_are_named(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, pictures: Path
) -> None:
    result = vaekit("encode", "pictures", "-m", tiny_bundle)
    assert_fails(result, 1, "2 of 5 images", "broken.png", "latents.npz", "3 images", "--skip-errors")
    assert (result.stdout, listed(tmp_path)) == ("", {"pictures", "latents.npz"})
    told = result.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in told if line.startswith("skipped: ")] == [
        "pictures/broken.png",
        "pictures/deep/cut.png",
    ]
    assert any(line.startswith("next: vaekit decode latents.npz ") for line in told)
    names = ["pictures/a.png", "pictures/b.png", "pictures/deep/deeper/c.PNG"]
    read = np.stack([read_image(tmp_path / name, 1, (8, 8)) for name in names])[:, 0]
    with np.load(tmp_path / "latents.npz", allow_pickle=False) as latents:
        assert sorted(latents.files) == ["logvar", "mu", "paths"]
        assert [os.fsdecode(path) for path in latents["paths"]] == names
        for name, expected in zip(("mu", "logvar"), encoded(tiny_bundle, read), strict=True):
            assert_same_latents(latents[name], expected)


def test_skipped_errors_are_no_failure(vaekit: Run, tiny_bundle: Path, tmp_path: Path, pictures: Path) -> None:
    result = vaekit("encode", "pictures", "-m", tiny_bundle, "--skip-errors")
    assert result.returncode == 0
    assert "2 of 5 images could not be read" in result.stderr
    assert "error:" not in result.stderr
    quiet = vaekit("encode", "pictures", "-m", tiny_bundle, "--skip-errors", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_sources_of_every_kind_come_in_order(tiny_bundle: Path, tmp_path: Path, pictures: Path) -> None:
    pixels = noise(7, seed=3)
    np.save(tmp_path / "bytes.npy", pixels[:3])
    np.savez(tmp_path / "floats.npz", labels=np.arange(2), images=pixels[3:5, :, :, None] / np.float32(255))
    for name, image in zip(("x.png", "y.png"), pixels[5:], strict=True):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "list.txt").write_bytes(b"x.png\r\n\npictures/b.png\n")
    sources = ("pictures/[ab].png", "bytes.npy", "y.png", "floats.npz")
    for given, stdin in (("list.txt", None), ("-", (tmp_path / "list.txt").read_text())):
        result = subprocess.run(
            [SCRIPT, "encode", *sources, "--from-file", given, "-m", tiny_bundle, "-o", f"{given}.npz"],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "-.npz").read_bytes() == (tmp_path / "list.txt.npz").read_bytes()
    a, b = (read_image(pictures / name, 1, (8, 8)) for name in ("a.png", "b.png"))
    expected = np.concatenate((a, b, pixels[:3], pixels[6:], pixels[3:5], pixels[5:6], b))
    with np.load(tmp_path / "-.npz") as latents:
        assert [os.fsdecode(path) for path in latents["paths"]] == [
            *("pictures/a.png", "pictures/b.png", "bytes.npy[0]", "bytes.npy[1]", "bytes.npy[2]"),
            *("y.png", "floats.npz[0]", "floats.npz[1]", "x.png", "pictures/b.png"),
        ]
        assert_same_latents(latents["mu"], encoded(tiny_bundle, expected)[0])


def test_the_suffix_chooses_the_format(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pixels = noise(300)  # more than one batch, and more than one chunk between processes
    np.save(tmp_path / "images.npy", pixels)
    for suffix in ("npy", "parquet"):
        assert vaekit("encode", "images.npy", "-m", tiny_bundle, "-o", f"z.{suffix}").returncode == 0
    mu, logvar = encoded(tiny_bundle, pixels)
    assert_same_latents(np.load(tmp_path / "z.npy", allow_pickle=False), mu)
    table = parquet.read_table(tmp_path / "z.parquet").to_pydict()
    assert list(table) == ["path", "mu", "logvar"]
    assert table["path"] == [f"images.npy[{number}]" for number in range(300)]
    assert_same_latents(np.array(table["mu"], np.float32), mu)
    assert_same_latents(np.array(table["logvar"], np.float32), logvar)


def test_a_parquet_file_without_pyarrow_says_what_to_install(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", noise(1))
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "pyarrow.py").write_text("raise ImportError")
    env = {"PYTHONPATH": str(tmp_path / "missing")}
    result = vaekit("encode", "images.npy", "-m", tiny_bundle, "-o", "z.parquet", env=env)
    assert_fails(result, 1, "pip install 'vaekit[bulk]'")
    assert listed(tmp_path) == {"images.npy", "missing"}


def test_encode_tells_machines_in_one_document(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, pictures: Path
) -> None:
    result = vaekit("encode", "pictures", "-m", tiny_bundle, "-o", "z.npy", "--json")
    assert_fails(result, 1, "2 of 5 images")
    assert len(result.stderr.splitlines()) == 1
    assert json.loads(result.stdout) == {
        "output": "z.npy",
        "images": 3,
        "failures": 2,
        "provider": "cpu",
        "model": str(tiny_bundle),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_text_keep_their_bytes(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.fromarray(noise(1)[0]).save(folder / os.fsdecode(b"\xff\n.png"))
    assert vaekit("encode", "folder", "-m", tiny_bundle, "-o", "z.npz").returncode == 0
    with np.load(tmp_path / "z.npz") as latents:
        assert latents["paths"].tolist() == [b"folder/\xff\n.png"]


def test_no_resize_refuses_pictures_of_another_form(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path
) -> None:
    for name, shape in (("grey.png", (8, 8)), ("wide.png", (8, 9)), ("colours.png", (8, 8, 3))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / name)
    result = vaekit("encode", "*.png", "-m", tiny_bundle, "-o", "z.npz", "--no-resize")
    assert_fails(result, 1, "2 of 3 images")
    refused = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
    assert [line.split(":")[1].strip() for line in refused] == ["colours.png", "wide.png"]
    assert "in colour" in refused[0]
    assert "8x9" in refused[1]
    assert all("--no-resize" in line for line in refused)
    np.save(tmp_path / "wide.npy", np.zeros((2, 8, 9), np.uint8))
    assert_fails(vaekit("encode", "wide.npy", "-m", tiny_bundle, "--no-resize"), 1, "wide.npy", "8x9", "--no-resize")


# Errors


def bomb(side: int) -> bytes:
    """Return a small PNG file whose header claims sides of this many pixels."""
    whole = io.BytesIO()
    Image.new("L", (1, 1)).save(whole, "PNG")
    data = bytearray(whole.getvalue())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


REFUSED: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "no source": ((), 2, ("--from-file",)),
    "a source that is not there": (("nowhere",), 1, ("nowhere", ".npy")),
    "a glob that finds nothing": (("*.jpg",), 1, ("*.jpg",)),
    "a folder without pictures": (("hollow",), 1, ("hollow", ".png")),
    "an empty list": (("--from-file", "hollow.txt"), 1, ("no images", "hollow.txt")),
    "a list that is not there": (("--from-file", "nowhere.txt"), 1, ("cannot read nowhere.txt",)),
    "an empty array": (("hollow.npy",), 1, ("no images",)),
    "an array of pickles": (("pickled.npy",), 1, ("pickled.npy", "pickled objects")),
    "an array beyond [0, 1]": (("loud.npy",), 1, ("loud.npy", "[0, 1]")),
    "an array of NaN": (("nan.npy",), 1, ("nan.npy", "finite")),
    "an array of another shape": (("flat.npy",), 1, ("flat.npy", "(3, 64)")),
    "only unreadable pictures": (("broken.png", "bomb.png"), 1, ("none of the 2 images", "broken.png")),
    "a list of nothing that is there": (("--from-file", "names.txt"), 1, ("none of the 1 images", "gone.png")),
    "another suffix": (("good.npy", "-o", "z.csv"), 2, ("z.csv", ".npz", ".npy", ".parquet")),
    "a folder that is not there": (("good.npy", "-o", "none/z.npz"), 1, ("cannot write none/z.npz",)),
    "a folder in the way": (("good.npy", "-o", "hollow.npz"), 1, ("cannot write hollow.npz", "folder")),
    "a file for a folder": (("good.npy", "-o", "good.npy/z.npz"), 1, ("cannot write good.npy/z.npz",)),
    "a name too long": (("good.npy", "-o", "n" * 300 + ".npz"), 1, ("cannot write nnn",)),
    "a batch of none": (("good.npy", "--batch-size", "0"), 2, ("--batch-size",)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_encoded_ends_in_one_line_and_writes_nothing(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, what: str
) -> None:
    for folder in ("hollow", "hollow.npz"):
        (tmp_path / folder).mkdir()
    (tmp_path / "hollow.txt").write_text("\n")
    (tmp_path / "names.txt").write_text("gone.png\n")
    (tmp_path / "broken.png").write_text("no picture")
    (tmp_path / "bomb.png").write_bytes(bomb(60_000))
    arrays = {
        "good": noise(2),
        "hollow": noise(0),
        "pickled": np.array([{"a": 1}], object),
        "loud": np.full((2, 8, 8), 255.0),
        "nan": np.full((2, 8, 8), np.nan),
        "flat": np.zeros((3, 64)),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    before = listed(tmp_path)
    arguments, code, words = REFUSED[what]
    result = vaekit("encode", *arguments, env={"VAEKIT_MODEL": str(tiny_bundle)})
    assert_fails(result, code, *words)
    assert result.stdout == ""
    told = [line for line in result.stderr.splitlines() if not line.startswith("skipped: ")]
    assert len(told) == 1
    assert listed(tmp_path) == before


def test_nothing_on_stdin_is_named_so(assert_fails: Fails, tiny_bundle: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [SCRIPT, "encode", "--from-file", "-", "-m", tiny_bundle]
    result = subprocess.run(command, cwd=tmp_path, input="", capture_output=True, text=True, check=False)
    assert_fails(result, 1, "no images", "stdin")


# Interruptions


class Stopped:
    """Prepare an encode of 303 images, one of them unreadable. The last one is so large that it takes long."""

    arguments = ("encode", "first", "images.npy", "--from-file", "list.txt")

    def __init__(self, folder: Path, bundle: Path, output: str) -> None:
        self.folder, self.bundle, self.output = folder, bundle, output
        (folder / "first").mkdir()
        Image.fromarray(noise(1, seed=4)[0]).save(folder / "first" / "a.png")
        (folder / "first" / "broken.png").write_text("no picture")
        np.save(folder / "images.npy", noise(300))
        (folder / "list.txt").write_text("last.png\n")

    def start(self) -> None:
        """Run until only the last picture is missing, then kill the process with SIGKILL."""
        Image.new("L", (9_900, 9_900)).save(self.folder / "last.png", compress_level=1)
        command: list[str | Path] = [SCRIPT, *self.arguments, "-m", self.bundle, "-o", self.output]
        process = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True)
        wait_for_rows(process, self.folder / f"{self.output}.partial", 301)
        process.kill()
        process.communicate(timeout=60)
        (self.folder / "last.png").unlink()
        Image.fromarray(noise(1, seed=5)[0]).save(self.folder / "last.png")


def last_rows(partial: Path) -> int:
    """Return the rows that the last whole line of the state counts."""
    return int(json.loads((partial / "state.json").read_text().rpartition("\n")[0].splitlines()[-1])["rows"])


def wait_for_rows(process: subprocess.Popen[str], partial: Path, rows: int) -> None:
    """Wait until the unfinished work has this many rows."""
    while process.poll() is None:
        try:
            if last_rows(partial) >= rows:
                return
        except (FileNotFoundError, IndexError, ValueError):
            pass
        time.sleep(0.002)
    pytest.fail(f"it ended too early: {process.communicate()}")


@pytest.fixture
def stopped(tmp_path: Path, tiny_bundle: Path) -> Stopped:
    work = Stopped(tmp_path, tiny_bundle, "z.npz")
    work.start()
    return work


@posix
def test_a_killed_encode_goes_on_to_the_same_bytes(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, stopped: Stopped
) -> None:
    assert not (tmp_path / "z.npz").exists()
    with open(tmp_path / "z.npz.partial" / "mu", "ab") as file:
        file.write(b"half a row, as a crash leaves it")
    resumed = vaekit(*stopped.arguments, "-m", tiny_bundle, "-o", "z.npz", "--resume")
    assert_fails(resumed, 1, "1 of 303 images could not be read")
    assert "resuming after 302 of 303 images" in resumed.stderr
    unbroken = vaekit(*stopped.arguments, "-m", tiny_bundle, "-o", "whole.npz")
    assert_fails(unbroken, 1, "1 of 303 images could not be read", "broken.png")
    assert (tmp_path / "z.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert listed(tmp_path) == {"first", "images.npy", "last.png", "list.txt", "z.npz", "whole.npz"}


@posix
def test_unfinished_work_is_not_dropped_unasked(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, stopped: Stopped
) -> None:
    again = (*stopped.arguments, "-m", tiny_bundle, "-o", "z.npz")
    state = (tmp_path / "z.npz.partial" / "state.json").read_bytes()
    assert_fails(vaekit(*again), 1, "z.npz.partial", "301 latents", "--resume", "--overwrite")
    assert_fails(vaekit(*again, "--resume", "--no-resize"), 1, "z.npz.partial", "--overwrite")
    np.save(tmp_path / "images.npy", noise(301))
    assert_fails(vaekit(*again, "--resume"), 1, "z.npz.partial", "other images", "--overwrite")
    assert (tmp_path / "z.npz.partial" / "state.json").read_bytes() == state
    assert not (tmp_path / "z.npz").exists()
    assert vaekit(*again, "--overwrite", "--skip-errors").returncode == 0
    with np.load(tmp_path / "z.npz") as latents:
        assert latents["mu"].shape == (303, 4)
    assert not (tmp_path / "z.npz.partial").exists()


@posix
def test_unfinished_work_that_is_damaged_is_named(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, stopped: Stopped
) -> None:
    again = (*stopped.arguments, "-m", tiny_bundle, "-o", "z.npz")
    os.truncate(tmp_path / "z.npz.partial" / "logvar", 5)
    assert_fails(vaekit(*again, "--resume"), 1, "logvar", "--overwrite")
    (tmp_path / "z.npz.partial" / "state.json").write_text("{")
    assert_fails(vaekit(*again, "--resume"), 1, "state.json", "remove z.npz.partial")


def test_resume_without_unfinished_work_starts(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", noise(2))
    assert vaekit("encode", "images.npy", "-m", tiny_bundle, "--resume").returncode == 0
    assert listed(tmp_path) == {"images.npy", "latents.npz"}


def start_long(folder: Path, bundle: Path) -> subprocess.Popen[str]:
    """Encode one picture 60,000 times with reader processes, in a process group of its own."""
    Image.fromarray(noise(1)[0]).save(folder / "a.png")
    (folder / "list.txt").write_text("a.png\n" * 60_000)
    command: list[str | Path] = [SCRIPT, "encode", "--from-file", "list.txt", "-m", bundle, "-o", "z.npz"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_signal_leaves_what_is_done_and_no_process(
    assert_fails: Fails, finished: Finished, tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "z.npz").write_text("old")
    process = start_long(tmp_path, tiny_bundle)
    wait_for_rows(process, tmp_path / "z.npz.partial", 1)
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C is sent to every process of the terminal
    else:
        process.send_signal(signal.Signals[name])
    result = finished(process)
    rows = last_rows(tmp_path / "z.npz.partial")
    assert 0 < rows < 60_000
    assert result.stdout == ""
    assert (tmp_path / "z.npz").read_text() == "old"
    assert listed(tmp_path) == {"a.png", "list.txt", "z.npz", "z.npz.partial"}
    if name == "SIGKILL":
        assert result.returncode == -signal.SIGKILL
        assert "Traceback" not in result.stderr
        return
    waiting = re.search(r"^([\d,]+) latents are kept in z.npz.partial: add --resume ", result.stderr, re.MULTILINE)
    assert waiting is not None
    assert abs(int(waiting[1].replace(",", "")) - rows) <= 256  # the signal may arrive while a chunk is being counted
    code, word = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated")}[name]
    assert_fails(result, code, word)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
@pytest.mark.skipif(usable_cpus() < 2, reason="one processor gets no other processes")
def test_ctrl_c_while_processes_start_is_one_line(
    assert_fails: Fails, finished: Finished, tiny_bundle: Path, tmp_path: Path
) -> None:
    process = start_long(tmp_path, tiny_bundle)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and not any(b"spawn_main" in line for line in command_lines(children)):
        time.sleep(0.001)
    time.sleep(0.03)  # while they import modules
    os.killpg(process.pid, signal.SIGINT)
    assert_fails(finished(process), 130, "interrupted")
    assert not (tmp_path / "z.npz").exists()


def command_lines(children: Path) -> Iterator[bytes]:
    try:
        for child in children.read_text().split():
            yield Path(f"/proc/{child}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return


# A full disk, simulated by a limit on file sizes


def run_limited(kilobytes: int, *arguments: str | Path, cwd: Path, stdin: str | None = None) -> Result:
    shell: list[str | Path] = [
        "sh",
        "-c",
        'ulimit -f "$1"; shift; exec "$@"',
        "sh",
        str(2 * kilobytes),
        SCRIPT,
    ]  # blocks of 512 bytes
    return subprocess.run(
        [*shell, *arguments], cwd=cwd, input=stdin, capture_output=True, text=True, check=False, timeout=300
    )


@posix
@pytest.mark.parametrize("kilobytes", [100, 400], ids=["half way", "as the file is put together"])
def test_a_full_disk_leaves_the_old_file_and_the_work_so_far(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, kilobytes: int
) -> None:
    np.save(tmp_path / "images.npy", noise(20_000))  # 320 kilobytes each of mu and logvar
    (tmp_path / "z.npz").write_text("old")
    again = ("encode", "images.npy", "-m", tiny_bundle, "-o", "z.npz")
    result = run_limited(kilobytes, *again, cwd=tmp_path)
    assert_fails(result, 1, "cannot write z.npz", "File too large")
    kept = "latents are kept in z.npz.partial"
    assert any(kept in line and "--resume" in line for line in result.stderr.splitlines())
    assert (tmp_path / "z.npz").read_text() == "old"
    assert listed(tmp_path) == {"images.npy", "z.npz", "z.npz.partial"}
    assert vaekit(*again, "--resume").returncode == 0
    assert vaekit("encode", "images.npy", "-m", tiny_bundle, "-o", "whole.npz").returncode == 0
    assert (tmp_path / "z.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


@posix
def test_a_full_temporary_folder_is_named(assert_fails: Fails, tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ("encode", "--from-file", "-", "-m", tiny_bundle)
    result = run_limited(100, *arguments, cwd=tmp_path, stdin="a/picture.png\n" * 20_000)
    assert_fails(result, 1, "temporary", "File too large")
    assert "VAEKIT_DEBUG" not in result.stderr  # a traceback hint would mean an unexpected exception
    assert listed(tmp_path) == set()


# Lists and leftovers


@pytest.mark.parametrize("place", ["list.txt", "-"])
def test_the_mark_that_editors_begin_lists_with_is_skipped(tiny_bundle: Path, tmp_path: Path, place: str) -> None:
    for name in ("zwölf.png", "b.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("\ufeffzwölf.png\r\nb.png\n", encoding="utf-8")
    command: list[str | Path] = [SCRIPT, "encode", "--from-file", place, "-m", tiny_bundle, "-o", "a.npz"]
    with open(tmp_path / "list.txt", "rb") as file:
        done = subprocess.run(command, cwd=tmp_path, stdin=file, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "a.npz") as arrays:
        assert [path.decode() for path in arrays["paths"].tolist()] == ["zwölf.png", "b.png"]


def test_a_list_in_utf_16_says_so(vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n", encoding="utf-16")
    assert_fails(vaekit("encode", "--from-file", "list.txt", "-m", tiny_bundle, "-o", "a.npz"), 1, "UTF-16")


def test_leftovers_are_said_once_with_their_count(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("pets/a.png", "pets/.ipynb_checkpoints/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    (tmp_path / "pets" / "._a.png").write_bytes(b"no picture")
    done = vaekit("encode", "pets", "-m", tiny_bundle, "-o", "a.npz")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("skipped 1")]
    assert said == ["skipped 1 picture and 1 folder (names with a leading dot, or __MACOSX)"]
    with np.load(tmp_path / "a.npz") as arrays:
        assert len(arrays["mu"]) == 1
