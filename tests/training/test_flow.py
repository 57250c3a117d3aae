"""Training of a learned prior."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vaekit.maths.flow import integrate
from vaekit.training.flow import Codes, Flow, FlowTraining, MapVelocity, VectorVelocity, velocity_network
from vaekit.types import Array


def two_clusters(count: int = 600) -> Codes:
    side = np.where(np.random.default_rng(0).random(count) < 0.5, -3, 3)
    mu = np.stack((side, np.zeros(count)), 1).astype(np.float32)
    return Codes(mu, np.full_like(mu, 2 * np.log(0.3)))


def trained(codes: Codes, steps: int, until: int | None = None) -> FlowTraining:
    training = FlowTraining(codes, 0, VectorVelocity(2, width=32, blocks=1) if codes.mu.ndim == 2 else None)
    for step in range(until or steps):
        training.advance(step / steps)
    return training


def drawn(flow: Flow, noise: Array) -> Array:
    def velocity(z: Array, t: Array) -> Array:
        with torch.inference_mode():
            found: Array = flow.network(torch.from_numpy(z), torch.from_numpy(t)).numpy()
        return found

    shape = (-1, *[1] * (noise.ndim - 2))
    return flow.mean.reshape(shape) + flow.std.reshape(shape) * integrate(velocity, noise, 8)


def test_moments_are_those_of_draws() -> None:
    codes = Codes(
        np.random.default_rng(0).normal(2, 3, (5000, 2, 4, 4)).astype(np.float32), np.zeros((5000, 2, 4, 4), np.float32)
    )
    mean, std = codes.moments()
    z = codes.draw(np.random.default_rng(1), 4000)
    np.testing.assert_allclose(mean, z.mean(axis=(0, 2, 3)), atol=0.05)
    np.testing.assert_allclose(std, z.std(axis=(0, 2, 3)), rtol=0.02)


def test_samples_lie_in_the_clusters_and_not_between() -> None:
    flow = trained(two_clusters(), 800).flow()
    z = drawn(flow, np.random.default_rng(5).standard_normal((1000, 2), np.float32))
    assert np.mean(np.abs(np.abs(z[:, 0]) - 3) < 1) > 0.95
    assert np.mean(z[:, 0] > 0) == pytest.approx(0.5, abs=0.08)
    assert z[:, 1].std() == pytest.approx(0.3, abs=0.1)


def test_the_loss_falls_and_is_measured_the_same_way_every_time() -> None:
    codes = two_clusters()
    training = FlowTraining(codes, 0, VectorVelocity(2, width=32, blocks=1))
    before = training.held_out_loss(codes)
    for step in range(200):
        training.advance(step / 200)
    after = training.held_out_loss(codes)
    assert after < 0.8 * before
    assert training.held_out_loss(codes) == after


@pytest.mark.parametrize("maps", [False, True])
def test_a_resumed_training_has_the_same_weights(maps: bool) -> None:
    codes = two_clusters()
    if maps:
        mu = np.random.default_rng(0).standard_normal((40, 2, 3, 3), np.float32)
        codes = Codes(mu, np.zeros_like(mu))
    whole, first = trained(codes, 12), trained(codes, 12, until=5)
    second = FlowTraining(codes, 0, VectorVelocity(2, width=32, blocks=1) if not maps else None)
    second.restore({name: tensor.clone() for name, tensor in first.state().items()}, first.step)
    for step in range(5, 12):
        second.advance(step / 12)
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_networks_keep_the_shape_of_latents_and_begin_with_nothing() -> None:
    for shape, kind in (((5,), VectorVelocity), ((3, 4, 6), MapVelocity)):
        network = velocity_network(shape)
        assert isinstance(network, kind)
        found = network(torch.randn(4, *shape), torch.rand(4))
        assert found.shape == (4, *shape)
        assert not found.any()
    larger = velocity_network((3, 4, 6))(torch.randn(2, 3, 7, 9), torch.rand(2))  # maps of any size
    assert larger.shape == (2, 3, 7, 9)


def test_the_network_for_vectors_stays_under_a_megabyte() -> None:
    assert 4 * sum(part.numel() for part in velocity_network((16,)).parameters()) < 1_000_000
