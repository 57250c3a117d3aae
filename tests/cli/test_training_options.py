"""The options of `vaekit train` match the training settings."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from vaekit.training.config import Config, Device, setting_of, types_of_settings

Run = Callable[..., "subprocess.CompletedProcess[str]"]

HIDDEN = "import sys; from vaekit_cli.main import main; sys.modules['torch'] = None; main()"


@pytest.fixture
def text(in_process: Run) -> str:
    """Return the help of `vaekit train` with single spaces between words."""
    return " ".join(in_process("train", "--help").stdout.split())


def test_each_setting_has_its_option_with_help_and_default(text: str) -> None:
    named = 0
    for known in dataclasses.fields(Config):
        setting = setting_of(known.name)
        if not setting.help:
            continue
        option = re.search(
            rf" --{known.name.replace('_', '-')} (?:.*? )?({re.escape(setting.help)}.*?)(?= --[a-z]|$)", text
        )
        assert option, known.name
        default = setting.shown.format(known.default) if setting.empty else str(known.default)
        if known.default not in (None, False) and default:
            assert default in option[1].partition("[default: ")[2]
        named += 1
    assert named > 15


def test_choices_are_those_of_the_types(text: str) -> None:
    for name in ("preset", "posterior", "likelihood", "objective", "binarize", "augment", "precision"):
        assert f"--{name} <{'|'.join(get_args(types_of_settings()[name]))}>" in text
    assert f"--device <auto|{'|'.join(get_args(Device))}>" in text


def test_options_stand_in_an_order_that_tells_what_belongs_together(text: str) -> None:
    order = ["--output", "--size", "--latent", "--likelihood", "--sigma", "--objective", "--epochs", "--steps"]
    places = [text.index(f"{option} ") for option in [*order, "--max-minutes", "--device", "--config", "--quiet"]]
    assert places == sorted(places)


@pytest.mark.parametrize("command", [(), ("train",), ("evaluate",)])
def test_help_needs_no_pytorch(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, *command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
