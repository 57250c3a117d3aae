"""Checks of numbers in arguments, and of those in arrays."""

from __future__ import annotations

import operator
from numbers import Real
from typing import TypeGuard

import numpy as np

from vaekit.errors import UsageError
from vaekit.types import Array

_BITS_OF_ONE = 0x3F800000
"""float32's 1, read as an integer. From 0 on, float32 numbers keep their order then; -0, other negatives and NaN come
after them."""


def as_integer(value: object, what: str) -> int:
    """Return a whole number as an int.

    Python's and NumPy's integers are accepted. Raises UsageError for floats, booleans and other values. ``what`` names
    the value in the message.
    """
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]  # other types raise TypeError
        except TypeError:
            pass
    raise UsageError(f"the {what} must be a whole number, not {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a real number and not a boolean.

    Python's and NumPy's numbers are accepted.
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def in_unit_interval(array: Array) -> bool:
    """Return whether all numbers, float32, are finite and in [0, 1].

    This reads the array once, unless it holds -0 or something wrong.
    """
    if not array.size or array.view(np.uint32).max() <= _BITS_OF_ONE:
        return True
    return bool(array.min() >= 0 and array.max() <= 1)  # NaN fails
