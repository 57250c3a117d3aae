"""The ELBO compared with library densities, numerical integrals, and a model with a known solution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Bernoulli, Laplace, MultivariateNormal, Normal, kl_divergence

from vaekit.maths import elbo as scoring
from vaekit.maths import noise
from vaekit.training.config import ObjectiveName, PixelLikelihood
from vaekit.training.networks import Decoder, Encoder, VAENetwork
from vaekit.training.objective import (
    VARIANCE_FLOOR,
    BatchTerms,
    Draws,
    Objective,
    TrainingLikelihood,
    bernoulli_log_likelihood,
    draw,
    gaussian_log_likelihood,
    iwae_bound,
    iwae_variance,
    kl_gaussians,
    kl_standard_normal,
    laplace_log_likelihood,
    optimal_variance,
    reconstruction_error,
    terms_of,
)
from vaekit.types import LIKELIHOODS, one_of

finite = hnp.arrays(np.float64, 4, elements=st.floats(-3, 3))


Array = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_kl_is_that_of_torch_distributions() -> None:
    mu, logvar = torch.randn(64, 5) * 3, torch.randn(64, 5) * 2
    q, p = Normal(mu, torch.exp(logvar / 2)), Normal(0.0, 1.0)
    torch.testing.assert_close(kl_standard_normal(mu, logvar), kl_divergence(q, p))


@given(mu=st.floats(-4, 4), logvar=st.floats(-6, 3))
def test_kl_is_the_integral_that_defines_it(mu: float, logvar: float) -> None:
    sigma = math.exp(logvar / 2)
    x = torch.linspace(mu - 12 * sigma, mu + 12 * sigma, 20_001, dtype=torch.float64)
    log_q = -0.5 * ((x - mu) / sigma) ** 2 - 0.5 * logvar
    log_p = -0.5 * x**2
    integral = torch.trapezoid(log_q.exp() / math.sqrt(2 * math.pi) * (log_q - log_p), x)
    kl = kl_standard_normal(torch.tensor([[mu]]).double(), torch.tensor([[logvar]]).double())
    assert kl.item() == pytest.approx(integral.item(), abs=1e-6, rel=1e-6)


@given(mu=finite, logvar=finite)
def test_kl_is_never_negative_and_vanishes_at_the_prior_alone(mu: Array, logvar: Array) -> None:
    kl = kl_standard_normal(torch.from_numpy(mu)[None], torch.from_numpy(logvar)[None])[0].numpy()
    assert (kl >= -1e-12).all()
    assert ((kl > 1e-9) >= ((np.abs(mu) > 1e-4) | (np.abs(logvar) > 1e-4))).all()


def _covariance(root: Array) -> Tensor:
    """Make a positive definite matrix (4, 4) from any matrix."""
    return torch.from_numpy(root @ root.T + 0.1 * np.eye(4))


square = hnp.arrays(np.float64, (4, 4), elements=st.floats(-2, 2))


@given(mean_0=finite, root_0=square, mean_1=finite, root_1=square)
def test_general_gaussian_kl_is_that_of_torch_distributions(
    mean_0: Array, root_0: Array, mean_1: Array, root_1: Array
) -> None:
    p = (torch.from_numpy(mean_0), _covariance(root_0))
    q = (torch.from_numpy(mean_1), _covariance(root_1))
    expected = kl_divergence(MultivariateNormal(*p), MultivariateNormal(*q))
    torch.testing.assert_close(kl_gaussians(*p, *q), expected, rtol=1e-7, atol=1e-7)


def test_general_gaussian_kl_is_the_integral_that_defines_it() -> None:
    mean_0, mean_1 = torch.tensor([0.5, -0.3]).double(), torch.tensor([-0.2, 0.4]).double()
    covariance_0, covariance_1 = torch.tensor([[[0.5, 0.2], [0.2, 0.4]], [[1.0, -0.4], [-0.4, 0.8]]]).double()
    axis = torch.linspace(-6, 6, 801, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    log_p = MultivariateNormal(mean_0, covariance_0).log_prob(points)  # type: ignore[no-untyped-call]
    log_q = MultivariateNormal(mean_1, covariance_1).log_prob(points)  # type: ignore[no-untyped-call]
    integral = (log_p.exp() * (log_p - log_q)).sum() * (axis[1] - axis[0]) ** 2
    kl = kl_gaussians(mean_0, covariance_0, mean_1, covariance_1)
    assert kl.item() == pytest.approx(integral.item(), abs=1e-8)


@given(mu=finite, logvar=finite)
def test_kl_from_the_prior_is_the_general_one_of_a_diagonal_gaussian(mu: Array, logvar: Array) -> None:
    mean, log_variance = torch.from_numpy(mu), torch.from_numpy(logvar)
    general = kl_gaussians(mean, log_variance.exp().diag(), torch.zeros(4).double(), torch.eye(4).double())
    torch.testing.assert_close(kl_standard_normal(mean[None], log_variance[None]).sum(), general)


@given(mu=finite, logvar=st.floats(-3, 3))
def test_kl_of_an_isotropic_gaussian_has_the_trace_d_sigma_squared(mu: Array, logvar: float) -> None:
    """The notes' special case, corrected: the trace is d·sigma², not (sigma²)^d, and −d is kept."""
    d, variance = 4, math.exp(logvar)
    expected = 0.5 * (d * variance + (mu**2).sum() - d - d * logvar)
    mean = torch.from_numpy(mu)
    general = kl_gaussians(mean, variance * torch.eye(d).double(), torch.zeros(d).double(), torch.eye(d).double())
    assert general.item() == pytest.approx(expected, abs=1e-9)
    ours = kl_standard_normal(mean[None], torch.full((1, d), logvar, dtype=torch.float64))
    assert ours.sum().item() == pytest.approx(expected, abs=1e-9)


