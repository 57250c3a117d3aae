"""Code shared by the training benchmarks: data, training and evaluation. Not a benchmark itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vaekit.images.dataset import Images, open_source
from vaekit.images.source import find_test_part
from vaekit.training.config import Config
from vaekit.training.device import to_device
from vaekit.training.evaluation import evaluate
from vaekit.training.holdout import STATISTICS_IMAGES
from vaekit.training.networks import VAENetwork
from vaekit.training.objective import TrainingLikelihood, draw, optimal_variance
from vaekit.training.run import Run
from vaekit.training.trainer import Trainer

LATENT = 16
PIXELS = 28 * 28

_BATCH = 500


def pair(encoder: nn.Module, decoder: nn.Module) -> VAENetwork:
    """Combine an encoder and a decoder, so that they can be used like vaekit's own network."""
    network = _Pair(encoder, decoder)
    return cast(VAENetwork, network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]  # stub lacks it


class _Pair(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, image: Tensor) -> Any:
        return self.encoder(image)

    def logits(self, z: Tensor) -> Any:
        return self.decoder.logits(z)  # type: ignore[operator]  # a decoder has them


class Heads(nn.Module):
    """An encoder, image → mu and logvar, with linear heads on features of a given width."""

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features = features
        self.mu, self.logvar = nn.Linear(width, LATENT), nn.Linear(width, LATENT)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        return self.mu(features), self.logvar(features).clamp(-10, 10)


class Sigmoid(nn.Module):
    """A decoder, z → image, that applies a sigmoid to a stack of layers."""

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self.stack = stack

    def logits(self, z: Tensor) -> Tensor:
        """Return the image before the sigmoid, (B, 1, 28, 28)."""
        logits: Tensor = self.stack(z)
        return logits

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(z))


def fashion_mnist() -> tuple[Images, Images]:
    """Read the training and test parts."""
    test = find_test_part("fashion-mnist")
    assert test is not None
    return open_source("fashion-mnist"), open_source(test)


def settings(batch_size: int, lr: float) -> Config:
    """Return settings for Fashion-MNIST: Gaussian likelihood with optimal sigma, d = 16."""
    return Config(
        source="fashion-mnist",
        channels=1,
        height=28,
        width=28,
        latent=LATENT,
        likelihood="gaussian",
        sigma=None,
        beta=1.0,
        steps=1,  # unused, because training ends at the deadline
        batch_size=batch_size,
        lr=lr,
        seed=0,
    )


def train_in_vaekit(
    network: VAENetwork | None, config: Config, images: Images, minutes: float, path: Path
) -> tuple[Trainer, int]:
    """Train with vaekit's trainer for ``minutes``, including the final statistics.

    Returns the trainer and the number of images seen.
    """
    trainer = Trainer(config, images, path, network=network, deadline=time.monotonic() + 60 * minutes)
    outcome = trainer.run()
    return trainer, outcome.steps * config.batch_size


def measure(network: VAENetwork, train: Images, test: Images) -> dict[str, Any]:
    """Measure -ELBO, its terms (nats per image) and PSNR on the test part.

    sigma is first computed on training images and then held fixed.
    """
    network.eval()
    config = settings(2, 1.0)
    run = Run(Path(), config, network, _frozen_variance(network, train), None, {})
    found = evaluate(run, test.read, np.arange(len(test)), samples=1, batch_size=_BATCH)
    return {
        "minus_elbo": -found.elbo,
        "kl": found.kl,
        "sigma": found.sigma,
        "psnr": found.psnr,
        "active_units": found.active_units,
    }


@torch.inference_mode()
def _frozen_variance(network: VAENetwork, train: Images) -> float:
    """Return E_q‖x − mean‖² / D over as many training images as vaekit itself uses."""
    chosen = np.arange(len(train))[:: -(-len(train) // STATISTICS_IMAGES)]
    noise = torch.Generator().manual_seed(1)
    likelihood, device = TrainingLikelihood("gaussian", PIXELS), torch.device("cpu")
    errors = []
    for part in np.array_split(chosen, -(-len(chosen) // _BATCH)):
        eps = torch.randn(1, len(part), LATENT, generator=noise)
        image = to_device(train.read(part), device)
        errors.append(draw(network, likelihood, image, eps).reconstruction_error)
    return float(optimal_variance(torch.cat(errors, 1).double(), PIXELS))


def squared_error_and_kl(network: VAENetwork, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return ‖x − mean‖² and KL(q ‖ N(0, I)), each (B,), of a batch (B, 1, 28, 28).

    Each image has one draw of z.
    """
    mu, logvar = network.encoder(image)
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    error = (network.decoder(z) - image).square().flatten(1).sum(1)
    return error, 0.5 * (logvar.exp() + mu.square() - 1 - logvar).sum(1)


def plain_loop(
    network: VAENetwork,
    images: Images,
    minutes: float,
    *,
    batch_size: int,
    lr: Callable[[int, float], float],
) -> int:
    """Train with a simple loop: AdamW on -ELBO with optimal sigma. Return the images seen.

    ``lr`` computes the learning rate from the number of images seen and the fraction of time elapsed.
    """
    torch.manual_seed(0)
    pixels = torch.from_numpy(images.read(np.arange(len(images))))
    optimiser = torch.optim.AdamW(network.parameters(), lr(0, 0.0))
    network.train()
    started, seen = time.monotonic(), 0
    while True:
        for index in torch.split(torch.randperm(len(pixels)), batch_size)[:-1]:
            gone = (time.monotonic() - started) / (60 * minutes)
            if gone >= 1:
                return seen
            for group in optimiser.param_groups:
                group["lr"] = lr(seen, gone)
            error, kl = squared_error_and_kl(network, pixels[index].float() / 255)
            loss = PIXELS / 2 * torch.log(error.mean() / PIXELS) + kl.mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            seen += len(index)


def one_cycle(peak: float) -> Callable[[int, float], float]:
    """Return a one-cycle schedule: a rise over 10,000 images, then half a cosine to almost zero."""
    return lambda seen, gone: peak * min(1.0, seen / 10_000) * 0.5 * (1 + math.cos(math.pi * gone)) + 1e-6
