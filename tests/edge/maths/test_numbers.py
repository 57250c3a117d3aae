from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from vaekit.maths.numbers import in_unit_interval

NUMBERS = st.one_of(st.floats(width=32), st.floats(0, 1, width=32))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(npst.arrays(np.float32, npst.array_shapes(max_dims=3, max_side=5, min_side=0), elements=NUMBERS))
def test_the_unit_interval_holds_what_comparisons_say(array: NDArray[np.float32]) -> None:
    assert in_unit_interval(array) == all(0 <= number <= 1 for number in array.ravel().tolist())


@pytest.mark.parametrize(
    ("number", "inside"),
    [
        *((number, True) for number in (0.0, -0.0, 1.0, 1e-45)),
        *((number, False) for number in (np.nextafter(np.float32(1), np.float32(2)), -1e-45)),
        *((number, False) for number in (np.nan, -np.nan, np.inf, -np.inf)),
    ],
)
def test_the_ends_of_the_unit_interval(number: float, inside: bool) -> None:
    array = np.full((2, 3), 0.5, np.float32)
    array[1, 1] = number
    assert in_unit_interval(array) == inside
    assert in_unit_interval(array[:, 1:]) == inside
