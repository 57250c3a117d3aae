"""Two commands that write to one place: one wins, whole."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vaekit.errors import VaekitError
from vaekit.system.files import only_writer

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

SCRIPT = Path(sys.executable).with_name("vaekit")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX systems only")


def contents(path: Path) -> dict[str, str]:
    """Return the hash of a file, or of every file below a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.name if file != path else "": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("output", ["grid.png", "pictures"])
def test_six_commands_write_one_place_at_once(vaekit: Run, tmp_path: Path, tiny_bundle: Path, output: str) -> None:
    seeds = range(6)
    alone = []
    for seed in seeds:
        own = f"{seed}-{output}"
        assert vaekit("sample", "-m", tiny_bundle, "-n", "30", "--seed", str(seed), "-o", own).returncode == 0
        alone.append(contents(tmp_path / own))
    together = [
        subprocess.Popen(
            [SCRIPT, "sample", "-m", tiny_bundle, "-n", "30", "--seed", str(seed), "-o", output],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in seeds
    ]
    told = [process.communicate()[1] for process in together]
    for process, text in zip(together, told, strict=True):
        assert process.returncode in (0, 1), text
        assert "Traceback" not in text
    assert any(process.returncode == 0 for process in together)
    assert contents(tmp_path / output) in alone
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with only_writer(tmp_path / "a" / "run"):
        with pytest.raises(VaekitError, match=r"another command is writing .*run"), only_writer(tmp_path / "a" / "run"):
            pytest.fail("two writers")
        with only_writer(tmp_path / "other"):
            pass
    with only_writer(tmp_path / "a" / "run"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VaekitError, match=r"cannot write .*file"), only_writer(tmp_path / "file" / "run"):
        pytest.fail("a folder in a file")


def test_where_there_are_no_locks_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_writer(tmp_path / "run"):
        pass


@pytest.mark.parametrize("words", [[], ["--resume"], ["--overwrite"]])
def test_encode_waits_for_nobody_and_mixes_nothing(
    vaekit: Run, assert_fails: Fails, tmp_path: Path, tiny_bundle: Path, words: list[str]
) -> None:
    assert vaekit("sample", "-m", tiny_bundle, "-n", "5", "-o", "photos").returncode == 0
    encode = ("encode", "photos", "-m", tiny_bundle, "-o", "codes.npz", *words)
    with only_writer(tmp_path / "codes.npz.partial"):
        assert_fails(vaekit(*encode), 1, "another command is writing codes.npz.partial")
    assert not (tmp_path / "codes.npz").exists()
    assert vaekit(*encode).returncode == 0
