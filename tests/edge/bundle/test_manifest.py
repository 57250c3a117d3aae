from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaekit.bundle.manifest import ScoreStatistics

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)

HELD_OUT = ScoreStatistics(100, 0, {"p0": -40.0, "p50": 10.0, "p100": 80.0, "p99": 60.0, "p99.9": 79.0, "p9": 0.0})


@pytest.mark.parametrize(("percent", "nats"), [(0, -40.0), (9, 0.0), (50, 10.0), (99, 60.0), (99.9, 79.0), (100, 80.0)])
def test_a_percentile_is_the_held_out_score(percent: float, nats: float) -> None:
    assert HELD_OUT.percentile(percent) == nats


@pytest.mark.parametrize(("percent", "nats"), [(4.5, -20.0), (74.5, 35.0), (99.45, 69.5), (99.95, 79.5)])
def test_a_percentile_between_known_ones_is_interpolated(percent: float, nats: float) -> None:
    assert HELD_OUT.percentile(percent) == pytest.approx(nats)


@quick
@given(st.floats(0, 100), st.floats(0, 100))
def test_a_higher_percentile_is_no_lower_score(low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert HELD_OUT.percentile(low) <= HELD_OUT.percentile(high)
