"""A learned prior: flow matching over the codes of the training images.

A network learns the velocity that carries noise x_0 ~ N(0, I) to a code x_1, standardised to mean 0 and standard
deviation 1, along straight lines x_t = (1 - t) x_0 + t x_1. Its loss is the mean of |v(x_t, t) - (x_1 - x_0)|^2 (Lipman
et al., "Flow Matching for Generative Modeling", 2023, with the path of Liu, Gong and Liu, "Flow Straight and Fast",
2023). Integrating dx/dt = v(x, t) from 0 to 1 draws codes. The integrator is in ``vaekit.maths.flow``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vaekit.training.checkpoint import optimiser_tensors, restore_optimiser
from vaekit.types import Array

STEPS = 4000
BATCH = {1: 1024, 3: 128}
"""Codes in a step, by the number of a code's axes."""

_RATE = 2e-3  # the learning rate at its peak
_WARMUP = 100  # steps in which it rises
_EMA = 0.999  # decay of the averaged weights, less at first
_WIDTH, _BLOCKS = 192, 3  # of the network for vectors: under a megabyte
_CHANNELS, _STAGES = 64, 6  # of the network for maps: it sees 25 positions
_FREQUENCIES = 6  # of the features of t
_MEASURED = 8  # batches of a held-out loss
_NETWORK, _AVERAGE, _OPTIMISER = "network/", "average/", "optimiser/"


class TimeFeatures(nn.Module):
    """Sines and cosines of t, (B,) → (B, 2 · 6)."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi / 2 * 2 ** torch.arange(_FREQUENCIES, dtype=torch.float32))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return torch.cat((torch.sin(angles), torch.cos(angles)), dim=1)


class VectorVelocity(nn.Module):
    """The velocity of vectors: a residual network, z (B, d) and t (B,) → (B, d)."""

    def __init__(self, dimensions: int, width: int = _WIDTH, blocks: int = _BLOCKS) -> None:
        super().__init__()
        self.time = TimeFeatures()
        self.first = nn.Linear(dimensions, width)
        self.times = nn.ModuleList(nn.Linear(2 * _FREQUENCIES, width) for _ in range(blocks))
        self.ins = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.last = _nothing_at_first(nn.Linear(width, dimensions))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        features, hidden = self.time(t), self.first(z)
        for time, inward, outward in zip(self.times, self.ins, self.outs, strict=True):
            inner = nn.functional.silu(inward(nn.functional.silu(hidden)) + time(features))
            hidden = hidden + outward(inner)
        velocity: Tensor = self.last(nn.functional.silu(hidden))
        return velocity


class MapVelocity(nn.Module):
    """The velocity of maps: residual convolutions, z (B, c, h, w) and t (B,) → (B, c, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.time = TimeFeatures()
        self.first = nn.Conv2d(channels, _CHANNELS, 3, padding=1)
        self.times = nn.ModuleList(nn.Linear(2 * _FREQUENCIES, _CHANNELS) for _ in range(_STAGES))
        self.ins = nn.ModuleList(nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1) for _ in range(_STAGES))
        self.outs = nn.ModuleList(nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1) for _ in range(_STAGES))
        self.last = _nothing_at_first(nn.Conv2d(_CHANNELS, channels, 3, padding=1))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        features, hidden = self.time(t), self.first(z)
        for time, inward, outward in zip(self.times, self.ins, self.outs, strict=True):
            inner = nn.functional.silu(inward(nn.functional.silu(hidden)) + time(features)[:, :, None, None])
            hidden = hidden + outward(inner)
        velocity: Tensor = self.last(nn.functional.silu(hidden))
        return velocity


