"""The encoder and decoder: convolutional networks for 1 or 3 channels and sides of 8 or more.

Each is a separate module and can be exported alone. Batch normalisation follows every layer and is folded into it at
inference. There is a hidden layer between the convolutions and the latent. Its input is also concatenated to its
output; without this skip connection the same network learns far more slowly (see benchmarks/quality.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaekit.training.config import Config, PosteriorKind, PresetName
from vaekit.training.map_networks import MapDecoder, MapEncoder

_SMALLEST_SIDE = 4  # pixels; the approximate side of the smallest feature map
_LOGVAR_BOUND = 10.0  # keeps exp(logvar) finite for any input; standard deviations from 0.0067 to 148


class Preset(NamedTuple):
    """The size of a network."""

    widths: tuple[int, ...]
    """Channels after each halving of the image. Further halvings keep the last width."""
    hidden: int
    """Units of the hidden layer between the convolutions and the latent."""


PRESETS: dict[PresetName, Preset] = {
    "tiny": Preset((8, 16, 32), 64),
    "small": Preset((16, 32, 64), 128),
    "base": Preset((32, 64, 128), 256),
}


class Encoder(nn.Module):
    """The encoder q(z|x): image (B, C, H, W) in [0, 1] → mu and logvar, each (B, d).

    logvar is the natural logarithm of the variance. A ``diagonal`` posterior has one variance per dimension; an
    ``isotropic`` one has a single variance for all, sigma²(x) I.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent: int,
        posterior: PosteriorKind = "diagonal",
        preset: PresetName = Config.preset,
    ) -> None:
        super().__init__()
        self.latent, self.isotropic = latent, posterior == "isotropic"
        channels, height, width = image_shape
        hidden, widths = PRESETS[preset].hidden, level_widths(height, width, preset)
        ins = (channels, *widths[:-1])
        self.features = nn.Sequential(*(_halving(i, o) for i, o in zip(ins, widths, strict=True)), nn.Flatten())
        features = widths[-1] * math.prod(level_sizes(height, width)[-1])
        self.hidden = _layer(features, hidden)
        self.mu = nn.Linear(hidden + features, latent)
        self.logvar = nn.Linear(hidden + features, 1 if self.isotropic else latent)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        features = torch.cat((self.hidden(features), features), 1)
        logvar = self.logvar(features).clamp(-_LOGVAR_BOUND, _LOGVAR_BOUND)
        return self.mu(features), logvar.expand(-1, self.latent) if self.isotropic else logvar


class Decoder(nn.Module):
    """The decoder, which computes the mean of p(x|z): z (B, d) → image (B, C, H, W) in [0, 1]."""

    def __init__(self, image_shape: tuple[int, int, int], latent: int, preset: PresetName = Config.preset) -> None:
        super().__init__()
        channels, height, width = image_shape
        hidden, widths = PRESETS[preset].hidden, level_widths(height, width, preset)
        sizes = level_sizes(height, width)
        self.top = (widths[-1], *sizes[-1])
        self.hidden = _layer(latent, hidden)
        self.expand = _layer(hidden + latent, math.prod(self.top))
        self.doublings = nn.Sequential()
        for level in range(len(widths) - 1, 0, -1):
            width_out = widths[level - 1]
            self.doublings.append(_normalised(_doubling(widths[level], width_out, sizes[level]), width_out))
        self.doublings.append(_doubling(widths[0], channels, (height, width), bias=True))

    def logits(self, z: Tensor) -> Tensor:
        """Return the image before the sigmoid, (B, C, H, W)."""
        logits: Tensor = self.doublings(self.expand(torch.cat((self.hidden(z), z), 1)).reshape(-1, *self.top))
        return logits

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(z))


class VAENetwork(nn.Module):
    """The encoder and decoder, trained together.

    Training sees every latent as a vector of d numbers. Where latents are maps, these are its channels and positions,
    d = c·h·w, and only the encoder and decoder themselves have the map's shape.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent: int,
        posterior: PosteriorKind = "diagonal",
        preset: PresetName = Config.preset,
        downscale: int | None = None,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape, self.latent = image_shape, latent
        self.latent_shape: tuple[int, ...] = (latent,)
        self.encoder: Encoder | MapEncoder
        self.decoder: Decoder | MapDecoder
        if downscale is None:
            self.encoder = Encoder(image_shape, latent, posterior, preset)
            self.decoder = Decoder(image_shape, latent, preset)
        else:
            self.latent_shape = (latent, height // downscale, width // downscale)
            self.encoder = MapEncoder(channels, latent, downscale, posterior, preset)
            self.decoder = MapDecoder(channels, latent, downscale, preset)

    @classmethod
    def of(cls, config: Config) -> VAENetwork:
        """Build the network that the settings describe."""
        return cls(config.image_shape, config.latent, config.posterior, config.preset, config.downscale)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and logvar of images (B, C, H, W), each (B, d)."""
        mu, logvar = self.encoder(image)
        return mu.flatten(1), logvar.flatten(1)

    def logits(self, z: Tensor) -> Tensor:
        """Return the images before the sigmoid, (B, C, H, W), of z (B, d)."""
        return self.decoder.logits(z.reshape(-1, *self.latent_shape))


def reparameterise(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """Return z = mu + sigma · eps, for eps and z (…, B, d).

    This is the reparameterisation trick (Kingma and Welling, 2014, section 2.4).
    """
    return mu + torch.exp(0.5 * logvar) * eps


def level_widths(height: int, width: int, preset: PresetName = Config.preset) -> tuple[int, ...]:
    """Return the channels after each halving of an image of that size."""
    widths = PRESETS[preset].widths
    return tuple(widths[min(level, len(widths) - 1)] for level in range(_levels(height, width)))


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return (height, width) of the image and after each halving, rounded up."""
    sizes = [(height, width)]
    for _ in range(_levels(height, width)):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def _levels(height: int, width: int) -> int:
    """Return the number of halvings that bring the shorter side close to four."""
    return max(1, round(math.log2(min(height, width) / _SMALLEST_SIDE)))


def _halving(channels_in: int, channels_out: int) -> nn.Sequential:
    return _normalised(nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False), channels_out)


def _layer(ins: int, outs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(ins, outs, bias=False), nn.BatchNorm1d(outs), nn.SiLU())


def _normalised(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.SiLU())


def _doubling(channels_in: int, channels_out: int, size: tuple[int, int], *, bias: bool = False) -> nn.ConvTranspose2d:
    """Build a transposed convolution whose output has exactly ``size``.

    A kernel of four gives an even side, and a kernel of three an odd one.
    """
    kernel = (4 - size[0] % 2, 4 - size[1] % 2)
    return nn.ConvTranspose2d(channels_in, channels_out, kernel, 2, 1, bias=bias)