def test_a_covariance_that_is_none_is_refused() -> None:
    zero, identity = torch.zeros(2), torch.eye(2)
    with pytest.raises(RuntimeError, match="not positive-definite"):
        kl_gaussians(zero, -identity, zero, identity)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0])
def test_gaussian_log_likelihood_is_that_of_torch_distributions(sigma: float) -> None:
    image, mean = torch.rand(6, 3, 4, 5), torch.rand(6, 3, 4, 5)
    expected = Normal(mean, sigma).log_prob(image).flatten(1).sum(1)  # type: ignore[no-untyped-call]
    error = (image - mean).square().flatten(1).sum(1)
    torch.testing.assert_close(gaussian_log_likelihood(error, 60, sigma**2), expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(
        gaussian_log_likelihood(error, 60, torch.tensor(sigma**2)), expected, rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0])
def test_laplace_log_likelihood_is_that_of_torch_distributions(sigma: float) -> None:
    image, mean = torch.rand(6, 3, 4, 5), torch.rand(6, 3, 4, 5)
    expected = Laplace(mean, sigma / 2**0.5).log_prob(image).flatten(1).sum(1)  # type: ignore[no-untyped-call]
    error = (image - mean).abs().flatten(1).sum(1)
    torch.testing.assert_close(laplace_log_likelihood(error, 60, sigma**2), expected, rtol=1e-5, atol=1e-3)
    logits = torch.logit(mean)[None]
    likelihood = TrainingLikelihood("laplace", 60, sigma**2)
    found = likelihood.log_density(reconstruction_error(likelihood, image, logits))
    torch.testing.assert_close(found, expected[None], rtol=1e-4, atol=1e-2)


def test_laplace_density_integrates_to_one_and_has_the_variance() -> None:
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    density = laplace_log_likelihood((x - 0.3).abs(), 1, 0.25).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-6)
    assert torch.trapezoid(density * (x - 0.3).square(), x).item() == pytest.approx(0.25, abs=1e-6)


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
@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_optimal_variance_is_the_most_likely_one(name: PixelLikelihood, factor: float) -> None:
    error = torch.rand(32, dtype=torch.float64) * 4 + 0.1
    best = optimal_variance(error, 50, likelihood=name)
    of_each = error.mean().item() / 50
    assert best.item() == pytest.approx(of_each if name == "gaussian" else 2 * of_each**2)
    highest = TrainingLikelihood(name, 50, best).log_density(error).mean()
    assert TrainingLikelihood(name, 50, best * factor).log_density(error).mean() < highest


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
    terms = BatchTerms(torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0]))
    assert terms.elbo.tolist() == [2.0, -3.0]


