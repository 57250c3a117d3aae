"""Networks whose latents are maps."""

from __future__ import annotations

import pytest
import torch

from vaekit.training.config import Config, PresetName
from vaekit.training.map_networks import MapDecoder, MapEncoder
from vaekit.training.networks import VAENetwork


def network(latent: int = 3, downscale: int = 4, **settings: str) -> VAENetwork:
    torch.manual_seed(0)
    config = Config(source="x", channels=3, height=16, width=24, latent=latent, downscale=downscale, **settings)  # type: ignore[arg-type]
    return VAENetwork.of(config).eval()


@pytest.mark.parametrize("downscale", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("times", [(1, 1), (2, 3)])
def test_images_of_any_multiple_become_maps_and_come_back(
    downscale: int, channels: int, times: tuple[int, int]
) -> None:
    encoder = MapEncoder(channels, 5, downscale).eval()
    decoder = MapDecoder(channels, 5, downscale).eval()
    image = torch.rand(2, channels, times[0] * downscale, times[1] * downscale)
    mu, logvar = encoder(image)
    assert mu.shape == logvar.shape == (2, 5, *times)
    decoded = decoder(mu)
    assert decoded.shape == image.shape
    assert 0 < decoded.min() < decoded.max() < 1


def test_training_sees_maps_as_vectors() -> None:
    made, image = network(), torch.rand(2, 3, 16, 24)
    assert made.latent_shape == (3, 4, 6)
    mu, logvar = made.encode(image)
    assert mu.shape == logvar.shape == (2, 72)
    torch.testing.assert_close(mu, made.encoder(image)[0].flatten(1))
    torch.testing.assert_close(torch.sigmoid(made.logits(mu)), made.decoder(made.encoder(image)[0]))


def test_an_isotropic_posterior_has_one_variance_for_each_position() -> None:
    _, logvar = network(posterior="isotropic").encoder(torch.rand(2, 3, 16, 24))
    assert logvar.shape == (2, 3, 4, 6)
    assert torch.equal(logvar, logvar[:, :1].expand_as(logvar))
    assert logvar[:, 0].unique().numel() > 10


def test_a_position_depends_only_on_the_pixels_around_it() -> None:
    """No statistics over positions: what lies far away changes nothing, so large images can be computed in tiles."""
    encoder = network(preset="tiny").encoder
    image = torch.rand(1, 3, 16, 256)
    changed = image.clone()
    changed[..., 128:] = 0
    before, after = encoder(image)[0], encoder(changed)[0]
    assert torch.equal(before[..., :16], after[..., :16])
    assert not torch.equal(before[..., 30:], after[..., 30:])


@pytest.mark.parametrize(("preset", "most"), [("tiny", 1.5), ("small", 3.0), ("base", 30.0)])
def test_sizes_of_the_presets(preset: PresetName, most: float) -> None:
    for half in VAENetwork((3, 64, 64), 4, preset=preset, downscale=8).children():
        assert 4 * sum(parameter.numel() for parameter in half.parameters()) < most * 1e6
