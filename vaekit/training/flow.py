"""A learned prior: flow matching over the codes of the training images.

A network learns the velocity that carries a starting point x_0 to a code x_1, standardised to mean 0 and standard
deviation 1, along straight lines x_t = (1 - t) x_0 + t x_1. x_0 is drawn from the mixture that was fitted to the codes,
near x_1 (``vaekit.training.mixture_start``), or from N(0, I) if there is no mixture. Its loss is the mean of
|v(x_t, t) - (x_1 - x_0)|^2 (Lipman et al., "Flow Matching for Generative Modeling", 2023, with the path of Liu, Gong
and Liu, "Flow Straight and Fast", 2023). Integrating dx/dt = v(x, t) from 0 to 1 draws codes. The integrator is in
``vaekit.maths.flow``.

If the images have labels, the velocity depends on the label too. A tenth of the labels is hidden while learning, so
that the velocity without a label is learnt as well (Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022).
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

from vaekit.images.labels import UNLABELLED
from vaekit.maths.flow import one_hot
from vaekit.maths.prior import Mixture
from vaekit.training.checkpoint import optimiser_tensors, restore_optimiser
from vaekit.training.mixture_start import MixtureStart
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
_HIDDEN_LABELS = 0.1  # the share of labels that is hidden
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
    """The velocity of vectors: a residual network, z (B, d), t (B,) and, with labels, label (B, K + 1) → (B, d)."""

    def __init__(self, dimensions: int, labels: int = 0, width: int = _WIDTH, blocks: int = _BLOCKS) -> None:
        super().__init__()
        self.time = TimeFeatures()
        self.label = _embedding(labels, width)
        self.first = nn.Linear(dimensions, width)
        self.times = nn.ModuleList(nn.Linear(2 * _FREQUENCIES, width) for _ in range(blocks))
        self.ins = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.last = _nothing_at_first(nn.Linear(width, dimensions))

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        features, hidden = self.time(t), self.first(z)
        embedded = 0 if self.label is None else self.label(label)
        for time, inward, outward in zip(self.times, self.ins, self.outs, strict=True):
            inner = nn.functional.silu(inward(nn.functional.silu(hidden)) + (time(features) + embedded))
            hidden = hidden + outward(inner)
        velocity: Tensor = self.last(nn.functional.silu(hidden))
        return velocity


class MapVelocity(nn.Module):
    """The velocity of maps: residual convolutions, z (B, c, h, w), t and label as for vectors → (B, c, h, w)."""

    def __init__(self, channels: int, labels: int = 0) -> None:
        super().__init__()
        self.time = TimeFeatures()
        self.label = _embedding(labels, _CHANNELS)
        self.first = nn.Conv2d(channels, _CHANNELS, 3, padding=1)
        self.times = nn.ModuleList(nn.Linear(2 * _FREQUENCIES, _CHANNELS) for _ in range(_STAGES))
        self.ins = nn.ModuleList(nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1) for _ in range(_STAGES))
        self.outs = nn.ModuleList(nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1) for _ in range(_STAGES))
        self.last = _nothing_at_first(nn.Conv2d(_CHANNELS, channels, 3, padding=1))

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        features, hidden = self.time(t), self.first(z)
        embedded = 0 if self.label is None else self.label(label)
        for time, inward, outward in zip(self.times, self.ins, self.outs, strict=True):
            shift = (time(features) + embedded)[:, :, None, None]
            inner = nn.functional.silu(inward(nn.functional.silu(hidden)) + shift)
            hidden = hidden + outward(inner)
        velocity: Tensor = self.last(nn.functional.silu(hidden))
        return velocity


def _nothing_at_first(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _embedding(labels: int, width: int) -> nn.Linear | None:
    """Return a layer that embeds labels (B, K + 1), 1 for its own label, or for none in the last column, else 0."""
    if not labels:
        return None
    layer = nn.Linear(labels + 1, width, bias=False)
    nn.init.normal_(layer.weight)
    return layer


def velocity_network(latent_shape: tuple[int, ...], labels: int = 0) -> nn.Module:
    """Build the network for latents (d,) or (c, h, w) and a number of labels."""
    of_rank = VectorVelocity if len(latent_shape) == 1 else MapVelocity
    return of_rank(latent_shape[0], labels)


@dataclass(frozen=True)
class Flow:
    """A learned prior."""

    network: nn.Module
    """z (B, …), t (B,) and, if it knows labels, label (B, K + 1) → velocity (B, …), in evaluation mode."""
    mean: NDArray[np.float32]
    """(d,) or (c,), of the codes."""
    std: NDArray[np.float32]
    labels: tuple[str, ...] = ()
    """The names of the labels, by number."""
    label_weights: NDArray[np.float64] | None = None
    """(K + 1,), each label's share of the images, and last that of images without one; None without labels."""
    mixture: Mixture | None = None
    """The mixture over codes from which it starts; None for N(0, I)."""


