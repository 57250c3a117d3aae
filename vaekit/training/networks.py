"""The encoder and the decoder: plain stacks of convolutions for any height and width from 8, 1 or 3 channels.

Each is a module of its own that can be exported alone. Batch normalisation follows every convolution and folds into
it at inference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_WIDTHS = (32, 64, 128, 256)  # channels after each halving; later ones keep the last
_SMALLEST_SIDE = 4  # of the feature map between the convolutions and the latent
_LOGVAR_BOUND = 10.0  # standard deviations from 0.0067 to 148: keeps exp(logvar) finite whatever the input


class Encoder(nn.Module):
    """q(z|x): image (B, C, H, W) in [0, 1] → mu and logvar, each (B, d); logvar is the log of the variance.

    The posterior is ``diagonal``, a variance for each dimension, or ``isotropic``, one for all: sigma²(x) I.
    """

    def __init__(self, image_shape: tuple[int, int, int], latent: int, posterior: str = "diagonal") -> None:
        super().__init__()
        self.latent, self.isotropic = latent, posterior == "isotropic"
        channels, height, width = image_shape
        widths = level_widths(height, width)
        ins = (channels, *widths[:-1])
        self.features = nn.Sequential(*(_halving(i, o) for i, o in zip(ins, widths, strict=True)), nn.Flatten())
        features = widths[-1] * math.prod(level_sizes(height, width)[-1])
        self.mu = nn.Linear(features, latent)
        self.logvar = nn.Linear(features, 1 if self.isotropic else latent)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        logvar = self.logvar(features).clamp(-_LOGVAR_BOUND, _LOGVAR_BOUND)
        return self.mu(features), logvar.expand(-1, self.latent) if self.isotropic else logvar


class Decoder(nn.Module):
    """The mean of p(x|z): z (B, d) → image (B, C, H, W) in [0, 1]."""

    def __init__(self, image_shape: tuple[int, int, int], latent: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        widths = level_widths(height, width)
        sizes = level_sizes(height, width)
        self.top = (widths[-1], *sizes[-1])
        top = math.prod(self.top)
        self.expand = nn.Sequential(nn.Linear(latent, top, bias=False), nn.BatchNorm1d(top), nn.SiLU())
        self.doublings = nn.Sequential()
        for level in range(len(widths) - 1, 0, -1):
            width_out = widths[level - 1]
            self.doublings.append(_normalised(_doubling(widths[level], width_out, sizes[level]), width_out))
            # A convolution at each size is worth more, on the built-in shapes, than the steps that its time would buy.
            self.doublings.append(_normalised(nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False), width_out))
        self.doublings.append(_doubling(widths[0], channels, (height, width), bias=True))

    def logits(self, z: Tensor) -> Tensor:
        """The image before the sigmoid, (B, C, H, W)."""
        logits: Tensor = self.doublings(self.expand(z).reshape(-1, *self.top))
        return logits

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(z))


class VAENetwork(nn.Module):
    """The two halves together, as they are trained."""

    def __init__(self, image_shape: tuple[int, int, int], latent: int, posterior: str = "diagonal") -> None:
        super().__init__()
        self.image_shape, self.latent = image_shape, latent
        self.encoder = Encoder(image_shape, latent, posterior)
        self.decoder = Decoder(image_shape, latent)


def reparameterise(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z = mu + sigma · eps (Kingma and Welling 2014, section 2.4): (B, d) and eps (…, B, d) → (…, B, d)."""
    return mu + torch.exp(0.5 * logvar) * eps


def level_widths(height: int, width: int) -> tuple[int, ...]:
    """Channels after each halving of an image of that size: as many halvings as leave its shorter side near four."""
    levels = max(1, round(math.log2(min(height, width) / _SMALLEST_SIDE)))
    return tuple(_WIDTHS[min(level, len(_WIDTHS) - 1)] for level in range(levels))


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(height, width) of the image and after each of its halvings, odd sides rounded up."""
    sizes = [(height, width)]
    for _ in level_widths(height, width):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def _halving(channels_in: int, channels_out: int) -> nn.Sequential:
    return _normalised(nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False), channels_out)


def _normalised(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.SiLU())


def _doubling(channels_in: int, channels_out: int, size: tuple[int, int], *, bias: bool = False) -> nn.ConvTranspose2d:
    """A transposed convolution up to exactly ``size``: a kernel of four gives an even side, one of three an odd one."""
    kernel = (4 - size[0] % 2, 4 - size[1] % 2)
    return nn.ConvTranspose2d(channels_in, channels_out, kernel, 2, 1, bias=bias)