def _nothing_at_first(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def velocity_network(latent_shape: tuple[int, ...]) -> nn.Module:
    """Build the network for latents (d,) or (c, h, w)."""
    return VectorVelocity(latent_shape[0]) if len(latent_shape) == 1 else MapVelocity(latent_shape[0])


@dataclass(frozen=True)
class Flow:
    """A learned prior."""

    network: nn.Module
    """z (B, …) and t (B,) → velocity (B, …), in evaluation mode."""
    mean: NDArray[np.float32]
    """(d,) or (c,), of the codes."""
    std: NDArray[np.float32]


@dataclass(frozen=True)
class Codes:
    """The encoder's results for images: q(z|x)."""

    mu: Array
    """(N, …)."""
    logvar: Array

    def moments(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and standard deviation of z ~ q(z|x) over the images, by dimension or channel."""
        over = (0, *range(2, self.mu.ndim))
        variance = self.mu.var(axis=over, dtype=np.float64) + np.exp(self.logvar, dtype=np.float64).mean(axis=over)
        return self.mu.mean(axis=over, dtype=np.float64).astype(np.float32), np.sqrt(variance).astype(np.float32)

    def draw(self, random: np.random.Generator, count: int) -> Array:
        """Draw z ~ q(z|x) for images drawn at random, (count, …)."""
        rows = random.integers(len(self.mu), size=count)
        noise = random.standard_normal((count, *self.mu.shape[1:]), np.float32)
        return np.asarray(self.mu[rows] + np.exp(0.5 * self.logvar[rows]) * noise)


class FlowTraining:
    """Training of a flow. The same codes, seed and steps give the same weights on one machine."""

    def __init__(self, codes: Codes, seed: int, network: nn.Module | None = None) -> None:
        """Build the network, unless it is given."""
        torch.manual_seed(seed)
        self.codes, self.seed = codes, seed
        self.step = 0
        self.mean, self.std = codes.moments()
        self.network = velocity_network(codes.mu.shape[1:]) if network is None else network
        self.average = copy.deepcopy(self.network).eval().requires_grad_(requires_grad=False)
        self._optimiser = torch.optim.Adam(self.network.parameters(), _RATE)

    def advance(self, share: float) -> float:
        """Do one step, at a ``share`` of the training from 0 to 1, and return its loss."""
        random = np.random.default_rng((self.seed, self.step))
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate(share)
        loss = self._loss(self.network, self.codes, random, BATCH[self.codes.mu.ndim - 1])
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # in PyTorch's stubs
        self._optimiser.step()
        decay = min(_EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        self.step += 1
        return float(loss.detach())

    def flow(self) -> Flow:
        """Return the flow with averaged weights."""
        return Flow(self.average, self.mean, self.std)

    @torch.no_grad()
    def held_out_loss(self, codes: Codes) -> float:
        """Return the loss of the averaged weights on other images' codes, with noise that is always the same."""
        random, count = np.random.default_rng((self.seed, 0)), BATCH[codes.mu.ndim - 1]
        return float(np.mean([float(self._loss(self.average, codes, random, count)) for _ in range(_MEASURED)]))

    def state(self) -> dict[str, Tensor]:
        """Return all tensors that a training needs to continue."""
        parts = {
            _NETWORK: self.network.state_dict(),
            _AVERAGE: self.average.state_dict(),
            _OPTIMISER: optimiser_tensors(self._optimiser, self.network),
        }
        return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Continue after ``step`` steps, with the tensors of ``state``.

        Raises RuntimeError or KeyError if they do not fit.
        """
        network, average, optimiser = (
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            for prefix in (_NETWORK, _AVERAGE, _OPTIMISER)
        )
        self.network.load_state_dict(network)
        self.average.load_state_dict(average)
        restore_optimiser(self._optimiser, self.network, optimiser)
        self.step = step

    def _rate(self, share: float) -> float:
        """Return the learning rate: a short rise, then half a cosine down to 0."""
        return _RATE * min(1.0, (self.step + 1) / _WARMUP) * (1 + math.cos(math.pi * share)) / 2

    def _loss(self, network: nn.Module, codes: Codes, random: np.random.Generator, count: int) -> Tensor:
        shape = (-1, *[1] * (codes.mu.ndim - 2))
        target = (codes.draw(random, count) - self.mean.reshape(shape)) / self.std.reshape(shape)
        noise = random.standard_normal(target.shape, np.float32)
        t = random.random(count, np.float32)
        share = t.reshape(-1, *[1] * (codes.mu.ndim - 1))
        z, velocity = torch.from_numpy((1 - share) * noise + share * target), torch.from_numpy(target - noise)
        loss: Tensor = (network(z, torch.from_numpy(t)) - velocity).square().mean()
        return loss
