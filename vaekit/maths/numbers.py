"""Numbers as callers give them."""

from __future__ import annotations

import operator
from numbers import Real
from typing import TypeGuard

from vaekit.errors import UsageError


def as_integer(value: object, what: str) -> int:
    """Return a whole number, Python's or NumPy's, as an int.

    Raises UsageError for any other value, including floats and booleans.
    """
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]  # other types raise TypeError
        except TypeError:
            pass
    raise UsageError(f"the {what} must be a whole number, not {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a real number, Python's or NumPy's; booleans are not."""
    return isinstance(value, Real) and not isinstance(value, bool)
