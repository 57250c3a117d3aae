"""The notebook runs from top to bottom, as a newcomer would run it, and is committed without outputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first-bundle.ipynb"
NEEDED = ("nbclient", "ipykernel")


@pytest.mark.skipif(any(find_spec(name) is None for name in NEEDED), reason=f"needs {' and '.join(NEEDED)}")
def test_the_notebook_runs(tmp_path: Path) -> None:
    shutil.copy(NOTEBOOK, tmp_path)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    mine = {name: value for name, value in os.environ.items() if not name.startswith("VAEKIT_")}
    folders = {name: str(tmp_path / "jupyter") for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    # nbclient runs in a separate process, because it leaves sockets open.
    result = subprocess.run(
        [sys.executable, "-c", "from nbclient.cli import main; main()", "--timeout=120", NOTEBOOK.name],
        cwd=tmp_path,
        env=mine | folders | {"PATH": path, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert (tmp_path / "first-onnx" / "manifest.json").is_file()


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) > 5
    for cell in cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