@pytest.mark.parametrize("name", ["gaussian", "bernoulli"])
def test_terms_agree_with_the_edge(name: PixelLikelihood) -> None:
    """vaekit.maths.elbo computes the same numbers without PyTorch."""
    network = VAENetwork((1, 8, 9), 3).eval()
    image = torch.rand(5, 1, 8, 9).round() if name == "bernoulli" else torch.rand(5, 1, 8, 9)
    sigma = None if name == "bernoulli" else 0.2
    eps = noise.standard_normal(7, 0, 1, 3)
    with torch.inference_mode():
        likelihood = TrainingLikelihood(name, 72, None if sigma is None else sigma**2)
        ours = terms_of(draw(network, likelihood, image, torch.from_numpy(eps).float().expand(1, 5, 3)), likelihood)
        mu, logvar = _numpy_pair(network.encoder(image))
        decoded = network.decoder(torch.from_numpy(scoring.posterior_sample(mu, logvar, seed=7))).numpy()
        edge_likelihood = scoring.Likelihood(one_of(LIKELIHOODS, name, "likelihood"), sigma)
        edge = scoring.elbo_terms(image.numpy(), mu, logvar, decoded, edge_likelihood)
    np.testing.assert_allclose(ours.kl.numpy(), edge.kl, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.reconstruction.numpy(), edge.reconstruction, rtol=1e-5)
    np.testing.assert_allclose(ours.elbo.numpy(), edge.elbo, rtol=1e-5)


def _numpy_pair(pair: tuple[Tensor, Tensor]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return pair[0].numpy(), pair[1].numpy()


def _draws(error: Tensor, *, kl: Tensor | None = None) -> Draws:
    """Return draws (S, B) with this reconstruction error, a log ratio of zero and this KL.

    The posteriors are N(m, 1) with ½ m² = kl (B, d).
    """
    samples, images = error.shape
    mu = torch.zeros(images, 3) if kl is None else torch.sqrt(2 * kl)
    return Draws(mu, torch.zeros_like(mu), mu.expand(samples, *mu.shape), torch.zeros_like(error), error)


@pytest.mark.parametrize("name", ["elbo", "autoencoder", "prior-only"])
def test_an_unset_variance_is_fitted_to_the_draws(name: ObjectiveName) -> None:
    error = torch.rand(3, 8) + 1
    fitted = Objective(name).fitted(TrainingLikelihood("gaussian", 64), _draws(error))
    assert fitted.variance is not None
    assert float(fitted.variance) == pytest.approx(error.mean().item() / 64)


@pytest.mark.parametrize("likelihood", [TrainingLikelihood("gaussian", 64, 0.3), TrainingLikelihood("bernoulli", 64)])
def test_a_set_variance_is_kept_and_bernoulli_has_none(likelihood: TrainingLikelihood) -> None:
    assert Objective().fitted(likelihood, _draws(torch.rand(3, 8))) == likelihood


@pytest.mark.parametrize("factor", [0.8, 0.97, 1.03, 1.25])
@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_the_iwae_variance_is_where_the_bound_is_highest(name: PixelLikelihood, factor: float) -> None:
    error, log_ratio = torch.rand(8, 16).double() * 4 + 3, torch.randn(8, 16).double()
    best = iwae_variance(error, log_ratio, 20, likelihood=name)
    draws = _draws(error)._replace(log_ratio=log_ratio)
    assert Objective("iwae", samples=8).fitted(TrainingLikelihood(name, 20), draws).variance == best
    highest = iwae_bound(draws, TrainingLikelihood(name, 20, best)).mean()
    assert iwae_bound(draws, TrainingLikelihood(name, 20, best * factor)).mean() < highest
    assert best < optimal_variance(error, 20, likelihood=name)  # the draws with the largest weights fit best


def test_the_iwae_gradient_with_the_fitted_variance_held_is_that_of_the_bound_at_its_highest() -> None:
    error, direction = torch.rand(8, 16).double() * 4 + 3, torch.randn(8, 16).double()

    def highest(step: float) -> Tensor:
        moved = error + step * direction
        variance = iwae_variance(moved, torch.zeros_like(moved), 20)
        return iwae_bound(_draws(moved), TrainingLikelihood("gaussian", 20, variance)).mean()

    objective, leaf = Objective("iwae", samples=8), error.clone().requires_grad_()
    fitted = objective.fitted(TrainingLikelihood("gaussian", 20), _draws(leaf))
    (gradient,) = torch.autograd.grad(objective.value(_draws(leaf), fitted), leaf)
    slope = (highest(1e-4) - highest(-1e-4)) / 2e-4
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-3, atol=1e-6)


