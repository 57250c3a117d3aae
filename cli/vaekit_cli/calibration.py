"""Scores of usual images, against which `vaekit score --false-alarms` compares."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaekit.errors import SourceError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vaekit.maths.anomaly import ScoreName


@dataclass(frozen=True)
class Calibration:
    """Scores of usual images, and the share of usual images to flag."""

    rate: float
    """An image is flagged if its p-value is not higher."""
    scores: NDArray[np.float64]
    """(n,)."""


def read_calibration(path: Path, by: ScoreName, rate: float) -> Calibration:
    """Read the scores in a file that `vaekit score` wrote, as CSV or JSON lines.

    Raises SourceError if it cannot be read or is no such file, and UsageError if its scores are others than ``by``, or
    too few for the rate.
    """
    import numpy as np

    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = [row for row in _rows(file) if not row.get("error")]  # a watch's lines of unreadable pictures
        kinds = {row.get("score_by") or "elbo" for row in rows}
        scores = np.array([float(row["score"]) for row in rows])
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise SourceError(f"{path} holds no scores: give a file that `vaekit score -o FILE` wrote") from error
    if not len(scores) or not np.isfinite(scores).all():
        raise SourceError(f"{path} holds no scores, or some that are not finite: score good images again")
    if kinds != {by}:
        raise UsageError(f"{path} holds scores by {' and '.join(sorted(map(str, kinds)))}: add --score-by to match")
    _check_rate(rate, path, len(scores))
    return Calibration(rate, scores)


def _check_rate(rate: float, path: Path, count: int) -> None:
    """Raise UsageError unless ``count`` scores in a file allow this rate of false alarms."""
    from vaekit.maths.anomaly import least_calibration

    if not 0 < rate < 1:
        raise UsageError(f"--false-alarms is a share of the usual images, between 0 and 1, not {rate:g}")
    if count < (least := least_calibration(rate)):
        raise UsageError(f"--false-alarms {rate:g} needs the scores of {least:,} images or more; {path} has {count:,}")


def _rows(file: Iterable[str]) -> Iterable[dict[str, Any]]:
    lines = iter(file)
    first = next(lines, "")
    if first.startswith("{"):
        yield json.loads(first)
        yield from (json.loads(line) for line in lines if line.strip())
    else:
        yield from csv.DictReader(lines, next(csv.reader([first]), []))
