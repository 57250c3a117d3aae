"""Code shared by the timing benchmarks: medians and paired ratios. Not a benchmark itself."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaekit.system.machine import usable_cpus


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return the median, minimum and maximum of the pairwise ratios ours / theirs."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def show(what: str, spread: dict[str, float], aim: str) -> None:
    """Print a ratio, its range and the aim."""
    print(f"{what}: x{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f}); aim {aim}")


def machine() -> dict[str, Any]:
    """Describe this machine."""
    return {"processor": platform.machine(), "cpus": usable_cpus(), "python": platform.python_version()}


def write_json(path: Path | None, document: dict[str, Any]) -> None:
    """Write the results to the file of --json, if given."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **document}, indent=2) + "\n")
