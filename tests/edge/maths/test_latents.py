from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from vaekit.errors import UsageError
from vaekit.maths.latents import MODES, interpolate, traversal

Latent = NDArray[np.float32]

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)

values = st.floats(-1e3, 1e3, width=32)
pairs = st.integers(1, 9).flatmap(lambda d: st.tuples(*[arrays.arrays(np.float32, d, elements=values)] * 2))
modes = st.sampled_from(MODES)


def lengths(latents: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(latents.astype(np.float64), axis=-1))


def angle(a: Latent, b: Latent) -> float:
    """Compute the angle between two latents in radians, precise even for small angles."""
    u, v = (part.astype(np.float64) / lengths(part) for part in (a, b))
    return float(2 * np.arctan2(lengths(u - v), lengths(u + v)))


@quick
@given(pairs, st.integers(2, 12), modes)
def test_both_ends_are_included_and_all_between_is_finite(pair: tuple[Latent, Latent], steps: int, mode: str) -> None:
    path = interpolate(*pair, steps, mode)
    assert path.shape == (steps, len(pair[0]))
    assert path.dtype == np.float32
    assert np.isfinite(path).all()
    np.testing.assert_array_max_ulp(path[[0, -1]], np.stack(pair), maxulp=1)


@quick
@given(pairs, st.integers(2, 12), modes)
def test_the_way_back_is_the_way_there(pair: tuple[Latent, Latent], steps: int, mode: str) -> None:
    there, back = interpolate(*pair, steps, mode), interpolate(*pair[::-1], steps, mode)
    assert back[::-1] == pytest.approx(there, rel=1e-3, abs=1e-3 * max(1.0, *lengths(there)))


@quick
@given(pairs, st.integers(2, 12))
def test_linear_steps_are_equal(pair: tuple[Latent, Latent], steps: int) -> None:
    a, b = (part.astype(np.float64) for part in pair)
    expected = [a + k / (steps - 1) * (b - a) for k in range(steps)]
    assert interpolate(*pair, steps) == pytest.approx(np.stack(expected), rel=1e-6, abs=1e-4)


@quick
@given(st.integers(2, 9), st.integers(3, 12), st.integers(0, 2**32 - 1))
def test_slerp_turns_by_equal_angles_and_its_length_goes_linearly(d: int, steps: int, seed: int) -> None:
    a, b = np.random.default_rng(seed).normal(0, 3, (2, d)).astype(np.float32)
    path = interpolate(a, b, steps, "slerp")
    between = [angle(path[k], path[k + 1]) for k in range(steps - 1)]
    assert between == pytest.approx([angle(a, b) / (steps - 1)] * (steps - 1), abs=1e-4)
    assert lengths(path) == pytest.approx(np.linspace(lengths(a), lengths(b), steps), rel=1e-4)


def test_slerp_keeps_clear_of_the_origin_where_the_straight_line_does_not() -> None:
    a, b = np.array([3.0, 0.1], np.float32), np.array([-3.0, 0.1], np.float32)
    assert lengths(interpolate(a, b, 9, "linear")).min() == pytest.approx(0.1)
    assert lengths(interpolate(a, b, 9, "slerp")).min() == pytest.approx(lengths(a))


def test_slerp_over_a_right_angle_is_a_circle() -> None:
    path = interpolate(np.array([2.0, 0.0]), np.array([0.0, 2.0]), 3, "slerp")
    assert path == pytest.approx(np.array([[2, 0], [2**0.5, 2**0.5], [0, 2]]), abs=1e-6)


ONE_LINE = {
    "the same": ([1.0, 2.0], [1.0, 2.0]),
    "parallel": ([1.0, 2.0], [3.0, 6.0]),
    "antiparallel": ([1.0, 2.0], [-2.0, -4.0]),
    "from the origin": ([0.0, 0.0], [1.0, 2.0]),
    "to the origin": ([1.0, 2.0], [0.0, 0.0]),
    "at the origin": ([0.0, 0.0], [0.0, 0.0]),
    "of one dimension": ([3.0], [-1.0]),
    "tiny": ([1e-30, 0.0], [2e-30, 0.0]),
}


@pytest.mark.parametrize("what", ONE_LINE)
def test_latents_on_one_line_through_the_origin_are_joined_straight(what: str) -> None:
    a, b = (np.array(end, np.float32) for end in ONE_LINE[what])
    path = interpolate(a, b, 5, "slerp")
    assert np.isfinite(path).all()
    assert np.array_equal(path, interpolate(a, b, 5, "linear"))


@pytest.mark.parametrize("turn", [0.0, np.pi])
@pytest.mark.parametrize("off", [1e-9, 1e-7, 1e-6, 2e-6, 1e-5, 1e-3])
def test_latents_almost_on_one_line_are_joined_without_a_leap(turn: float, off: float) -> None:
    a, b = np.array([1.0, 0.0]), 2 * np.array([np.cos(turn + off), np.sin(turn + off)])
    path = interpolate(a, b, 9, "slerp")
    assert np.isfinite(path).all()
    assert lengths(path).max() < 2.01
    assert path[[0, -1]] == pytest.approx(np.stack([a, b]), abs=1e-6)


@pytest.mark.parametrize("size", [1e-38, 1e38])
def test_the_sizes_that_float32_holds_are_no_trouble(size: float) -> None:
    a, b = (np.array(end, np.float32) for end in ([size, 0.0], [0.0, size]))
    for mode in MODES:
        path = interpolate(a, b, 3, mode)
        assert np.array_equal(path[[0, -1]], np.stack([a, b]))
        assert np.isfinite(path).all()
        assert (path[1] > 0.4 * size).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_latents_of_any_width_give_float32(dtype: type[np.floating]) -> None:
    assert interpolate(np.zeros(3, dtype), np.ones(3, dtype), 2).dtype == np.float32


@pytest.mark.parametrize("steps", [1, 0, -3])
def test_fewer_than_two_steps_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=f"2 steps or more, not {steps}"):
        interpolate(np.zeros(3), np.ones(3), steps)


@pytest.mark.parametrize("mode", ["", "cubic", "SLERP"])
def test_another_mode_is_refused_with_those_there_are(mode: str) -> None:
    with pytest.raises(UsageError, match=f"{mode!r}: choose one of linear, slerp"):
        interpolate(np.zeros(3), np.ones(3), 4, mode)


@quick
@given(pairs, arrays.arrays(np.float64, st.integers(0, 6), elements=values), st.data())
def test_a_traversal_changes_one_dimension_and_no_other(
    pair: tuple[Latent, Latent], moves: NDArray[np.float64], data: st.DataObject
) -> None:
    base = pair[0]
    dimension = data.draw(st.integers(0, len(base) - 1))
    path = traversal(base, dimension, moves)
    assert (path.shape, path.dtype) == ((len(moves), len(base)), np.dtype(np.float32))
    assert np.array_equal(path[:, dimension], moves.astype(np.float32))
    others = np.delete(np.arange(len(base)), dimension)
    assert np.array_equal(path[:, others], np.tile(base[others], (len(moves), 1)))


def test_a_traversal_leaves_its_base_as_it_was() -> None:
    base = np.zeros(3, np.float32)
    traversal(base, 1, np.array([5.0]))
    assert (base == 0).all()
