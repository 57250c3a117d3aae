"""How well scores tell unusual things from usual ones: curves, the areas below them, and regions of masks.

The things are images with one score each, or pixels with the values of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaekit.types import Array

FOUND = 0.95
"""Share of unusual things at which false alarms are reported."""
PRO_LIMIT = 0.3
"""Share of usual pixels up to which the per-region overlap is integrated."""

_HALF_VALUES = 1 << 16
_LARGEST_HALF = 65504.0

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """How many usual and unusual things lie at or above each threshold, from the highest threshold to the lowest."""

    usual: Doubles
    """(K,), increasing from 0."""
    unusual: Doubles

    @property
    def false_alarms(self) -> Doubles:
        """Return the shares of usual things, (K,), the false positive rate."""
        return np.asarray(self.usual / self.usual[-1])

    @property
    def found(self) -> Doubles:
        """Return the shares of unusual things, (K,), the true positive rate or recall."""
        return np.asarray(self.unusual / self.unusual[-1])

    @property
    def auroc(self) -> float:
        """Return the area below ``found`` over ``false_alarms``; ties count half."""
        return _area(self.false_alarms, self.found)

    @property
    def average_precision(self) -> float:
        """Return the mean of the precision at each unusual thing: Σ (recall_k − recall_{k−1}) · precision_k."""
        precision = self.unusual[1:] / np.maximum(self.usual[1:] + self.unusual[1:], 1e-300)
        return float(np.sum(np.diff(self.found) * precision))

    @property
    def false_alarms_at_95(self) -> float:
        """Return the least share of usual things that must be flagged to flag 95 % of the unusual ones."""
        return float(self.false_alarms[np.searchsorted(self.found, FOUND - 1e-12)])

    def area_to(self, limit: float) -> float:
        """Return the mean of ``found`` over ``false_alarms`` from 0 to ``limit``."""
        end = int(np.searchsorted(self.false_alarms, limit)) + 1  # the first threshold that reaches the limit is kept
        x, y = self.false_alarms[:end].copy(), self.found[:end].copy()
        y[-1] = y[-2] + (y[-1] - y[-2]) * (limit - x[-2]) / (x[-1] - x[-2])
        x[-1] = limit
        return _area(x, y) / limit


def curve_of_scores(usual: Doubles, unusual: Doubles) -> Curve:
    """Compute the curve of scores, (N,) and (M,), neither of them empty."""
    values, places = np.unique(np.concatenate((usual, unusual)), return_inverse=True)
    counts = (np.bincount(part, minlength=len(values)) for part in (places[: len(usual)], places[len(usual) :]))
    return _curve(*counts)


class PixelCounts:
    """Counts of the pixels of maps by their value, in memory that does not grow with the number of maps.

    Values are rounded to half precision, which keeps three decimal digits.
    """

    def __init__(self) -> None:
        self._usual, self._unusual, self._regions = np.zeros((3, _HALF_VALUES))

    def add(self, values: Array, mask: NDArray[np.bool_] | None) -> None:
        """Count the pixels of one map (H, W). ``mask`` says which are unusual; None if none is.

        Needs scipy, to separate a mask's regions.
        """
        places = half_places(values)
        if mask is None:
            self._usual += _counted(places)
            return
        from scipy.ndimage import label

        self._usual += _counted(places[~mask])
        self._unusual += _counted(places[mask])
        regions, number = label(mask, np.ones((3, 3)))  # pixels that touch at a corner are of one region
        for region in range(1, number + 1):
            inside = places[regions == region]
            self._regions += _counted(inside) / len(inside)

    def __add__(self, other: PixelCounts) -> PixelCounts:
        both = PixelCounts()
        both._usual = self._usual + other._usual
        both._unusual = self._unusual + other._unusual
        both._regions = self._regions + other._regions
        return both

    @property
    def auroc(self) -> float:
        """Return the area below the pixels' ROC curve."""
        return _curve(self._usual, self._unusual).auroc

    @property
    def pro(self) -> float:
        """Return the area below the per-region overlap, up to 30 % of false positives, divided by 0.3.

        The overlap is the share of a region that is flagged, averaged over regions (Bergmann et al., "Uninformed
        Students", 2020).
        """
        return _curve(self._usual, self._regions).area_to(PRO_LIMIT)


def half_places(values: Array) -> NDArray[np.uint16]:
    """Return each value's place among all numbers of half precision, so that places are ordered as values are."""
    rounded = np.clip(values, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16) + np.float16(0)  # no negative zero
    bits = rounded.view(np.uint16)
    return np.where(bits >> 15, ~bits, bits | np.uint16(1 << 15))


def _counted(places: NDArray[np.uint16]) -> Doubles:
    return np.bincount(places.ravel(), minlength=_HALF_VALUES).astype(np.float64)


def _curve(usual: NDArray[np.int64] | Doubles, unusual: NDArray[np.int64] | Doubles) -> Curve:
    """Accumulate weights that are given by increasing value."""
    kept = (usual > 0) | (unusual > 0)
    return Curve(*(np.concatenate(([0.0], np.cumsum(part[kept][::-1]))) for part in (usual, unusual)))


def _area(x: Doubles, y: Doubles) -> float:
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
