from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vaekit.maths import noise
from vaekit.maths.prior import Mixture, _components, draw_mixture, draw_normal

MIXTURE = Mixture(
    weights=np.array([0.2, 0.5, 0.3]),
    means=np.array([[-40.0, 0.0, 1.0], [0.0, 3.0, -2.0], [40.0, 1.0, 0.5]]),
    cholesky=np.array(
        [
            [[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.4]],
            [[0.3, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, -1.0, 0.5]],
            [[0.7, 0.0, 0.0], [-0.4, 0.1, 0.0], [0.2, 0.9, 1.5]],
        ]
    ),
)

seeds = st.integers(0, 2**64 - 1)
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def components(samples: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the component of each sample of MIXTURE; components are 40 apart in dimension 0."""
    return np.rint(samples[:, 0] / 40 + 1).astype(np.int64)


@quick
@given(seeds, st.integers(0, 10**9), st.integers(1, 60), st.data())
def test_a_mixtures_sample_does_not_depend_on_those_drawn_with_it(
    seed: int, start: int, count: int, data: st.DataObject
) -> None:
    together = draw_mixture(MIXTURE, count, seed=seed, start=start)
    first = data.draw(st.integers(0, count - 1))
    part = data.draw(st.integers(1, count - first))
    alone = draw_mixture(MIXTURE, part, seed=seed, start=start + first)
    assert together.dtype == np.float32
    assert alone.tobytes() == together[first : first + part].tobytes()


def test_drawing_many_samples_draws_each_as_drawing_few_does() -> None:
    normal, mixed = draw_normal(3, 10_000, seed=9), draw_mixture(MIXTURE, 10_000, seed=9)
    for start in (0, 4_090, 8_190, 9_990):
        part = slice(start, start + 10)
        assert draw_normal(3, 10, seed=9, start=start).tobytes() == normal[part].tobytes()
        assert draw_mixture(MIXTURE, 10, seed=9, start=start).tobytes() == mixed[part].tobytes()


def test_the_normal_prior_is_the_noise_itself() -> None:
    eps = noise.standard_normal(4, 10, 20, 5)
    assert np.array_equal(draw_normal(5, 20, seed=4, start=10), eps.astype(np.float32))
    assert np.array_equal(draw_normal(5, 20, seed=4, start=10, temperature=0.5), (0.5 * eps).astype(np.float32))


def test_components_are_chosen_as_their_weights_say() -> None:
    counts = np.bincount(components(draw_mixture(MIXTURE, 20_000)), minlength=3)
    assert counts / 20_000 == pytest.approx(MIXTURE.weights, abs=0.015)


def test_the_last_word_of_a_block_chooses_the_component() -> None:
    uniform = noise.uniforms(noise.words(1, 0, 500, noise.block_words(3))[:, -1])
    expected = (uniform >= 0.2).astype(np.int64) + (uniform >= 0.7)
    assert np.array_equal(components(draw_mixture(MIXTURE, 500, seed=1)), expected)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2.0**-53])
def test_components_without_weight_are_never_chosen(uniform: float) -> None:
    mixture = Mixture(np.array([0.0, 1.0, 0.0]), MIXTURE.means, MIXTURE.cholesky)
    assert set(components(draw_mixture(mixture, 500)).tolist()) == {1}
    assert _components(mixture.weights, np.array([uniform])).tolist() == [1]


def test_weights_that_sum_to_a_little_less_than_one_still_choose() -> None:
    assert _components(np.array([0.25, 0.75 - 1e-9]), np.array([1.0 - 2.0**-53])).tolist() == [1]


def test_each_component_has_its_mean_and_covariance() -> None:
    samples = draw_mixture(MIXTURE, 60_000, seed=2)
    of = components(samples)
    for number in range(3):
        own = samples[of == number].astype(np.float64)
        factor = MIXTURE.cholesky[number]
        assert own.mean(axis=0) == pytest.approx(MIXTURE.means[number], abs=0.06)
        assert np.cov(own.T) == pytest.approx(factor @ factor.T, abs=0.12)


def test_the_mixture_shapes_the_same_eps_as_the_normal_prior() -> None:
    mixture = Mixture(np.array([1.0]), np.array([[1.0, -2.0]]), np.array([[[2.0, 0.0], [0.5, 3.0]]]))
    eps = noise.standard_normal(8, 0, 50, 2)
    expected = np.stack([1 + 2 * eps[:, 0], -2 + 0.5 * eps[:, 0] + 3 * eps[:, 1]], axis=1)
    assert draw_mixture(mixture, 50, seed=8) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_temperature_scales_the_distance_from_the_means() -> None:
    means = MIXTURE.means[components(draw_mixture(MIXTURE, 200))]
    full = draw_mixture(MIXTURE, 200).astype(np.float64) - means
    half = draw_mixture(MIXTURE, 200, temperature=0.5) - means
    assert half == pytest.approx(full / 2, abs=1e-5)


def test_temperature_zero_gives_the_means() -> None:
    cold = draw_mixture(MIXTURE, 200, temperature=0.0)
    assert np.array_equal(cold, MIXTURE.means[components(draw_mixture(MIXTURE, 200))].astype(np.float32))
    assert not draw_normal(4, 10, temperature=0.0).any()


def test_no_samples_are_none() -> None:
    assert draw_normal(4, 0).shape == (0, 4)
    assert draw_mixture(MIXTURE, 0).shape == (0, 3)


@pytest.mark.parametrize(
    ("weights", "means", "cholesky"),
    [
        ([1.0], [[0.0], [1.0]], [[[1.0]], [[1.0]]]),
        ([0.5, 0.5], [[0.0], [1.0]], [[[1.0]]]),
        ([0.5, 0.5], [[0.0], [1.0]], [[[1.0, 0.0]], [[1.0, 0.0]]]),
        ([1.0], [0.0], [[[1.0]]]),
        ([0.5, 0.6], [[0.0], [1.0]], [[[1.0]], [[1.0]]]),
        ([1.5, -0.5], [[0.0], [1.0]], [[[1.0]], [[1.0]]]),
        ([np.nan, 1.0], [[0.0], [1.0]], [[[1.0]], [[1.0]]]),
        ([1.0], [[np.inf]], [[[1.0]]]),
        ([1.0], [[0.0]], [[[np.nan]]]),
    ],
)
def test_arrays_that_are_no_mixture_are_refused(weights: list[float], means: list[object], cholesky: object) -> None:
    with pytest.raises(ValueError, match=r"mixture|unpack"):
        Mixture(np.array(weights), np.array(means), np.array(cholesky))


def test_the_density_is_that_of_its_gaussians() -> None:
    z = np.random.default_rng(1).standard_normal((50, 3)) * 3
    expected = np.zeros(50)
    for weight, mean, factor in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.cholesky, strict=True):
        covariance = factor @ factor.T
        away = z - mean
        exponent = -0.5 * np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
        expected += weight * np.exp(exponent) / np.sqrt((2 * np.pi) ** 3 * np.linalg.det(covariance))
    assert np.exp(MIXTURE.log_density(z)) == pytest.approx(expected, rel=1e-9)


def test_the_density_far_away_is_finite_and_unused_components_do_not_count() -> None:
    assert np.isfinite(MIXTURE.log_density(np.full((1, 3), 1e4))).all()
    one = Mixture(np.array([1.0, 0.0]), np.zeros((2, 1)), np.ones((2, 1, 1)))
    assert one.log_density(np.zeros((1, 1))) == pytest.approx([-0.5 * np.log(2 * np.pi)])
    assert not Mixture(np.array([1.0]), np.zeros((1, 1)), np.zeros((1, 1, 1))).has_density
