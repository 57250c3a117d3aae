"""Training of a learned prior."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vaekit.maths.flow import integrate, one_hot
from vaekit.maths.prior import Mixture, draw_mixture
from vaekit.training.flow import Codes, Flow, FlowTraining, MapVelocity, VectorVelocity, velocity_network
from vaekit.training.mixture import fit_mixture
from vaekit.training.mixture_start import MixtureStart
from vaekit.types import Array


def two_clusters(count: int = 600) -> Codes:
    side = np.where(np.random.default_rng(0).random(count) < 0.5, -3, 3)
    mu = np.stack((side, np.zeros(count)), 1).astype(np.float32)
    return Codes(mu, np.full_like(mu, 2 * np.log(0.3)))


def trained(codes: Codes, steps: int, until: int | None = None) -> FlowTraining:
    training = FlowTraining(codes, 0, network=VectorVelocity(2, width=32, blocks=1) if codes.mu.ndim == 2 else None)
    for step in range(until or steps):
        training.advance(step / steps)
    return training


def drawn(flow: Flow, noise: Array, *labels: Array) -> Array:
    def velocity(z: Array, t: Array) -> Array:
        with torch.inference_mode():
            found: Array = flow.network(*map(torch.from_numpy, (z, t, *labels))).numpy()
        return found

    shape = (-1, *[1] * (noise.ndim - 2))
    return flow.mean.reshape(shape) + flow.std.reshape(shape) * integrate(velocity, noise, 8)


def test_moments_are_those_of_draws() -> None:
    codes = Codes(
        np.random.default_rng(0).normal(2, 3, (5000, 2, 4, 4)).astype(np.float32), np.zeros((5000, 2, 4, 4), np.float32)
    )
    mean, std = codes.moments()
    z, _ = codes.draw(np.random.default_rng(1), 4000)
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
    training = FlowTraining(codes, 0, network=VectorVelocity(2, width=32, blocks=1))
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
    second = FlowTraining(codes, 0, network=VectorVelocity(2, width=32, blocks=1) if not maps else None)
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


def test_a_label_leads_to_its_own_cluster() -> None:
    clusters = two_clusters()
    codes = Codes(clusters.mu, clusters.logvar, (clusters.mu[:, 0] > 0).astype(np.int64), ("left", "right"))
    training = FlowTraining(codes, 0, network=VectorVelocity(2, 2, width=32, blocks=1))
    for step in range(800):
        training.advance(step / 800)
    flow = training.flow()
    assert flow.labels == ("left", "right")
    assert flow.label_weights is not None
    assert flow.label_weights.tolist() == pytest.approx([np.mean(codes.labels == 0), np.mean(codes.labels == 1), 0])
    noise = np.random.default_rng(5).standard_normal((400, 2), np.float32)
    for number, side in ((0, -1), (1, 1)):
        z = drawn(flow, noise, one_hot(np.full(400, number), 2))
        assert np.mean(np.abs(z[:, 0] - 3 * side) < 1) > 0.97
    both = drawn(flow, noise, one_hot(np.full(400, -1), 2))
    assert 0.3 < np.mean(both[:, 0] > 0) < 0.7


def test_codes_without_a_label_count_as_the_last() -> None:
    mu = np.zeros((8, 2), np.float32)
    weights = Codes(mu, mu, np.array([0, 1, 1, -1, -1, -1, -1, 1]), ("a", "b")).label_weights()
    assert weights is not None
    assert weights.tolist() == [1 / 8, 3 / 8, 4 / 8]
    assert Codes(mu, mu).label_weights() is None


def test_starting_points_are_distributed_as_the_mixture_and_lie_near_their_codes() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 6000)
    truth = Mixture(
        np.array([0.25, 0.25, 0.5]),
        np.array([[0.0, 8.0], [0.0, -8.0], [8.0, 0.0]]),
        np.array([[[1.0, 0.0], [0.5, 1.0]]] * 3),
        np.array([0, 0, 1]),
    )
    codes = np.empty((6000, 2), np.float32)
    for number in (0, 1):
        only = truth.of_label(number)
        assert only is not None
        codes[labels == number] = draw_mixture(only, int(np.sum(labels == number)), seed=number)
    mean, std = np.array([1, 2], np.float32), np.array([2, 3], np.float32)
    start, standardised = MixtureStart(truth, mean, std), np.asarray((codes - mean) / std, np.float32)
    found = start.draw(random, standardised, labels) * std + mean
    np.testing.assert_allclose(found.mean(0), codes.mean(0), atol=0.2)
    np.testing.assert_allclose(np.cov(found.T), np.cov(codes.T), rtol=0.1, atol=0.5)
    assert np.abs(found - codes).max() < 9  # the same component: they are 8 apart and more
    elsewhere = start.draw(random, standardised, 1 - labels) * 2 + 1
    assert np.mean((elsewhere[:, 0] > 4) == (labels == 0)) > 0.99  # of the label that was given
    unknown = start.draw(random, standardised, np.full(6000, 7))
    assert np.isfinite(unknown).all()


def test_a_flow_from_a_mixture_resumes_to_the_same_weights() -> None:
    clusters = two_clusters()
    codes = Codes(clusters.mu, clusters.logvar, (clusters.mu[:, 0] > 0).astype(np.int64), ("left", "right"))
    mixture = fit_mixture(codes.mu + np.random.default_rng(0).normal(0, 0.3, codes.mu.shape), codes.labels)

    def begun() -> FlowTraining:
        return FlowTraining(codes, 0, mixture, network=VectorVelocity(2, 2, width=16, blocks=1))

    whole, first, second = begun(), begun(), begun()
    for step in range(9):
        whole.advance(step / 9)
    for step in range(4):
        first.advance(step / 9)
    second.restore({name: tensor.clone() for name, tensor in first.state().items()}, 4)
    for step in range(4, 9):
        second.advance(step / 9)
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_networks_with_labels_take_them() -> None:
    for shape in ((5,), (3, 4, 6)):
        network = velocity_network(shape, 7)
        torch.nn.init.normal_(network.get_parameter("last.weight"))
        z, t = torch.randn(2, *shape), torch.rand(2)
        outputs = [network(z, t, torch.eye(8)[[number] * 2]) for number in range(8)]
        assert outputs[0].shape == (2, *shape)
        assert not torch.equal(outputs[0], outputs[7])
