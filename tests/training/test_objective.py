"""The evidence lower bound against other people's densities, numerical integrals, and a model solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from vaekit import bundle, noise, scoring
from vaekit.training.networks import Decoder, Encoder, VAENetwork
from vaekit.training.objective import (
    VARIANCE_FLOOR,
    Likelihood,
    Terms,
    bernoulli_log_likelihood,
    elbo_terms,
    gaussian_log_likelihood,
    kl_standard_normal,
    optimal_variance,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_kl_is_that_of_torch_distributions() -> None:
    mu, logvar = torch.randn(64, 5) * 3, torch.randn(64, 5) * 2
    q, p = Normal(mu, torch.exp(logvar / 2)), Normal(0.0, 1.0)
    torch.testing.assert_close(kl_standard_normal(mu, logvar), kl_divergence(q, p).sum(1))


@given(mu=st.floats(-4, 4), logvar=st.floats(-6, 3))
def test_kl_is_the_integral_that_defines_it(mu: float, logvar: float) -> None:
    sigma = math.exp(logvar / 2)
    x = torch.linspace(mu - 12 * sigma, mu + 12 * sigma, 20_001, dtype=torch.float64)
    log_q = -0.5 * ((x - mu) / sigma) ** 2 - 0.5 * logvar
    log_p = -0.5 * x**2
    integral = torch.trapezoid(log_q.exp() / math.sqrt(2 * math.pi) * (log_q - log_p), x)
    kl = kl_standard_normal(torch.tensor([[mu]]).double(), torch.tensor([[logvar]]).double())
    assert kl.item() == pytest.approx(integral.item(), abs=1e-6, rel=1e-6)


def test_kl_sums_over_dimensions_and_vanishes_at_the_prior() -> None:
    zero = torch.zeros(1, 3)
    assert kl_standard_normal(zero, zero).item() == 0.0
    # sigma² = 4: ½ (4 − 1 − ln 4) a dimension, where the trace is d·sigma², not (sigma²)^d.
    assert kl_standard_normal(zero, zero + math.log(4)).item() == pytest.approx(3 * 0.5 * (3 - math.log(4)))


@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0])
def test_gaussian_log_likelihood_is_that_of_torch_distributions(sigma: float) -> None:
    image, mean = torch.rand(6, 3, 4, 5), torch.rand(6, 3, 4, 5)
    expected = Normal(mean, sigma).log_prob(image).flatten(1).sum(1)  # type: ignore[no-untyped-call]
    error = (image - mean).square().flatten(1).sum(1)
    torch.testing.assert_close(gaussian_log_likelihood(error, 60, sigma**2), expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(
        gaussian_log_likelihood(error, 60, torch.tensor(sigma**2)), expected, rtol=1e-5, atol=1e-3
    )


def test_gaussian_density_integrates_to_one() -> None:
    x = torch.linspace(-5, 6, 20_001, dtype=torch.float64)
    density = gaussian_log_likelihood((x - 0.3).square(), 1, 0.25).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-6)


def test_bernoulli_log_likelihood_is_that_of_torch_distributions_on_binary_pixels() -> None:
    image, logits = torch.randint(0, 2, (6, 1, 4, 5)).float(), torch.randn(6, 1, 4, 5) * 20
    expected = Bernoulli(logits=logits).log_prob(image).flatten(1).sum(1)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(bernoulli_log_likelihood(image, logits), expected)


def test_bernoulli_log_likelihood_is_finite_where_the_decoder_is_sure_and_wrong() -> None:
    assert bernoulli_log_likelihood(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), -300.0)).item() == -300.0


@pytest.mark.parametrize("factor", [0.9, 0.99, 1.01, 1.1])
def test_optimal_variance_is_the_most_likely_one(factor: float) -> None:
    error = torch.rand(32, dtype=torch.float64) * 4 + 0.1
    best = optimal_variance(error, 50)
    assert best.item() == pytest.approx(error.mean().item() / 50)
    likelihood = gaussian_log_likelihood(error, 50, best).mean()
    assert gaussian_log_likelihood(error, 50, best * factor).mean() < likelihood


def test_optimal_variance_has_a_floor_for_perfect_reconstructions() -> None:
    assert optimal_variance(torch.zeros(4), 10).item() == pytest.approx(VARIANCE_FLOOR)
    assert math.isfinite(gaussian_log_likelihood(torch.zeros(4), 10, optimal_variance(torch.zeros(4), 10)).mean())


def test_gradient_with_the_detached_variance_is_that_of_half_d_ln_variance() -> None:
    pixels, image = 30, torch.rand(8, 30, dtype=torch.float64)
    gradients: list[Tensor] = []
    for detached in (True, False):
        mean = torch.full((8, 30), 0.4, dtype=torch.float64, requires_grad=True)
        error = (image - mean).square().sum(1)
        if detached:
            loss = -gaussian_log_likelihood(error, pixels, optimal_variance(error.detach(), pixels)).mean()
        else:
            loss = pixels / 2 * torch.log(error.mean() / pixels)
        gradients += torch.autograd.grad(loss, mean)
    torch.testing.assert_close(*gradients)


def test_elbo_is_reconstruction_less_kl() -> None:
    terms = Terms(torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0]), torch.zeros(2))
    assert terms.elbo.tolist() == [2.0, -3.0]


@pytest.mark.parametrize("name", ["gaussian", "bernoulli"])
def test_terms_agree_with_the_edge(name: str) -> None:
    """vaekit.scoring computes the same numbers without PyTorch."""
    network = VAENetwork((1, 8, 9), 3).eval()
    image = torch.rand(5, 1, 8, 9).round() if name == "bernoulli" else torch.rand(5, 1, 8, 9)
    sigma = None if name == "bernoulli" else 0.2
    eps = noise.standard_normal(7, 0, 1, 3)
    with torch.inference_mode():
        ours = elbo_terms(
            network,
            Likelihood(name, None if sigma is None else sigma**2),
            image,
            torch.from_numpy(eps).float().expand(5, 3),
        )
        edge = scoring.elbo_terms(
            image.numpy(),
            lambda x: _numpy_pair(network.encoder(torch.from_numpy(x))),
            lambda z: network.decoder(torch.from_numpy(z)).numpy(),
            bundle.Likelihood(name, sigma),
            seed=7,
        )
    np.testing.assert_allclose(ours.kl.numpy(), edge.kl, rtol=1e-5)
    np.testing.assert_allclose(ours.reconstruction.numpy(), edge.reconstruction, rtol=1e-5)
    np.testing.assert_allclose(ours.elbo.numpy(), edge.elbo, rtol=1e-5)


def _numpy_pair(pair: tuple[Tensor, Tensor]) -> tuple[scoring.Array, scoring.Array]:
    return pair[0].numpy(), pair[1].numpy()


def test_unset_variance_is_the_batchs_own() -> None:
    network = VAENetwork((1, 8, 8), 2).eval()
    image, eps = torch.rand(16, 1, 8, 8), torch.randn(16, 2)
    with torch.inference_mode():
        free = elbo_terms(network, Likelihood("gaussian"), image, eps)
        fixed = elbo_terms(network, Likelihood("gaussian", free.squared_error.mean().item() / 64), image, eps)
        other = elbo_terms(network, Likelihood("gaussian", 0.5), image, eps)
    torch.testing.assert_close(free.reconstruction, fixed.reconstruction)
    assert other.reconstruction.mean() < free.reconstruction.mean()


# A linear Gaussian model, x ~ N(½, W Wᵀ + sigma² I), whose log p(x) is known. W's columns are orthogonal, so that the
# exact posterior is diagonal; they are short, so that the decoder's mean stays within (0, 1).

_PIXELS, _LATENT, _SIGMA = 4, 2, 0.05
_W = torch.tensor([[0.05, 0.02], [0.05, -0.02], [0.03, 0.03], [-0.03, -0.03]], dtype=torch.float64)
_W[2:, 1] = torch.tensor([0.02, 0.02])


class _LinearDecoder(Decoder):
    def __init__(self) -> None:
        nn.Module.__init__(self)

    def logits(self, z: Tensor) -> Tensor:
        return torch.logit(0.5 + z @ _W.T).reshape(-1, 1, 2, 2)


class _LinearEncoder(Encoder):
    """The exact posterior, its mean shifted by ``shift`` and its variance multiplied by ``factor``."""

    def __init__(self, shift: float, factor: float) -> None:
        nn.Module.__init__(self)
        self.shift, self.factor = shift, factor

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        precision = torch.eye(_LATENT, dtype=torch.float64) + _W.T @ _W / _SIGMA**2
        assert precision.diag().diag().allclose(precision)
        variance = 1 / precision.diag()
        mu = (image.flatten(1) - 0.5) @ _W * variance / _SIGMA**2 + self.shift
        return mu, (variance * self.factor).log().expand_as(mu)


@pytest.mark.parametrize(("shift", "factor", "gap"), [(0.0, 1.0, 0.0), (0.2, 1.0, 0.05), (0.0, 2.0, 0.1)])
def test_elbo_is_a_lower_bound_of_the_exact_log_likelihood(shift: float, factor: float, gap: float) -> None:
    network = VAENetwork((1, 8, 8), _LATENT)
    network.encoder, network.decoder = _LinearEncoder(shift, factor), _LinearDecoder()
    covariance = _W @ _W.T + _SIGMA**2 * torch.eye(_PIXELS, dtype=torch.float64)
    p = MultivariateNormal(torch.full((_PIXELS,), 0.5, dtype=torch.float64), covariance)
    for x in p.sample((3,)):
        draws = 200_000
        image = x.reshape(1, 1, 2, 2).expand(draws, 1, 2, 2)
        terms = elbo_terms(
            network, Likelihood("gaussian", _SIGMA**2), image, torch.randn(draws, _LATENT, dtype=torch.float64)
        )
        elbo, exact = terms.elbo.mean().item(), p.log_prob(x).item()  # type: ignore[no-untyped-call]
        if gap:
            assert elbo < exact - gap
        else:  # with the exact posterior the bound is tight
            assert elbo == pytest.approx(exact, abs=0.02)
