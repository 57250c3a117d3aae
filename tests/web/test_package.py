"""The package that npm makes of the library."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

import vaekit

LIBRARY = Path(vaekit.__file__).parent / "web" / "javascript"

PROGRAM = """
import * as ort from "onnxruntime-node";
import { load } from "vaekit";
const vae = await load(process.argv[2], { ort });
console.log((await vae.verify()).passed, (await vae.sample(3, { label: "left" })).shape);
"""


def test_the_version_is_pythons() -> None:
    assert json.loads((LIBRARY / "package.json").read_text())["version"] == vaekit.__version__


def test_npm_packs_what_can_be_installed(node_modules: Path, bundles: Path, tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    subprocess.run([npm, "pack", "--silent", "--pack-destination", tmp_path, LIBRARY], check=True, cwd=tmp_path)
    (packed,) = tmp_path.glob("vaekit-*.tgz")
    with tarfile.open(packed) as archive:
        assert {Path(name).suffix for name in archive.getnames()} == {".js", ".json", ".md"}
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "package").rename(tmp_path / "node_modules" / "vaekit")
    (tmp_path / "node_modules" / "onnxruntime-node").symlink_to(node_modules / "onnxruntime-node")
    (tmp_path / "program.mjs").write_text(PROGRAM)
    command = ["node", "program.mjs", str(bundles / "labels")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout == "true [ 3, 1, 8, 8 ]\n", result.stderr