def test_the_iwae_gradient_weighs_draws_by_their_normalised_importance() -> None:
    error = (torch.rand(5, 3).double() * 4).requires_grad_()
    draws, likelihood = _draws(error), TrainingLikelihood("gaussian", 10, 0.5)
    (gradient,) = torch.autograd.grad(Objective("iwae", samples=5).value(draws, likelihood), error)
    weights = torch.softmax(-error.detach(), 0)  # exp(−error / (2 · 0.5)), normalised
    torch.testing.assert_close(gradient, -weights / 3)


def test_objectives_are_made_of_the_terms() -> None:
    error, kl = torch.rand(4, 6) + 1, torch.rand(6, 3)
    likelihood = TrainingLikelihood("gaussian", 10, 0.4)
    draws = _draws(error, kl=kl)
    reconstruction = gaussian_log_likelihood(error, 10, 0.4).mean()
    total = kl.sum(1).mean()
    floored = kl.mean(0).clamp_min(0.5).sum()
    assert floored > total
    for objective, kl_weight, expected in (
        (Objective(), 1.0, reconstruction - total),
        (Objective(beta=4.0), 1.0, reconstruction - 4 * total),
        (Objective(beta=4.0), 0.25, reconstruction - total),
        (Objective(free_bits=0.5), 1.0, reconstruction - floored),
        (Objective(beta=2.0, free_bits=0.5), 0.5, reconstruction - floored),
        (Objective("autoencoder"), 1.0, reconstruction),
        (Objective("prior-only"), 1.0, -total),
    ):
        torch.testing.assert_close(objective.value(draws, likelihood, kl_weight), expected)


def test_free_bits_stop_the_gradient_of_dimensions_that_are_below_them() -> None:
    kl = torch.tensor([[0.01, 2.0], [0.03, 4.0]])
    mu = torch.sqrt(2 * kl).requires_grad_()
    draws = _draws(torch.ones(1, 2))._replace(mu=mu, logvar=torch.zeros(2, 2))
    value = Objective(free_bits=0.1).value(draws, TrainingLikelihood("gaussian", 10, 1.0))
    (gradient,) = torch.autograd.grad(value, mu)
    assert gradient[:, 0].tolist() == [0.0, 0.0]
    torch.testing.assert_close(gradient[:, 1], -mu[:, 1].detach() / 2)


@pytest.mark.parametrize("name", ["gaussian", "bernoulli"])
def test_several_draws_are_those_of_one_each(name: PixelLikelihood) -> None:
    network = VAENetwork((1, 8, 9), 3).eval()
    image, eps, likelihood = torch.rand(5, 1, 8, 9), torch.randn(4, 5, 3), TrainingLikelihood(name, 72, 0.2)
    with torch.inference_mode():
        together = draw(network, likelihood, image, eps)
        alone = [draw(network, likelihood, image, row[None]) for row in eps]
    assert together.z.shape == (4, 5, 3)
    for part in ("z", "log_ratio", "reconstruction_error"):
        torch.testing.assert_close(getattr(together, part), torch.cat([getattr(one, part) for one in alone]))
    reconstructions = torch.stack([terms_of(one, likelihood).reconstruction for one in alone])
    torch.testing.assert_close(terms_of(together, likelihood).reconstruction, reconstructions.mean(0))


def test_the_log_ratio_is_that_of_torch_distributions() -> None:
    network = VAENetwork((1, 8, 9), 3).eval()
    with torch.inference_mode():
        draws = draw(network, TrainingLikelihood("gaussian", 72), torch.rand(5, 1, 8, 9), torch.randn(4, 5, 3))
    q, p = Normal(draws.mu, torch.exp(draws.logvar / 2)), Normal(0.0, 1.0)
    log_ratio = (p.log_prob(draws.z) - q.log_prob(draws.z)).sum(2)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(draws.log_ratio, log_ratio)


