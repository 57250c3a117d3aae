"""Integration of a learned prior's velocity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaekit.maths.flow import integrate
from vaekit.types import Array

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@quick
@given(steps=st.integers(1, 12), count=st.integers(1, 5))
def test_a_constant_velocity_is_followed_exactly(steps: int, count: int) -> None:
    start = noise(count, 3, 2, 2)
    found = integrate(lambda z, t: np.full_like(z, 0.5), start, steps)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, start + 0.5, rtol=1e-5, atol=1e-5)


def test_each_step_is_of_the_second_order() -> None:
    """Along dx/dt = x the exact factor is e; Heun's method multiplies by 1 + h + h²/2."""
    start = noise(4, 2)
    for steps in (1, 2, 8):
        h = 1 / steps
        factor = (1 + h + h * h / 2) ** steps
        np.testing.assert_allclose(integrate(lambda z, t: z, start, steps), start * factor, rtol=1e-5)


def test_the_velocity_is_asked_for_at_the_right_times() -> None:
    asked: list[float] = []

    def velocity(z: Array, t: Array) -> Array:
        assert t.shape == (len(z),)
        assert t.dtype == np.float32
        asked.extend({float(time) for time in t})
        return z

    integrate(velocity, noise(3, 2), 4)
    assert asked == pytest.approx([0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1])


@quick
@given(steps=st.integers(1, 6), first=st.integers(1, 6))
def test_rows_do_not_depend_on_each_other(steps: int, first: int) -> None:
    start = noise(7, 5)
    together = integrate(lambda z, t: np.sin(z) * t[:, None], start, steps)
    apart = [integrate(lambda z, t: np.sin(z) * t[:, None], part, steps) for part in (start[:first], start[first:])]
    np.testing.assert_allclose(together, np.concatenate(apart), rtol=1e-6, atol=1e-7)
