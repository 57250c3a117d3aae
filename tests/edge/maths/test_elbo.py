from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vaekit.maths import noise
from vaekit.maths.elbo import (
    Likelihood,
    Terms,
    elbo_terms,
    kl_standard_normal,
    log_likelihood,
    posterior_sample,
)
from vaekit.types import Array

Encode = Callable[[Array], tuple[Array, Array]]

GAUSSIAN = Likelihood("gaussian", 0.3)
LAPLACE = Likelihood("laplace", 0.3)
BERNOULLI = Likelihood("bernoulli", None)
LINE = np.linspace(-30.0, 30.0, 60_001)  # to integrate along

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def normal(x: NDArray[np.float64], mean: float, variance: float) -> NDArray[np.float64]:
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def integral(values: NDArray[np.float64]) -> float:
    return float(values.sum() * (LINE[1] - LINE[0]))


def images(*values: float) -> Array:
    """Return one image per value, with one channel, one row and any number of columns."""
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


@quick
@given(st.floats(-4, 4, width=32), st.floats(-4, 2, width=32))
def test_the_kl_is_the_integral_that_it_stands_for(mu: float, logvar: float) -> None:
    variance = math.exp(logvar)
    density = normal(LINE, mu, variance)
    log_ratio = 0.5 * (LINE**2 - (LINE - mu) ** 2 / variance - logvar)
    found = kl_standard_normal(np.array([[mu]], np.float32), np.array([[logvar]], np.float32))
    assert found == pytest.approx(integral(density * log_ratio), rel=1e-5, abs=1e-6)


def test_the_kl_is_kept_by_dimension_and_is_nothing_for_the_prior_itself() -> None:
    mu = np.array([[0, 1, 0], [2, 0, 0]], np.float32)
    logvar = np.array([[0, 0, 0], [0, 1, 0]], np.float32)
    found = kl_standard_normal(mu, logvar)
    assert found.dtype == np.float64
    assert found == pytest.approx(np.array([[0, 0.5, 0], [2, 0.5 * (math.e - 2), 0]]))


def test_the_gaussian_likelihood_is_the_product_of_its_pixels_densities() -> None:
    chance = np.random.default_rng(0)
    x, mean = chance.random((2, 5, 3, 4, 2), np.float32)
    expected = [
        sum(
            math.log(math.exp(-((p - m) ** 2) / (2 * 0.3**2)) / (0.3 * math.sqrt(2 * math.pi)))
            for p, m in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
        )
        for a, b in zip(x, mean, strict=True)
    ]
    found = log_likelihood(x, mean, GAUSSIAN)
    assert found.shape == (5,)
    assert found.dtype == np.float64
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("likelihood", [GAUSSIAN, LAPLACE])
def test_the_likelihood_integrates_to_one_and_sigma_is_its_deviation(likelihood: Likelihood) -> None:
    x = LINE[np.abs(LINE) < 6].astype(np.float32)
    logs = log_likelihood(images(*x.tolist()), np.full((len(x), 1, 1, 1), 0.4, np.float32), likelihood)
    assert integral(np.exp(logs)) == pytest.approx(1.0, abs=1e-4)
    assert integral(np.exp(logs) * (x - 0.4) ** 2) == pytest.approx(0.3**2, rel=1e-3)


def test_the_laplace_likelihood_is_the_product_of_its_pixels_densities() -> None:
    x, mean = np.random.default_rng(0).random((2, 5, 3, 4, 2), np.float32)
    scale = 0.3 / math.sqrt(2)
    pixels = np.log(np.exp(-np.abs(x.astype(np.float64) - mean) / scale) / (2 * scale))
    assert log_likelihood(x, mean, LAPLACE) == pytest.approx(pixels.sum(axis=(1, 2, 3)))


@pytest.mark.parametrize("sigma", [None, 0.0, math.inf])
def test_a_laplace_likelihood_needs_a_sigma(sigma: float | None) -> None:
    with pytest.raises(ValueError, match="sigma of a laplace likelihood must be a positive number"):
        Likelihood("laplace", sigma)


def test_the_bernoulli_likelihood_is_that_of_coins() -> None:
    x = np.array([[1, 0, 1, 0.5]], np.float32).reshape(1, 1, 2, 2)
    mean = np.array([[0.9, 0.2, 0.5, 0.3]], np.float32).reshape(1, 1, 2, 2)
    expected = math.log(0.9) + math.log(0.8) + math.log(0.5) + 0.5 * (math.log(0.3) + math.log(0.7))
    assert log_likelihood(x, mean, BERNOULLI) == pytest.approx([expected], rel=1e-6)


def test_the_bernoulli_likelihood_of_all_pictures_sums_to_one() -> None:
    mean = np.tile(np.array([0.9, 0.2, 0.6], np.float32).reshape(1, 1, 1, 3), (8, 1, 1, 1))
    every = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], np.float32).reshape(8, 1, 1, 3)
    assert np.exp(log_likelihood(every, mean, BERNOULLI)).sum() == pytest.approx(1.0)


def test_a_sigmoid_that_rounded_to_the_ends_stays_finite() -> None:
    found = log_likelihood(images(0, 1, 0, 1), images(0, 1, 1, 0), BERNOULLI)
    assert found[:2] == pytest.approx([0, 0], abs=1e-6)
    assert found[2:] == pytest.approx([math.log(1e-7)] * 2)


# A model with known terms: z ~ N(0, 1), x|z ~ N(slope z + offset, sigma²), so x ~ N(offset, slope² + sigma²).
SLOPE, OFFSET, SIGMA = 0.4, 0.5, 0.3


