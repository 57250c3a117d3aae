"""The encoder and decoder of latents that are maps: fully convolutional, for images of any multiple of the downscale.

No layer computes statistics over positions when the model is used: batch normalisation has fixed statistics then, and
is folded into the convolution before it. So what a position of the latent says depends only on the pixels around it,
and large images can be computed in tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaekit.training.config import Config, PosteriorKind, PresetName

_LOGVAR_BOUND = 10.0  # as in vaekit.training.networks


class MapPreset(NamedTuple):
    """The size of a network for maps."""

    widths: tuple[int, ...]
    """Channels at a half of the image's sides, at a quarter and so on. Further levels keep the last width."""
    blocks: int
    """Residual blocks at each level."""


MAP_PRESETS: dict[PresetName, MapPreset] = {
    "tiny": MapPreset((24, 32, 48), 1),
    "small": MapPreset((32, 64, 96), 1),
    "base": MapPreset((64, 128, 160), 2),
}


class MapEncoder(nn.Module):
    """The encoder q(z|x): image (B, C, H, W) in [0, 1] → mu and logvar, each (B, c, H/f, W/f).

    f is the downscale. A ``diagonal`` posterior has one variance for each number of the latent; an ``isotropic`` one
    has one for all channels of a position.
    """

    def __init__(
        self,
        channels: int,
        latent: int,
        downscale: int,
        posterior: PosteriorKind = "diagonal",
        preset: PresetName = Config.preset,
    ) -> None:
        super().__init__()
        self.latent, self.isotropic = latent, posterior == "isotropic"
        widths, blocks = widths_of(downscale, preset), MAP_PRESETS[preset].blocks
        self.features = nn.Sequential(convolution(channels, widths[0], size=6, stride=2))
        for level, width in enumerate(widths):
            if level:
                self.features.append(convolution(widths[level - 1], width, stride=2))
            self.features.extend(ResidualBlock(width) for _ in range(blocks))
        self.mu = nn.Conv2d(widths[-1], latent, 3, padding=1)
        self.logvar = nn.Conv2d(widths[-1], 1 if self.isotropic else latent, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        logvar = self.logvar(features).clamp(-_LOGVAR_BOUND, _LOGVAR_BOUND)
        return self.mu(features), logvar.expand(-1, self.latent, -1, -1) if self.isotropic else logvar


class MapDecoder(nn.Module):
    """The decoder, which computes the mean of p(x|z): z (B, c, h, w) → image (B, C, f·h, f·w) in [0, 1]."""

    def __init__(self, channels: int, latent: int, downscale: int, preset: PresetName = Config.preset) -> None:
        super().__init__()
        widths, blocks = widths_of(downscale, preset)[::-1], MAP_PRESETS[preset].blocks
        self.features = nn.Sequential(convolution(latent, widths[0]))
        for level, width in enumerate(widths):
            if level:
                self.features.append(nn.Upsample(scale_factor=2, mode="nearest"))
                self.features.append(convolution(widths[level - 1], width))
            self.features.extend(ResidualBlock(width) for _ in range(blocks))
        # The stride divides the kernel's size, so that there is no checkerboard as after a pixel shuffle.
        self.image = nn.ConvTranspose2d(widths[-1], channels, 6, 2, 2)

    def logits(self, z: Tensor) -> Tensor:
        """Return the image before the sigmoid, (B, C, f·h, f·w)."""
        logits: Tensor = self.image(self.features(z))
        return logits

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(z))


class ResidualBlock(nn.Module):
    """A residual block with an activation before each convolution (He et al., "Identity Mappings", 2016).

    It has no normalisation and begins as the identity: the last convolution's weights are zero at first (Zhang, Dauphin
    and Ma, "Fixup Initialization", 2019). With batch normalisation in the blocks, the same network learns far more
    slowly (see benchmarks/photographs.py).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # it has a bias
        self.inner = nn.Sequential(nn.SiLU(), first, nn.SiLU(), last)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + self.inner(features)
        return result


def convolution(channels_in: int, channels_out: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Build a convolution with batch normalisation and SiLU; its result is ``stride`` times smaller."""
    convolved = nn.Conv2d(channels_in, channels_out, size, stride, (size - 1) // 2, bias=False)
    return nn.Sequential(convolved, nn.BatchNorm2d(channels_out), nn.SiLU())


def widths_of(downscale: int, preset: PresetName = Config.preset) -> tuple[int, ...]:
    """Return the channels at each level, from a half of the image's sides to 1/``downscale``, a power of two."""
    widths = MAP_PRESETS[preset].widths
    return tuple(widths[min(level, len(widths) - 1)] for level in range(downscale.bit_length() - 1))