@dataclass(frozen=True)
class Codes:
    """The encoder's results for images: q(z|x)."""

    mu: Array
    """(N, …)."""
    logvar: Array
    labels: NDArray[np.int64] | None = None
    """(N,), the images' label numbers, or -1; None without labels."""
    names: tuple[str, ...] = ()
    """The labels' names by number."""

    def label_weights(self) -> NDArray[np.float64] | None:
        """Return each label's share of the images and last that of images without one, (K + 1,)."""
        if self.labels is None:
            return None
        counts = np.bincount(self.labels % (len(self.names) + 1), minlength=len(self.names) + 1)  # -1 becomes the last
        return np.asarray(counts / counts.sum())

    def moments(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and standard deviation of z ~ q(z|x) over the images, by dimension or channel."""
        over = (0, *range(2, self.mu.ndim))
        variance = self.mu.var(axis=over, dtype=np.float64) + np.exp(self.logvar, dtype=np.float64).mean(axis=over)
        return self.mu.mean(axis=over, dtype=np.float64).astype(np.float32), np.sqrt(variance).astype(np.float32)

    def draw(self, random: np.random.Generator, count: int) -> tuple[Array, NDArray[np.int64] | None]:
        """Draw z ~ q(z|x) for images drawn at random, (count, …), with the images' labels."""
        rows = random.integers(len(self.mu), size=count)
        noise = random.standard_normal((count, *self.mu.shape[1:]), np.float32)
        z = np.asarray(self.mu[rows] + np.exp(0.5 * self.logvar[rows]) * noise)
        return z, None if self.labels is None else self.labels[rows]


class FlowTraining:
    """Training of a flow. The same codes, seed and steps give the same weights on one machine."""

    def __init__(
        self, codes: Codes, seed: int, mixture: Mixture | None = None, network: nn.Module | None = None
    ) -> None:
        """Build the network, unless it is given. The flow starts from the mixture, if there is one."""
        torch.manual_seed(seed)
        self.codes, self.seed = codes, seed
        self.step = 0
        self.mean, self.std = codes.moments()
        self.mixture = mixture
        self._start = None if mixture is None else MixtureStart(mixture, self.mean, self.std)
        self.network = velocity_network(codes.mu.shape[1:], len(codes.names)) if network is None else network
        self.average = copy.deepcopy(self.network).eval().requires_grad_(requires_grad=False)
        self._optimiser = torch.optim.Adam(self.network.parameters(), _RATE)

    def advance(self, share: float) -> float:
        """Do one step, at a ``share`` of the training from 0 to 1, and return its loss."""
        random = np.random.default_rng((self.seed, self.step))
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate(share)
        loss = self._loss(self.network, self.codes, random, BATCH[self.codes.mu.ndim - 1], _HIDDEN_LABELS)
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
        return Flow(self.average, self.mean, self.std, self.codes.names, self.codes.label_weights(), self.mixture)

    @torch.no_grad()
    def held_out_loss(self, codes: Codes) -> float:
        """Return the loss of the averaged weights on other images' codes, with noise that is always the same."""
        random, count = np.random.default_rng((self.seed, 0)), BATCH[codes.mu.ndim - 1]
        return float(np.mean([float(self._loss(self.average, codes, random, count, 0.0)) for _ in range(_MEASURED)]))

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

    def _loss(self, network: nn.Module, codes: Codes, random: np.random.Generator, count: int, hidden: float) -> Tensor:
        """Return the loss of a batch in which a share of the labels is hidden."""
        shape = (-1, *[1] * (codes.mu.ndim - 2))
        drawn, numbers = codes.draw(random, count)
        target = (drawn - self.mean.reshape(shape)) / self.std.reshape(shape)
        if self._start is None:
            begin = random.standard_normal(target.shape, np.float32)
        else:
            begin = self._start.draw(random, target, numbers)
        t = random.random(count, np.float32)
        share = t.reshape(-1, *[1] * (codes.mu.ndim - 1))
        z, velocity = torch.from_numpy((1 - share) * begin + share * target), torch.from_numpy(target - begin)
        labels = []
        if numbers is not None:
            shown = np.where(random.random(count) < hidden, UNLABELLED, numbers)
            labels.append(torch.from_numpy(one_hot(shown, len(codes.names))))
        loss: Tensor = (network(z, torch.from_numpy(t), *labels) - velocity).square().mean()
        return loss