def decode(z: Array) -> Array:
    return (SLOPE * z + OFFSET).astype(np.float32).reshape(-1, 1, 1, 1)


def terms_of(x: Array, encode: Encode, *, seed: int = 0) -> Terms:
    mu, logvar = encode(x)
    return elbo_terms(x, mu, logvar, decode(posterior_sample(mu, logvar, seed=seed)), GAUSSIAN)


def encode_exactly(x: Array) -> tuple[Array, Array]:
    """Return the exact posterior."""
    variance = 1 / (1 + SLOPE**2 / SIGMA**2)
    mu = variance * SLOPE / SIGMA**2 * (x.reshape(-1, 1) - OFFSET)
    return mu.astype(np.float32), np.full_like(mu, math.log(variance), np.float32)


def encode_roughly(x: Array) -> tuple[Array, Array]:
    mu = (0.5 * x.reshape(-1, 1)).astype(np.float32)
    return mu, np.full_like(mu, -1.0)


def evidence(x: float) -> float:
    """Compute log p(x) by integration over z."""
    return math.log(integral(normal(LINE, 0.0, 1.0) * normal(SLOPE * LINE + OFFSET, x, SIGMA**2)))


def expected_elbo(monkeypatch: pytest.MonkeyPatch, x: float, encode: Encode) -> float:
    """Compute the ELBO's expectation over eps by Gauss-Hermite quadrature, which is exact here."""
    total = 0.0
    for eps, weight in np.stack(np.polynomial.hermite_e.hermegauss(6), axis=1).tolist():
        monkeypatch.setattr(noise, "standard_normal", lambda *block, eps=eps: np.array([[eps]]))
        total += weight / math.sqrt(2 * math.pi) * terms_of(images(x), encode).elbo.item()
    return total


@pytest.mark.parametrize("x", [0.1, 0.5, 0.9])
def test_with_the_true_posterior_the_elbo_is_the_evidence(monkeypatch: pytest.MonkeyPatch, x: float) -> None:
    variance = SLOPE**2 + SIGMA**2
    closed = -0.5 * (math.log(2 * math.pi * variance) + (x - OFFSET) ** 2 / variance)
    assert evidence(x) == pytest.approx(closed, abs=1e-6)
    assert expected_elbo(monkeypatch, x, encode_exactly) == pytest.approx(evidence(x), abs=1e-5)


@pytest.mark.parametrize("x", [0.1, 0.9])
def test_with_another_posterior_the_elbo_falls_short_by_their_divergence(
    monkeypatch: pytest.MonkeyPatch, x: float
) -> None:
    mu, logvar = (part.item() for part in encode_roughly(images(x)))
    true_mu, true_logvar = (part.item() for part in encode_exactly(images(x)))
    log_ratio = log_normal(mu, logvar) - log_normal(true_mu, true_logvar)
    divergence = integral(np.exp(log_normal(mu, logvar)) * log_ratio)
    assert divergence > 0.01
    assert expected_elbo(monkeypatch, x, encode_roughly) == pytest.approx(evidence(x) - divergence, abs=1e-5)


def log_normal(mean: float, logvar: float) -> NDArray[np.float64]:
    return -0.5 * (math.log(2 * math.pi) + logvar + (LINE - mean) ** 2 / math.exp(logvar))


def test_the_terms_are_those_of_the_one_eps_of_the_seed() -> None:
    x = images(0.1, 0.7)
    terms = terms_of(x, encode_roughly, seed=11)
    mu, logvar = encode_roughly(x)
    z = mu + np.exp(logvar / 2) * noise.standard_normal(11, 0, 1, 1)
    assert terms.reconstruction == pytest.approx(log_likelihood(x, decode(z.astype(np.float32)), GAUSSIAN), abs=1e-5)
    assert terms.kl == pytest.approx(kl_standard_normal(mu, logvar)[:, 0])
    assert terms.elbo == pytest.approx(terms.reconstruction - terms.kl)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 3)])
def test_a_draw_is_mu_plus_sigma_times_one_eps_for_all(shape: tuple[int, ...]) -> None:
    mu, logvar = np.random.default_rng(0).standard_normal((2, 5, *shape)).astype(np.float32)
    z = posterior_sample(mu, logvar, seed=3)
    assert z.dtype == np.float32
    eps = noise.standard_normal(3, 0, 1, math.prod(shape)).reshape(shape)
    assert (z - mu) / np.exp(logvar / 2) == pytest.approx(np.broadcast_to(eps, z.shape), abs=1e-4)
    assert np.array_equal(posterior_sample(mu[3:4], logvar[3:4], seed=3), z[3:4])
    assert not np.array_equal(posterior_sample(mu, logvar), z)


def test_a_score_does_not_depend_on_an_images_place() -> None:
    x = images(0.1, 0.7, 0.3, 0.9)
    order = [2, 0, 3, 1]
    whole = terms_of(x, encode_roughly).elbo
    assert np.array_equal(terms_of(x[order], encode_roughly).elbo, whole[order])
    assert terms_of(x[2:3], encode_roughly).elbo == whole[2]


def test_the_kl_is_summed_over_dimensions() -> None:
    mu, logvar = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    z = posterior_sample(mu, logvar)
    terms = elbo_terms(images(0.5, 0.5), mu, logvar, decode(z[:, :1]), GAUSSIAN)
    assert terms.kl.tolist() == [1.5, 1.5]


def test_the_elbo_is_reconstruction_less_kl() -> None:
    assert Terms(np.array([5.0, -1.0]), np.array([2.0, 3.0])).elbo.tolist() == [3.0, -4.0]