def test_joined_draws_are_those_of_all_images() -> None:
    network, likelihood = VAENetwork((1, 8, 9), 3).eval(), TrainingLikelihood("gaussian", 72, 0.1)
    image, eps = torch.rand(5, 1, 8, 9), torch.randn(4, 5, 3)
    with torch.inference_mode():
        whole = draw(network, likelihood, image, eps)
        joined = Draws.joined(
            [draw(network, likelihood, image[:2], eps[:, :2]), draw(network, likelihood, image[2:], eps[:, 2:])]
        )
    for one, other in zip(whole, joined, strict=True):
        torch.testing.assert_close(one, other)


# A linear Gaussian model, x ~ N(½, W Wᵀ + sigma² I), with a known log p(x). W's columns are orthogonal, which makes the
# exact posterior diagonal, and short, which keeps the decoder's mean within (0, 1).

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


def _linear_model(shift: float, factor: float) -> tuple[VAENetwork, MultivariateNormal]:
    """Return the model with this encoder, and its exact p(x)."""
    network = VAENetwork((1, 8, 8), _LATENT)
    network.encoder, network.decoder = _LinearEncoder(shift, factor), _LinearDecoder()
    covariance = _W @ _W.T + _SIGMA**2 * torch.eye(_PIXELS, dtype=torch.float64)
    return network, MultivariateNormal(torch.full((_PIXELS,), 0.5, dtype=torch.float64), covariance)


def _linear_draws(network: VAENetwork, x: Tensor, samples: int, repeats: int) -> Draws:
    image = x.reshape(1, 1, 2, 2).expand(repeats, 1, 2, 2)
    return draw(network, _LINEAR, image, torch.randn(samples, repeats, _LATENT, dtype=torch.float64))


_LINEAR = TrainingLikelihood("gaussian", _PIXELS, _SIGMA**2)


@pytest.mark.parametrize(("shift", "factor", "gap"), [(0.0, 1.0, 0.0), (0.2, 1.0, 0.05), (0.0, 2.0, 0.1)])
def test_elbo_is_a_lower_bound_of_the_exact_log_likelihood(shift: float, factor: float, gap: float) -> None:
    network, p = _linear_model(shift, factor)
    for x in p.sample((3,)):
        terms = terms_of(_linear_draws(network, x, 200_000, 1), _LINEAR)
        elbo, exact = terms.elbo.item(), p.log_prob(x).item()  # type: ignore[no-untyped-call]
        if gap:
            assert elbo < exact - gap
        else:  # with the exact posterior the bound is tight
            assert elbo == pytest.approx(exact, abs=0.02)


def test_the_gap_of_the_elbo_is_the_divergence_from_the_exact_posterior() -> None:
    network, p = _linear_model(0.2, 2.0)
    exact_encoder = _LinearEncoder(0.0, 1.0)
    for x in p.sample((3,)):
        draws = _linear_draws(network, x, 400_000, 1)
        mean, logvar = exact_encoder(x.reshape(1, 1, 2, 2))
        gap = kl_gaussians(draws.mu[0], draws.logvar[0].exp().diag(), mean[0], logvar[0].exp().diag())
        exact = p.log_prob(x).item()  # type: ignore[no-untyped-call]
        assert terms_of(draws, _LINEAR).elbo.item() == pytest.approx(exact - gap.item(), abs=0.02)


def test_the_iwae_bound_rises_with_k_from_the_elbo_to_the_exact_log_likelihood() -> None:
    network, p = _linear_model(0.5, 2.0)
    for x in p.sample((3,)):
        exact = p.log_prob(x).item()  # type: ignore[no-untyped-call]
        bounds = [
            iwae_bound(_linear_draws(network, x, k, 400_000 // k), _LINEAR).mean().item() for k in (1, 4, 16, 64, 1024)
        ]
        elbo = terms_of(_linear_draws(network, x, 400_000, 1), _LINEAR).elbo.item()
        assert bounds[0] == pytest.approx(elbo, abs=0.02)
        assert bounds[0] < bounds[1] - 0.05
        assert bounds == sorted(bounds)
        assert bounds[-1] == pytest.approx(exact, abs=0.01)


def test_with_the_exact_posterior_one_importance_sample_is_enough() -> None:
    network, p = _linear_model(0.0, 1.0)
    x = p.sample((1,))[0]
    exact = p.log_prob(x)  # type: ignore[no-untyped-call]
    bound = iwae_bound(_linear_draws(network, x, 1, 5), _LINEAR)
    torch.testing.assert_close(bound, exact.expand(5), rtol=1e-6, atol=1e-6)
