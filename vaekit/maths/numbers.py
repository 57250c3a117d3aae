"""Checks of numbers in arguments."""

from __future__ import annotations

import operator
from numbers import Real
from typing import TypeGuard

from vaekit.errors import UsageError


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
