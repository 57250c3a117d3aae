"""Evaluation of a model with a known solution, at several batch sizes, and of models with known faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from vaekit.errors import VaekitError
from vaekit.images.dataset import Images
from vaekit.training.config import Config
from vaekit.training.evaluation import Evaluation, evaluate
from vaekit.training.networks import Decoder, Encoder, VAENetwork
from vaekit.training.run import Run, load_holdout, load_run
from vaekit.training.trainer import Outcome, Trainer

MakeConfig = Callable[..., Config]

_SIGMA = 0.05
_W = torch.tensor([[0.05, 0.02], [0.05, -0.02], [0.03, 0.03], [-0.03, -0.03]])
_COVARIANCE = _W @ _W.T + _SIGMA**2 * torch.eye(4)


class _LinearDecoder(Decoder):
    def __init__(self) -> None:
        nn.Module.__init__(self)

    def logits(self, z: Tensor) -> Tensor:
        return torch.logit(0.5 + z @ _W.T).reshape(-1, 1, 2, 2)


class _LinearEncoder(Encoder):
    """The exact posterior's mean, with variances that are too large and without covariances."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        covariance = torch.linalg.inv(torch.eye(2) + _W.T @ _W / _SIGMA**2)
        mu = (image.flatten(1) - 0.5) @ _W @ covariance / _SIGMA**2
        return mu, (1.5 * covariance.diag()).log().expand_as(mu)


def linear_run(make_config: MakeConfig) -> Run:
    """Return the model x ~ N(½, W Wᵀ + sigma² I) of 2 x 2 pixels, with an inexact encoder."""
    network = VAENetwork((1, 8, 8), 2)
    network.encoder, network.decoder = _LinearEncoder(), _LinearDecoder()
    config = make_config(channels=1, height=2, width=2, latent=2, sigma=_SIGMA)
    return Run(Path("linear"), config, network.eval(), _SIGMA**2, None, {})


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """Draw 200 images from the linear model, uint8 (200, 1, 2, 2)."""
    torch.manual_seed(0)
    x = MultivariateNormal(torch.full((4,), 0.5), _COVARIANCE).sample((200,))
    return np.asarray((x * 255).round().clamp(0, 255).to(torch.uint8).reshape(-1, 1, 2, 2))


def run_on(run: Run, pixels: NDArray[np.uint8], **options: Any) -> Evaluation:
    return evaluate(run, pixels.__getitem__, np.arange(len(pixels)), **options)


def test_the_nll_approaches_the_exact_one_from_above_and_the_elbo_stays_below(
    make_config: MakeConfig, pixels: NDArray[np.uint8]
) -> None:
    run = linear_run(make_config)
    x = torch.from_numpy(pixels).reshape(-1, 4) / 255
    exact = -MultivariateNormal(torch.full((4,), 0.5), _COVARIANCE).log_prob(x).mean().item()  # type: ignore[no-untyped-call]
    figures = [run_on(run, pixels, samples=samples) for samples in (2, 20, 1000)]
    nlls = [figure.nll for figure in figures]
    assert nlls == sorted(nlls, reverse=True)
    assert nlls[0] > exact + 0.01
    assert nlls[-1] == pytest.approx(exact, abs=0.003)
    assert figures[-1].elbo == pytest.approx(figures[-1].reconstruction - figures[-1].kl)
    assert figures[-1].elbo < -exact - 0.02


def test_the_terms_are_those_of_the_closed_forms(make_config: MakeConfig, pixels: NDArray[np.uint8]) -> None:
    run = linear_run(make_config)
    figures = run_on(run, pixels, samples=400)
    x = torch.from_numpy(pixels).float() / 255
    mu, logvar = run.network.encoder(x)
    q = MultivariateNormal(mu, torch.diag_embed(logvar.exp()))
    kl = kl_divergence(q, MultivariateNormal(torch.zeros(2), torch.eye(2)))
    assert figures.kl == pytest.approx(kl.mean().item(), rel=1e-5)
    assert sum(figures.kl_per_dimension) == pytest.approx(figures.kl)
    mean = 0.5 + mu @ _W.T
    spread_error = (logvar.exp() @ _W.T.square()).sum(1)  # of decoded draws around the decoded mean
    error = (x.flatten(1) - mean).square().sum(1)
    reconstruction = -2 * math.log(2 * math.pi * _SIGMA**2) - (error + spread_error) / (2 * _SIGMA**2)
    assert figures.reconstruction == pytest.approx(reconstruction.mean().item(), abs=0.02)
    assert figures.mse == pytest.approx(error.mean().item() / 4, rel=1e-3)
    assert figures.psnr == pytest.approx((-10 * torch.log10(error / 4)).mean().item(), rel=1e-3)
    assert figures.sigma == pytest.approx(_SIGMA)
    assert figures.mu_variance == pytest.approx(mu.var(0, correction=0).tolist(), rel=1e-3)
    assert figures.active_units == 2


