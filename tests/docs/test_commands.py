"""Every command block of the README, CONTRIBUTING.md and docs/ runs, or states why it cannot.

Rules for writers: blocks marked ``sh``, ``python`` and ``js`` run in one folder, page by page and in order; ``js`` runs
in Node.js, with what tests/web has installed from npm. The folder contains

- ``photos/``, 200 pictures of 16 x 16 pixels in two subfolders, and ``grey.npy``, images (200, 28, 28) of uint8;
- ``vae`` and ``vae-onnx``, the run and the bundle that the README's quick start has made.

Each Python block is a separate program. With ``title="NAME.py"`` it is written to a file for the following blocks. A
block that cannot run has a line ``<!-- illustration: REASON -->`` directly above it.

Training is shortened: ``vaekit train`` runs 30 steps unless the block sets a length, and uses ``photos`` unless the
block names a source. The default source and length are tested in tests/cli and measured in benchmarks/.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaekit.images.shapes import draw_shapes

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

RUN = ("sh", "python", "js")
MODULES = ROOT / "tests" / "web" / "node_modules"
HAS_NODE = MODULES.is_dir() and shutil.which("node") is not None
SHOWN = ("text", "json", "toml", "yaml", "ini", "dockerfile")

_BLOCK = re.compile(r"^(?P<above>[^\n]*)\n```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_ILLUSTRATION = re.compile(r"<!-- illustration: (.{10,}) -->")
_COMMAND = re.compile(r"^(?: {4}|\t)\s*(?:vaekit|python3?|pip|bash|torchrun|\.venv|source) ", re.MULTILINE)

# Replaces `vaekit` while the blocks run, so that training takes seconds instead of minutes.
_SHORTENED = """\
#!/bin/sh
if [ "$1" = train ]; then
    case "$2" in ''|-*) case " $* " in *" --config "*) ;; *) shift; set -- train photos "$@" ;; esac ;; esac
    case " $* " in *" --steps "*|*" --epochs "*|*" --max-minutes "*) ;; *) set -- "$@" --steps 30 ;; esac
fi
exec "{script}" "$@"
"""


COMMANDS = {
    "sh": ["bash", "-euo", "pipefail"],
    "python": [sys.executable, "-"],
    "js": ["node", "--input-type=module", "-"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    place: str
    """Return page and line, for messages."""
    language: str
    title: str
    code: str
    reason: str | None
    """Return why the block is not run, or None if it is."""


def blocks(page: Path) -> Iterator[Block]:
    """Return all fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("info")) + 1
        illustration = _ILLUSTRATION.fullmatch(found["above"])
        title = re.search(r'title="(.+?)"', found["info"])
        yield Block(
            f"{page.relative_to(ROOT)}:{line}",
            found["info"].split(" ")[0],
            title[1] if title else "",
            found["code"],
            illustration[1] if illustration else None,
        )


def run_page(page: Path, folder: Path) -> int:
    """Run a page's blocks in a folder; return their number, or fail at the first failure."""
    count = 0
    for block in blocks(page):
        if block.reason is not None or block.language not in RUN or (block.language == "js" and not HAS_NODE):
            continue
        if block.title:
            (folder / block.title).write_text(block.code, encoding="utf-8")
            continue
        count += 1
        # A shell would hand the rest of a script on stdin to its commands.
        of_shell = block.language == "sh"
        result = subprocess.run(
            [*COMMANDS[block.language], *(["-c", block.code] if of_shell else [])],
            input="" if of_shell else block.code,
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        if result.returncode:
            pytest.fail(f"{block.place} exits {result.returncode}:\n{block.code}\n{result.stdout}", pytrace=False)
    return count


def environment(folder: Path) -> dict[str, str]:
    """Return the blocks' environment: this Python's commands, after the shortened `vaekit`."""
    path = os.pathsep.join((str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    mine = {name: value for name, value in os.environ.items() if not name.startswith("VAEKIT_")}
    # Waiting threads must not spin, because other work shares the processors.
    return mine | {"PATH": path, "OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "agg"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which all blocks run, after running the README's blocks."""
    place = tmp_path_factory.mktemp("docs")
    pixels = draw_shapes(200, (16, 16)).images
    for number, image in enumerate(pixels):
        part = place / "photos" / ("left", "right")[number % 2]
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(part / f"{number:03}.png")
    np.save(place / "grey.npy", draw_shapes(200, (28, 28)).images[:, 0])
    if HAS_NODE:
        (place / "node_modules").mkdir()
        (place / "node_modules" / "vaekit").symlink_to(ROOT / "vaekit" / "web" / "javascript")
        (place / "node_modules" / "onnxruntime-node").symlink_to(MODULES / "onnxruntime-node")
    script = place / "bin" / "vaekit"
    script.parent.mkdir()
    script.write_text(_SHORTENED.format(script=Path(sys.executable).with_name("vaekit")), encoding="utf-8")
    script.chmod(0o755)
    assert run_page(README, place) >= 3
    return place


def test_the_readmes_blocks_run(folder: Path) -> None:
    assert (folder / "vae" / "model.safetensors").is_file()
    assert (folder / "vae-onnx" / "manifest.json").is_file()
    assert (folder / "grid.png").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path, folder: Path) -> None:
    run_page(page, folder)
    if not HAS_NODE and any(block.language == "js" for block in blocks(page)):
        pytest.skip("the blocks of JavaScript need npm install --prefix tests/web --ignore-scripts")


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = list(blocks(page))
    assert text.count("\n```") == 2 * len(found), f"{page.name} has a fenced block that this test does not read"
    for block in found:
        assert block.language in (*RUN, *SHOWN), f"{block.place}: name the block's language, one of {RUN} or {SHOWN}"
        assert block.reason is None or block.language in RUN, f"{block.place}: {block.language} is never run"
    outside = _BLOCK.sub("", text)
    assert not (command := _COMMAND.search(outside)), f"{page.name}: fence the command {command[0].strip()!r}"
    marked = re.findall(r"^<!-- illustration", text, re.MULTILINE)
    assert len(marked) == sum(block.reason is not None for block in found), f"{page.name}: a mark is not above a block"


def test_the_one_line_form_is_the_quick_start() -> None:
    one_line = next(block for block in blocks(README) if "vaekit train &&" in block.code)
    (three,) = (block for block in blocks(README) if block.code.startswith("vaekit train\n"))
    steps = [step.removeprefix(".venv/bin/") for step in one_line.code.strip().split(" && ")]
    assert steps[2:] == three.code.strip().splitlines()
