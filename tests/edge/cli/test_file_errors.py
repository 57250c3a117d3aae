"""An error of a file names that file, and says that it cannot be written only where it was to be written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vaekit_cli import main as entry

LONG = "n" * 300
OPENED = {
    "info": ("info", "-m", LONG),
    "info, within": ("info", "-m", f"{LONG}/bundle"),
    "verify": ("verify", "-m", LONG),
    "sample": ("sample", "-n", "1", "-o", "a.png", "-m", LONG),
    "decode": ("decode", f"{LONG}.npz", "-o", "a.png"),
    "score": ("score", f"{LONG}.npy", "-o", "a.csv"),
    "score, a list": ("score", "--from-file", LONG, "-o", "a.csv"),
}
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Entered = Callable[..., tuple[int, str]]


@pytest.fixture
def entered(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Entered]:
    """``entered("info")``: the code and stderr of a command on the tiny bundle, unless it names another."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        model = () if "-m" in arguments else ("-m", str(tiny_bundle))
        monkeypatch.setattr(sys, "argv", ["vaekit", *arguments, *model])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capfd.readouterr().err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("what", OPENED)
def test_a_name_too_long_to_open_is_not_called_unwritable(what: str, entered: Entered) -> None:
    code, said = entered(*OPENED[what])
    assert code == 1
    assert LONG in said
    assert "cannot write" not in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_file_that_cannot_be_read_is_not_called_unwritable(
    vaekit: Run, assert_fails: Callable[..., None], tiny_bundle: Path
) -> None:
    result = vaekit("score", "/proc/self/mem", "-o", "a.csv", "-m", tiny_bundle)  # whose first byte nobody can read
    assert_fails(result, 1, "/proc/self/mem: Input/output error")
    assert "cannot write" not in result.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, "Input/output error", "a.npy"), "a.npy: Input/output error"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "read or written: Connection timed out"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write to stdout: No space left on device"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_errors_of_files_say_no_more_than_is_known(
    error: OSError, words: str, entered: Entered, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(entry, "_app", fail)
    monkeypatch.setattr(entry, "_drop_stdout", lambda: None)
    code, said = entered("info")
    assert code == 1
    assert words in said


def test_results_that_do_not_fit_on_the_disk_are_stdouts(tiny_bundle: Path) -> None:
    with open("/dev/full", "w") as full:
        command: list[str | Path] = [Path(sys.executable).with_name("vaekit"), "info", "-m", tiny_bundle]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: cannot write to stdout: {os.strerror(errno.ENOSPC)}\n")
