"""What the start of `vaekit sample` imports is listed here, so that it does not grow unnoticed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

OTHERS = {"PIL", "numpy", "onnxruntime", "rich", "shellingham", "typer", "annotated_doc", "vaekit", "vaekit_cli"}
"""Packages that are not of Python itself. rich is typer's."""

OWN = [
    "vaekit",
    "vaekit.errors",
    "vaekit.types",
    "vaekit.vae",
    "vaekit.bundle",
    "vaekit.bundle.manifest",
    "vaekit.bundle.onnx_file",
    "vaekit.bundle.reading",
    "vaekit.images",
    "vaekit.images.labels",
    "vaekit.images.pixels",
    "vaekit.maths",
    "vaekit.maths.anomaly",
    "vaekit.maths.attributes",
    "vaekit.maths.elbo",
    "vaekit.maths.flow",
    "vaekit.maths.latents",
    "vaekit.maths.noise",
    "vaekit.maths.numbers",
    "vaekit.maths.prior",
    "vaekit.maths.surprise",
    "vaekit.maths.tiles",
    "vaekit.ort",
    "vaekit.ort.providers",
    "vaekit.ort.session",
    "vaekit.output",
    "vaekit.output.grid",
    "vaekit.output.table",
    "vaekit.system",
    "vaekit.system.files",
    "vaekit.system.machine",
    "vaekit_cli",
    "vaekit_cli.bundle_options",
    "vaekit_cli.commands",
    "vaekit_cli.commands.sample",
    "vaekit_cli.console",
    "vaekit_cli.main",
    "vaekit_cli.options",
    "vaekit_cli.output",
    "vaekit_cli.stopping",
    "vaekit_cli.threads",
]

SLOW = {
    "asyncio",
    "concurrent",
    "email",
    "http",
    "multiprocessing",
    "socket",
    "sqlite3",
    "ssl",
    "unittest",
    "xml",
    "zipfile",
}
"""Parts of Python that take long to import, and that drawing a picture does not need."""


@pytest.mark.parametrize("name", ["tiny", "flow"])
def test_a_sample_imports_what_it_needs(vaekit: Run, bundles: Path, name: str) -> None:
    command = ("sample", "-m", bundles / name, "-n", "4", "-o", "grid.png", "--provider", "cpu")
    result = vaekit(*command, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert result.returncode == 0, result.stderr
    names = set(re.findall(r"^import time:.*\|\s*([\w.]+)$", result.stderr, re.MULTILINE))
    assert "vaekit.vae" in names
    ours = {name for name in names if name.partition(".")[0] in ("vaekit", "vaekit_cli")}
    assert ours <= set(OWN)
    packages = {name.partition(".")[0] for name in names}
    of_site = {package for package in packages if re.match(r"_|sitecustomize|usercustomize|org$", package)}
    assert packages - set(sys.stdlib_module_names) - of_site <= OTHERS
    assert packages & SLOW == set()
