"""The mixture prior that is fitted to the encoded training images."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vaekit.maths.prior import Mixture, draw_mixture
from vaekit.training.mixture import MAX_COMPONENTS, fit_mixture

TRUTH = Mixture(
    np.array([0.3, 0.7]),
    np.array([[-4.0, 0.0], [3.0, 2.0]]),
    np.array([[[0.5, 0.0], [0.4, 0.3]], [[1.0, 0.0], [-0.5, 0.6]]]),
)


@pytest.fixture(scope="module")
def latents() -> NDArray[np.float32]:
    return draw_mixture(TRUTH, 4000, seed=1)


@pytest.mark.parametrize("components", [2, 16])
def test_samples_of_the_fit_are_distributed_as_the_latents(latents: NDArray[np.float32], components: int) -> None:
    fitted = fit_mixture(latents, components=components)
    assert fitted is not None
    samples = draw_mixture(fitted, 20_000, seed=2)
    left, true_left = samples[:, 0] < -1, latents[:, 0] < -1
    assert left.mean() == pytest.approx(true_left.mean(), abs=0.02)
    for part, true_part in ((left, true_left), (~left, ~true_left)):
        np.testing.assert_allclose(samples[part].mean(0), latents[true_part].mean(0), atol=0.06)
        np.testing.assert_allclose(np.cov(samples[part].T), np.cov(latents[true_part].T), atol=0.06)


def test_two_components_are_the_true_ones(latents: NDArray[np.float32]) -> None:
    fitted = fit_mixture(latents, components=2)
    assert fitted is not None
    order = np.argsort(fitted.means[:, 0])
    np.testing.assert_allclose(fitted.weights[order], TRUTH.weights, atol=0.02)
    np.testing.assert_allclose(fitted.means[order], TRUTH.means, atol=0.06)
    np.testing.assert_allclose(fitted.cholesky[order], TRUTH.cholesky, atol=0.06)


def test_a_seed_always_gives_the_same_fit(latents: NDArray[np.float32]) -> None:
    fits = [fit_mixture(latents[:500], components=4, seed=seed) for seed in (3, 3, 4)]
    first, again, other = (fit.means for fit in fits if fit is not None)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_any_seed_of_64_bits_fits(latents: NDArray[np.float32]) -> None:
    assert fit_mixture(latents[:100], components=2, seed=2**64 - 1) is not None


@pytest.mark.parametrize(("count", "components"), [(16, 1), (50, 3), (4000, MAX_COMPONENTS)])
def test_fewer_latents_get_fewer_components(latents: NDArray[np.float32], count: int, components: int) -> None:
    fitted = fit_mixture(latents[:count])
    assert fitted is not None
    assert len(fitted.weights) == components


def test_too_few_latents_get_no_mixture(latents: NDArray[np.float32]) -> None:
    assert fit_mixture(latents[:15]) is None
    assert fit_mixture(latents[:0]) is None


def test_latents_that_are_all_the_same_still_fit() -> None:
    fitted = fit_mixture(np.full((64, 2), 0.5, np.float32))
    assert fitted is not None
    np.testing.assert_allclose(draw_mixture(fitted, 100), 0.5, atol=0.01)


def test_a_fit_that_may_go_on_is_that_of_one_call_and_one_that_may_not_is_shorter() -> None:
    z = np.random.default_rng(0).standard_normal((600, 3)) ** 3
    asked = []

    def goes_on(answer: bool) -> bool:
        asked.append(answer)
        return answer

    whole, parts = fit_mixture(z, components=6), fit_mixture(z, components=6, goes_on=lambda: goes_on(True))
    assert len(asked) > 2
    asked.clear()
    short = fit_mixture(z, components=6, goes_on=lambda: goes_on(False))
    assert asked == [False]
    assert whole is not None
    assert parts is not None
    assert short is not None
    np.testing.assert_allclose(parts.means, whole.means, rtol=1e-6)
    np.testing.assert_allclose(parts.cholesky, whole.cholesky, rtol=1e-6)
    assert not np.allclose(short.means, whole.means, rtol=1e-6)
    assert short.weights.sum() == pytest.approx(1.0)


def test_each_class_has_gaussians_of_its_own() -> None:
    random = np.random.default_rng(0)
    classes = random.permutation(np.repeat([-1, 0, 1], (500, 1500, 1000)))
    z = random.standard_normal((3000, 2)) + 5 * classes[:, None]
    fitted = fit_mixture(z, classes, components=12)
    assert fitted is not None
    assert fitted.labels is not None
    assert sorted(set(fitted.labels)) == [-1, 0, 1]
    assert [np.sum(fitted.labels == number) for number in (-1, 0, 1)] == [2, 6, 4]
    for number, share in ((-1, 1 / 6), (0, 1 / 2), (1, 1 / 3)):
        assert fitted.weights[fitted.labels == number].sum() == pytest.approx(share)
        only = fitted.of_label(number)
        assert only is not None
        samples = draw_mixture(only, 2000)
        np.testing.assert_allclose(samples.mean(0), 5 * number, atol=0.15)
        np.testing.assert_allclose(np.cov(samples.T), np.eye(2), atol=0.15)
    assert fitted.of_label(2) is None
    assert fit_mixture(z) is not None
    assert (unlabelled := fit_mixture(z, components=3)) is not None
    assert unlabelled.labels is None
    assert unlabelled.of_label(0) is None


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_class_of_few_latents_has_one_gaussian(count: int) -> None:
    random = np.random.default_rng(0)
    z = np.concatenate((random.standard_normal((400, 4)), 20 + random.standard_normal((count, 4))))
    fitted = fit_mixture(z, np.repeat([0, 1], (400, count)))
    assert fitted is not None
    assert fitted.labels is not None
    assert np.sum(fitted.labels == 1) == 1
    only = fitted.of_label(1)
    assert only is not None
    samples = draw_mixture(only, 500)
    np.testing.assert_allclose(samples.mean(0), z[400:].mean(0), atol=0.2)
    assert 0.3 < samples.std() < 2


def test_more_classes_than_components_are_fitted_together() -> None:
    z = np.random.default_rng(0).standard_normal((400, 2))
    fitted = fit_mixture(z, np.arange(400) % 50, components=20)
    assert fitted is not None
    assert fitted.labels is None
    assert len(fitted.weights) == 20
