"""The tables of docs/speed.md are what the results in benchmarks/results give."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_are_those_of_the_results() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "speed_page.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run python benchmarks/speed_page.py"


def test_every_result_is_a_table_of_the_page() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    tables = re.findall(r"<!-- table: (\w+) -->", page)
    results = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json"))
    assert sorted(tables) == results
