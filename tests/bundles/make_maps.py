"""Make the bundles map, deterministic and free, from untrained networks for 16 x 12 pixels.

Their latents are maps (2, 4, 3). The bundle free leaves height and width free.

Needs the extra `train`. The bundles beside this file have format 2 and must not change, because they prove that such
bundles can be read (see make_newest.py). This script documents how they were made.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from vaekit.bundle.manifest import Scaling
from vaekit.images.shapes import draw_shapes
from vaekit_export import VAEDescription, export_vae

HERE = Path(__file__).parent
LATENT = (2, 4, 3)


class Encoder(nn.Module):
    """image (B, 3, 16, 12) in [-1, 1] → mu and logvar (B, 2, 4, 3), or mu alone."""

    def __init__(self, *, deterministic: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.SiLU(), nn.Conv2d(8, 4, 4, 2, 1))
        self.deterministic = deterministic

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        mu, logvar = self.layers(image).chunk(2, dim=1)
        mu = 4 * mu
        return mu if self.deterministic else (mu, logvar - 2)


def decoder() -> nn.Module:
    """z (B, 2, 4, 3) → image (B, 3, 16, 12) in [-1, 1]."""
    return nn.Sequential(nn.ConvTranspose2d(2, 8, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh())


def main() -> None:
    """Export the bundles beside this file."""
    images = draw_shapes(64, (16, 12)).images
    for name in ("map", "deterministic", "free"):
        deterministic = name == "deterministic"
        torch.manual_seed(0)
        description = VAEDescription(
            image_shape=(3, 16, 12),
            latent_shape=LATENT,
            pixel_range=(-1.0, 1.0),
            likelihood="none" if deterministic else "gaussian",
            sigma=None if deterministic else 0.2,
            scaling=None if deterministic else Scaling(0.5, 0.125),
            multiple_of=4 if name == "free" else None,
            name=name,
        )
        encoder = Encoder(deterministic=deterministic)
        export_vae(encoder, decoder(), description, images, HERE / name, dataset="shapes", say=print)


if __name__ == "__main__":
    main()
