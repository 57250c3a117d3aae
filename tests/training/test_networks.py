"""Encoder and decoder, for sides of 8 or more and one or three channels."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaekit.training.networks import VAENetwork, level_sizes, reparameterise

sides = st.integers(8, 70)


@settings(max_examples=25, deadline=None)
@given(channels=st.sampled_from([1, 3]), height=sides, width=sides, latent=st.integers(1, 5), training=st.booleans())
def test_every_size_goes_in_and_comes_out(channels: int, height: int, width: int, latent: int, training: bool) -> None:
    network = VAENetwork((channels, height, width), latent).train(training)
    image = torch.rand(2, channels, height, width)
    with torch.no_grad():
        mu, logvar = network.encoder(image)
        decoded = network.decoder(mu)
    assert mu.shape == logvar.shape == (2, latent)
    assert decoded.shape == image.shape
    assert decoded.min() >= 0.0
    assert decoded.max() <= 1.0


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 70), (3, 70, 8), (1, 28, 28), (3, 64, 64), (3, 13, 31)])
def test_the_feature_map_is_small_but_no_side_vanishes(shape: tuple[int, int, int]) -> None:
    height, width = level_sizes(*shape[1:])[-1]
    assert 3 <= min(height, width) <= 6


def test_logvar_stays_bounded_whatever_the_weights() -> None:
    network = VAENetwork((1, 8, 8), 4).eval()
    with torch.no_grad():
        network.encoder.logvar.weight.mul_(1e6)
        _, logvar = network.encoder(torch.rand(32, 1, 8, 8))
    assert logvar.abs().max() == 10.0
    assert logvar.min() < 0 < logvar.max()


def test_decoder_is_the_sigmoid_of_its_logits() -> None:
    decoder = VAENetwork((3, 9, 11), 2).eval().decoder
    z = torch.randn(4, 2)
    with torch.no_grad():
        torch.testing.assert_close(decoder(z), torch.sigmoid(decoder.logits(z)))


def test_a_batch_does_not_change_an_image_in_evaluation() -> None:
    network = VAENetwork((3, 12, 9), 2).eval()
    image, z = torch.rand(5, 3, 12, 9), torch.randn(5, 2)
    with torch.no_grad():
        torch.testing.assert_close(network.encoder(image)[0][2:3], network.encoder(image[2:3])[0])
        torch.testing.assert_close(network.decoder(z)[2:3], network.decoder(z[2:3]))


def test_reparameterised_draws_have_the_posteriors_mean_and_variance() -> None:
    eps = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mu, variance = torch.tensor([[1.5, -0.5]]), torch.tensor([[0.25, 4.0]])
    z = reparameterise(mu.double(), variance.double().log(), eps)
    torch.testing.assert_close(z.mean(0), mu[0].double(), rtol=0, atol=0.02)
    torch.testing.assert_close(z.var(0), variance[0].double(), rtol=0.02, atol=0)


@pytest.mark.parametrize("latent", [1, 4])
def test_an_isotropic_posterior_has_one_variance_for_all_dimensions(latent: int) -> None:
    encoder = VAENetwork((1, 8, 8), latent, "isotropic").eval().encoder
    with torch.no_grad():
        mu, logvar = encoder(torch.rand(6, 1, 8, 8))
    assert mu.shape == logvar.shape == (6, latent)
    assert torch.equal(logvar, logvar[:, :1].expand(6, latent))
    assert len(set(logvar[:, 0].tolist())) == 6  # it depends on the image


def test_a_diagonal_posterior_has_a_variance_for_each_dimension() -> None:
    with torch.no_grad():
        _, logvar = VAENetwork((1, 8, 8), 4).eval().encoder(torch.rand(6, 1, 8, 8))
    assert len(set(logvar.flatten().tolist())) == 24


def test_presets_grow_in_encoder_and_decoder() -> None:
    sizes = [
        [sum(p.numel() for p in half.parameters()) for half in (network.encoder, network.decoder)]
        for network in (VAENetwork((1, 28, 28), 16, preset=name) for name in ("tiny", "small", "base"))
    ]
    for smaller, larger in itertools.pairwise(sizes):
        assert 2 * smaller[0] < larger[0]
        assert 2 * smaller[1] < larger[1]
    assert sizes[1] == [sum(p.numel() for p in half.parameters()) for half in VAENetwork((1, 28, 28), 16).children()]