def test_no_more_kl_lies_in_the_codes_as_a_whole_than_there_is(
    make_config: MakeConfig, pixels: NDArray[np.uint8]
) -> None:
    figures = run_on(linear_run(make_config), pixels, samples=1)
    shifted = run_on(linear_run(make_config), np.clip(pixels + 60, 0, 255).astype(np.uint8), samples=1)
    assert figures.aggregate_kl is not None
    assert shifted.aggregate_kl is not None
    assert 0 <= figures.aggregate_kl <= figures.kl
    assert figures.aggregate_kl < shifted.aggregate_kl <= shifted.kl


def test_figures_do_not_depend_on_the_batch_size(trained: tuple[Path, Outcome], images: Images) -> None:
    whole, parts, single = (
        run_on(load_run(trained[0]), images.read(range(30)), samples=7, batch_size=size) for size in (1000, 16, 3)
    )
    for other in (parts, single):
        for name, value in whole.to_json().items():
            assert getattr(other, name) == pytest.approx(value, rel=1e-5), name


def test_the_seed_moves_the_draws_alone(trained: tuple[Path, Outcome], images: Images) -> None:
    run, pixels = load_run(trained[0]), images.read(range(30))
    first, again, other = (run_on(run, pixels, samples=3, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.nll != other.nll
    assert first.nll == pytest.approx(other.nll, abs=5)
    assert first.kl == other.kl


def test_the_held_out_elbo_is_that_of_the_training(trained: tuple[Path, Outcome]) -> None:
    path, outcome = trained
    run = load_run(path)
    figures = run_on(run, load_holdout(run), samples=50)
    assert figures.elbo == pytest.approx(outcome.elbo, abs=0.02 * abs(outcome.elbo) + 2)
    assert figures.kl == pytest.approx(outcome.kl, rel=1e-4)
    assert -figures.nll > figures.elbo


def test_a_collapsed_posterior_has_no_active_units(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    Trainer(make_config(steps=60, objective="prior-only"), images, tmp_path / "run").run()
    figures = run_on(load_run(tmp_path / "run"), images.read(range(60)), samples=2)
    assert figures.active_units == 0
    assert figures.dead == (0, 1)


def test_a_dimension_that_does_not_follow_the_image_is_dead(trained: tuple[Path, Outcome], images: Images) -> None:
    run = load_run(trained[0])
    with torch.no_grad():
        run.network.encoder.mu.weight[1].zero_()
    figures = run_on(run, images.read(range(60)), samples=2)
    assert figures.dead == (1,)
    assert figures.active_units == 1


def test_one_image_tells_nothing_of_active_units(trained: tuple[Path, Outcome], images: Images) -> None:
    assert run_on(load_run(trained[0]), images.read([0]), samples=2).active_units is None


def test_bernoulli_says_whether_pixels_were_binary(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    Trainer(make_config(likelihood="bernoulli"), images, tmp_path / "run").run()
    run, grey = load_run(tmp_path / "run"), images.read(range(9))
    binary = np.where(grey > 127, np.uint8(255), np.uint8(0))
    assert not run_on(run, grey, samples=2).binary
    figures = run_on(run, binary, samples=2)
    assert figures.binary
    assert figures.sigma is None
    assert figures.nll > 0  # a probability


def test_the_document_has_its_keys(trained: tuple[Path, Outcome], images: Images) -> None:
    document = run_on(load_run(trained[0]), images.read(range(5)), samples=2).to_json()
    assert list(document) == [
        *("images", "elbo", "reconstruction", "kl", "nll", "nll_samples"),
        *("active_units", "kl_per_dimension", "psnr", "mse", "sigma", "bits_per_dimension"),
    ]
    numbers = 3 * 12 * 9
    in_nats = -document["elbo"] + numbers * math.log(256)  # of the code for 8 bits
    assert document["bits_per_dimension"] == pytest.approx(in_nats / math.log(2) / numbers)


def test_weights_that_are_not_finite_are_named(trained: tuple[Path, Outcome], images: Images) -> None:
    run = load_run(trained[0])
    with torch.no_grad():
        run.network.encoder.mu.weight.fill_(math.nan)
    with pytest.raises(VaekitError, match="not finite"):
        run_on(run, images.read(range(5)), samples=2)
