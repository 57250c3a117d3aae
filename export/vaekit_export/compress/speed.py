"""Comparison of bundles' speed; each timing runs in a separate process."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vaekit.diagnose.bench import bench, settings
from vaekit.ort.providers import Selection
from vaekit.system.machine import usable_cpus
from vaekit.types import GraphName

_BATCHES = (1, 64)
_ROUNDS = 3
_GRAPHS: dict[str, GraphName] = {"encode": "encoder", "decode": "decoder"}


@dataclass(frozen=True)
class Speed:
    """Images per second divided by the parent's, over several rounds.

    Each round times all bundles in turn.
    """

    median: float
    min: float
    max: float


Speeds = dict[int, Speed]
"""Speeds of one graph, by batch size."""


def compare_speed(parent: Path, bundles: Sequence[Path], seconds: float) -> list[dict[GraphName, Speeds]]:
    """Compare the speed of each bundle's graphs with the parent's.

    Each graph is timed for ``seconds`` at two batch sizes in three rounds, with a thread for every usable processor.
    """
    found: list[dict[GraphName, Speeds]] = [{graph: {} for graph in _GRAPHS.values()} for _ in bundles]
    for setting in settings(_BATCHES, [usable_cpus()]):
        rounds = [
            [next(bench(path, Selection("cpu"), [setting], seconds=seconds)) for path in (parent, *bundles)]
            for _ in range(_ROUNDS)
        ]
        for index, speeds in enumerate(found, start=1):
            ratios = [timings[index].images_per_second / timings[0].images_per_second for timings in rounds]
            speed = Speed(statistics.median(ratios), min(ratios), max(ratios))
            speeds[_GRAPHS[setting.operation]][setting.batch] = speed
    return found
