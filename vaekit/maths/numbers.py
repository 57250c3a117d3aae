"""Numbers as callers give them."""

from __future__ import annotations

import operator
from numbers import Real
from typing import TypeGuard

from vaekit.errors import UsageError


def as_integer(value: object, what: str) -> int:
    """Return a whole number, Python's or NumPy's, as an int. Raises UsageError for floats, booleans and the rest."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]  # what has no index raises
        except TypeError:
            pass
    raise UsageError(f"the {what} must be a whole number, not {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, Python's or NumPy's, and no boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)
