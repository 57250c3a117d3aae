"""Files of the repository that a page names exist, so that a page cannot outlive a file that was renamed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("vaekit", "export", "cli", "tests", "benchmarks", "docs")

_NAME = re.compile(r"(?<![\w/.-])((?:[\w-]+/)*[\w-]+\.py)(?![\w/])")
_NOT_OURS = {"plain.py"}  # what the reader writes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_files_that_a_page_names_exist(page: Path) -> None:
    ours = {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    ours |= {path.name for path in ROOT.glob("*.py")}
    for name in set(_NAME.findall(page.read_text(encoding="utf-8"))) - _NOT_OURS:
        assert any(path == name or path.endswith(f"/{name}") for path in ours), f"{page.name} names {name}"
