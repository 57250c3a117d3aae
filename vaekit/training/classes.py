"""The classes of a source that a prior can be asked for: those with enough training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaekit.images.dataset import Images
from vaekit.images.labels import UNLABELLED, Labels
from vaekit.training.holdout import Split

FEWEST_IMAGES = 10
"""A class with fewer training images is not learnt."""


@dataclass(frozen=True)
class Classes:
    """The classes of a split's images. UNLABELLED is the number of an image of no class."""

    names: tuple[str, ...]
    """By class number; two or more."""
    of_training: NDArray[np.int64]
    """(N,), class numbers of the training images."""
    of_holdout: NDArray[np.int64]
    """(M,), class numbers of the held-out images."""
    too_small: tuple[str, ...]
    """Names of the classes with fewer than FEWEST_IMAGES training images; their images count as of no class."""


def classes_of(split: Split) -> Classes | None:
    """Return the classes of a split's images, named as in the source of the training images.

    Returns None if that source has no labels, or fewer than two classes with enough training images.
    """
    counts: dict[str, int] = {}
    names, rows = _named(split.images, split.training)
    for name, count in zip(names, np.bincount(rows, minlength=len(names)), strict=True):
        if name:
            counts[name] = counts.get(name, 0) + int(count)
    large = tuple(name for name, count in counts.items() if count >= FEWEST_IMAGES)
    if len(large) < 2:
        return None
    numbers = {name: number for number, name in enumerate(large)}
    return Classes(
        large,
        _numbered(split.images, split.training, numbers),
        _numbered(split.measured, split.holdout, numbers),
        tuple(name for name in counts if name not in numbers),
    )


def _named(images: Images, chosen: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the names of the classes of chosen images, by their number in the source, and each image's place there.

    The name is empty for images of no class.
    """
    if images.labels is None:
        return ("",), np.zeros(len(chosen), np.int64)
    distinct, rows = np.unique(images.labels[chosen], return_inverse=True)
    return Labels(distinct, images.label_names).names_of(range(len(distinct))), rows


def _numbered(images: Images, chosen: NDArray[np.int64], numbers: Mapping[str, int]) -> NDArray[np.int64]:
    names, rows = _named(images, chosen)
    return np.array([numbers.get(name, UNLABELLED) for name in names], np.int64)[rows]
