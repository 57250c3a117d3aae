"""How far around a part of an image a model looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vaekit.images.shapes import draw_shapes
from vaekit.maths.elbo import Likelihood
from vaekit.training.config import Config, PresetName
from vaekit.training.networks import VAENetwork
from vaekit_export import VAEDescription, export_vae
from vaekit_export.context import context_of
from vaekit_export.effort import Effort, effort_for
from vaekit_export.model import Model


def model(encoder: nn.Module, decoder: nn.Module, multiple_of: int | None = 4) -> Model:
    images = draw_shapes(4, (16, 12)).images.astype(np.float32) / np.float32(255)
    likelihood = Likelihood("none", None)
    return Model(
        encoder, decoder, (3, 16, 12), (2, 4, 3), multiple_of, "deterministic", likelihood, None, None, images, {}
    )


def encoder(*last: nn.Module) -> nn.Module:
    """Build an encoder that looks 3 pixels beyond a cell of 4 pixels."""
    return nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 2, 4, 2, 1), *last)


def decoder(*last: nn.Module) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(2, 8, 4, 4), *last, nn.Conv2d(8, 3, 1), nn.Sigmoid())


def test_the_context_is_the_larger_of_both_halves() -> None:
    assert context_of(model(encoder(), decoder()), Effort()) == 4
    wide = nn.Conv2d(2, 2, 5, padding=2)  # 2 more cells
    assert context_of(model(encoder(wide), decoder()), Effort()) == 12
    assert context_of(model(encoder(), decoder(nn.Conv2d(8, 8, 15, padding=7))), Effort()) == 8


class Centred(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features - features.mean((2, 3), keepdim=True)


@pytest.mark.parametrize("everywhere", [Centred(), nn.GroupNorm(1, 2), nn.Conv2d(2, 2, (1, 141), padding=(0, 70))])
def test_what_depends_on_everything_or_too_much_has_none(everywhere: nn.Module) -> None:
    assert context_of(model(encoder(everywhere), decoder()), Effort()) is None


def test_models_of_one_size_have_none() -> None:
    assert context_of(model(encoder(), decoder(), None), Effort()) is None


def test_costly_models_are_run_at_their_own_size_only() -> None:
    sizes: list[tuple[int, ...]] = []

    class Noted(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            sizes.append(tuple(rows.shape))
            return rows

    context_of(model(nn.Sequential(Noted(), encoder()), decoder()), effort_for(3.0))
    assert sizes == [(1, 3, 12, 12)]


@pytest.mark.parametrize(("preset", "downscale"), [("tiny", 4), ("small", 8), ("base", 8)])
def test_beyond_the_context_of_a_trained_network_nothing_matters(preset: PresetName, downscale: int) -> None:
    torch.manual_seed(0)
    network = VAENetwork.of(Config("x", 3, 64, 64, latent=4, downscale=downscale, preset=preset)).eval()
    for parameter in network.parameters():  # the last layer of each block begins as zero
        nn.init.normal_(parameter, std=0.2)
    half = 64 // downscale
    made = Model(
        network.encoder,
        network.decoder,
        (3, 64, 64),
        (4, half, half),
        downscale,
        "diagonal",
        Likelihood("gaussian", 0.1),
        None,
        None,
        np.zeros((1, 3, 64, 64), np.float32),
        {},
    )
    context = context_of(made, Effort())
    assert context is not None
    assert context <= 64 * (2 if preset == "base" else 1)
    side = 2 * context + downscale + 128
    image = torch.rand(1, 3, downscale, side)
    changed = image.clone()
    changed[..., :64] = 1 - changed[..., :64]
    before, after = (network.encoder(rows)[0] for rows in (image, changed))
    far = (64 + context) // downscale
    assert torch.equal(before[..., far:], after[..., far:])
    assert not torch.equal(before[..., : 64 // downscale], after[..., : 64 // downscale])


def test_the_manifest_keeps_it(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"image_shape": (3, 16, 12), "latent_shape": (2, 4, 3)}
    images = draw_shapes(8, (16, 12)).images
    for step, context in ((4, 4), (None, None)):
        done = export_vae(encoder(), decoder(), VAEDescription(**kinds, multiple_of=step), images, tmp_path / str(step))
        assert done.manifest.image.context == context
        assert ("padded to the next one" in done.manifest.image.preprocessing) == (step is not None)
