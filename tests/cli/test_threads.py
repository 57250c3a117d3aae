"""How long PyTorch's threads spin while they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vaekit_cli.threads import TORCH_COMMANDS, limit_spinning


def test_the_users_own_choice_stays() -> None:
    for own in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}):
        environment = dict(own)
        limit_spinning(environment)
        assert environment == own
    environment = {}
    limit_spinning(environment)
    assert environment == {"GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize(
    ("own", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_pytorchs_library_reads_it(tmp_path: Path, own: dict[str, str], expected: str) -> None:
    """The command imports PyTorch, and fails as its source is missing; the library prints what it has read."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **own}
    command = [sys.executable, "-m", "vaekit_cli", "train", "nowhere"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this PyTorch does not use libgomp")
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr


def test_the_edge_does_not_set_it() -> None:
    assert not {"sample", "encode", "decode", "score", "verify"} & set(TORCH_COMMANDS)
