"""The classes of images: numbers and their names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError

UNLABELLED = -1
"""The class number of an image without a class, if classes have names."""


@dataclass(frozen=True)
class Labels:
    """The classes of N images."""

    classes: NDArray[np.int64]
    """(N,). If classes have names, an image without a class has the number UNLABELLED."""
    names: tuple[str, ...] = ()
    """The classes' names by number. Empty if classes are known by number only."""

    def names_of(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """Return the class names of images; empty for an image without a class."""
        return tuple(self._name(int(self.classes[number])) for number in numbers)

    def _name(self, number: int) -> str:
        if self.names and number == UNLABELLED:
            return ""
        return self.names[number] if 0 <= number < len(self.names) else str(number)


def labels_of_array(source: str, array: NDArray[Any], count: int, names: tuple[str, ...] = ()) -> Labels:
    """Read the labels of ``count`` images from an array.

    Labels are numbers or words, (N,) or (N, 1), or one-hot rows (N, K). Whole numbers are class numbers, and ``names``
    names them. For words, and for numbers with a fraction, the classes are the distinct values, sorted. An empty word
    means no class. Raises SourceError for anything else.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf" and _is_one_hot(array):
        array = array.argmax(axis=1)
    if array.shape != (count,):
        raise SourceError(f"{source} has {count:,} images but labels of shape {array.shape}")
    if array.dtype.kind in "SU":
        return _of_words(np.char.decode(array, "utf-8", "backslashreplace") if array.dtype.kind == "S" else array)
    if array.dtype.kind not in "biuf":
        raise SourceError(f"{source} has labels of type {array.dtype}: give whole numbers or words")
    if array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.rint(array))).all():
        return _of_words(array.astype(str))
    return Labels(array.astype(np.int64), names)


def _is_one_hot(array: NDArray[Any]) -> bool:
    return bool(np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all())


def _of_words(words: NDArray[np.str_]) -> Labels:
    distinct, classes = np.unique(words, return_inverse=True)
    classes = classes.reshape(words.shape).astype(np.int64)
    if len(distinct) and not distinct[0]:  # the empty word sorts first
        distinct, classes = distinct[1:], classes - 1
    return Labels(classes, tuple(map(str, distinct)))
