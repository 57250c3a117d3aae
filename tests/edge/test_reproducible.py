"""The same command, seed and versions give the same bytes, whatever the number of threads."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vaekit as package

Run = Callable[..., "subprocess.CompletedProcess[str]"]

FAMILIES = ["demo", "tiny", "deterministic", "labels", "flow", "free", "map"]


def model_of(bundles: Path, name: str) -> str | Path:
    return name if name == "demo" else bundles / name


@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_do_not_depend_on_the_number_of_threads(bundles: Path, name: str) -> None:
    def computed(threads: int, batch_size: int) -> list[np.ndarray]:
        vae = package.load(model_of(bundles, name), provider="cpu", threads=threads, batch_size=batch_size)
        images = vae.sample(67, seed=5)
        mu, logvar = vae.encode(images)
        return [images, mu, *([] if logvar is None else [logvar])]

    wanted = computed(1, 64)
    for threads in (2, 3, 5):
        for found, one in zip(computed(threads, 64), wanted, strict=True):
            np.testing.assert_array_equal(found, one)


@pytest.mark.parametrize("name", FAMILIES)
def test_files_do_not_depend_on_the_number_of_threads(vaekit: Run, tmp_path: Path, bundles: Path, name: str) -> None:
    for threads in ("1", "2", "3"):
        common = ("-m", model_of(bundles, name), "--provider", "cpu", "--threads", threads, "-q")
        for words in (
            ("sample", "-n", "9", "-o", f"{threads}.png"),
            ("sample", "-n", "9", "-o", f"photos-{threads}"),
            ("encode", "photos-1", "-o", f"{threads}.npz"),
            ("decode", f"{threads}.npz", "-o", f"decoded-{threads}"),
        ):
            done = vaekit(*words, *common)
            assert done.returncode == 0, done.stderr
    for kind in ("{}.png", "photos-{}", "{}.npz", "decoded-{}"):
        one, *others = (contents(tmp_path / kind.format(threads)) for threads in (1, 2, 3))
        assert others == [one, one], kind


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of every file of a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name if path.is_dir() else "": file.read_bytes() for file in files}
