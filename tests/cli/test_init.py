"""`vaekit train --init RUN`: training begins with another run's weights."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SHORT = ("--batch-size", "24", "--steps", "3", "-q")


@pytest.fixture
def first(in_process: Run, shapes: Path, tmp_path: Path) -> Path:
    """Train a small run with settings that are not the default."""
    options = ("--latent", "3", "--preset", "tiny", "--posterior", "isotropic", "--size", "9x11")
    done = in_process("train", shapes.name, *SHORT, *options, "-o", "first")
    assert done.returncode == 0, done.stderr
    return tmp_path / "first"


def test_the_weights_and_the_network_come_from_the_run(in_process: Run, shapes: Path, first: Path) -> None:
    done = in_process("train", shapes.name, *SHORT, "--lr", "1e-12", "--init", "first", "-o", "second")
    assert done.returncode == 0, done.stderr
    config = json.loads((first.parent / "second" / "config.json").read_text())
    assert [config[name] for name in ("latent", "preset", "posterior", "height", "width", "init")] == [
        *(3, "tiny", "isotropic"),
        *(9, 11, "first"),
    ]
    before, after = (load_file(first.parent / name / "model.safetensors") for name in ("first", "second"))
    weights = [name for name in before if name.endswith(("weight", "bias")) and not name.startswith("prior")]
    assert len(weights) > 8
    for name in weights:
        np.testing.assert_allclose(after[name], before[name], atol=1e-9)


def test_a_config_repeats_it(in_process: Run, shapes: Path, first: Path) -> None:
    for command in (
        ("train", shapes.name, *SHORT, "--init", "first", "-o", "a"),
        ("train", "--config", "a/config.json"),
    ):
        done = in_process(*command, *(("-o", "b", "-q") if "--config" in command else ()))
        assert done.returncode == 0, done.stderr
    a, b = ((first.parent / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--init", "first", "--latent", "4"), ("--init first has another network", "encoder.mu.weight is 3x")),
        (("--init", "first", "--preset", "small"), ("--init first has another network", "more. Leave out --latent")),
        (("--init", "nowhere"), ("there is no run at nowhere",)),
        (("--init", "grey"), ("--init grey was trained on grey images, and these are RGB",)),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(
    in_process: Run, shapes: Path, first: Path, options: tuple[str, ...], said: tuple[str, ...]
) -> None:
    np.save(first.parent / "grey.npy", np.random.default_rng(0).integers(0, 255, (30, 9, 11), np.uint8))
    assert in_process("train", "grey.npy", *SHORT, "-o", "grey").returncode == 0
    done = in_process("train", shapes.name, *SHORT, *options, "-o", "second")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for text in said:
        assert text in done.stderr
    assert not (first.parent / "second").exists()
