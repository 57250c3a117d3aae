"""Pruning of maps: channels that say nothing go, and results stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vaekit
from vaekit.errors import ExportError
from vaekit.images.shapes import draw_shapes
from vaekit.training.map_networks import MapDecoder, MapEncoder
from vaekit_export import VAEDescription, export_vae
from vaekit_export.compress.compress import compress_bundle

DEAD = 1


class WithDeadChannel(nn.Module):
    """An encoder whose channel 1 is always N(0.03, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MapEncoder(3, 3, 4, preset="tiny")
        for head, value in ((self.inner.mu, 0.03), (self.inner.logvar, 0.0)):
            assert head.bias is not None
            with torch.no_grad():
                head.weight[DEAD], head.bias[DEAD] = 0, value

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.inner(image)
        return mu, logvar


def made(folder: Path, decoder: nn.Module) -> Path:
    """Export a bundle of free size with that encoder."""
    description = VAEDescription((3, 16, 12), (3, 4, 3), likelihood="gaussian", sigma=0.2, multiple_of=4)
    images = draw_shapes(40, (16, 12)).images
    return export_vae(WithDeadChannel(), decoder, description, images, folder / "whole").path


def test_a_dead_channel_goes_and_results_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = MapDecoder(3, 3, 4, preset="tiny")
    with torch.no_grad():
        decoder.features[0][0].weight[:, DEAD] *= 1e-3  # type: ignore[index]  # a Sequential's convolution
    whole = vaekit.load(made(tmp_path, decoder), provider="cpu")
    done = compress_bundle(whole.bundle.path, tmp_path / "pruned", None, prune=True, seconds=0.0)
    assert done.pruned == (DEAD,)
    assert done.delta_elbo is not None
    vae = vaekit.load(done.path, provider="cpu")
    assert vae.verify().passed
    for size in ((16, 12), (24, 40)):
        images = draw_shapes(3, size).images.astype(np.float32) / np.float32(255)
        small, large = vae.at(*size), whole.at(*size)
        (mu, logvar), (all_mu, all_logvar) = small.posterior(images), large.posterior(images)
        assert small.latent_shape == (2, size[0] // 4, size[1] // 4)
        np.testing.assert_allclose(mu, all_mu[:, [0, 2]], atol=1e-5)
        np.testing.assert_allclose(logvar, all_logvar[:, [0, 2]], atol=1e-5)
        np.testing.assert_allclose(small.decode(mu), large.decode(all_mu), atol=1e-3)  # the edge sees 0 for 0.03
    assert len(vae.manifest.latent.mean) == len(vae.manifest.latent.kl) == 2
    lowered = compress_bundle(whole.bundle.path, tmp_path / "both", None, prune=True, precision="fp16", seconds=0.0)
    assert lowered.pruned == (DEAD,)
    assert vaekit.load(lowered.path, provider="cpu").verify().passed


def test_a_decoder_that_begins_with_a_transposed_convolution_is_not_pruned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = made(tmp_path, nn.Sequential(nn.ConvTranspose2d(3, 3, 4, 4), nn.Sigmoid()))
    with pytest.raises(ExportError, match="first layer is ConvTranspose, and they can be folded only into a linear"):
        compress_bundle(bundle, tmp_path / "pruned", None, prune=True, seconds=0.0)
