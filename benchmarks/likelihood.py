"""How likely are held-out binary images after a given processor time? The default against what might be better.

    python benchmarks/likelihood.py [--minutes 15] [--candidates NAME …] [--draws 500] [--images 1000] [--json FILE]

Fashion-MNIST, binarised anew at every use, and once for the test part. Every candidate trains in the same loop (AdamW,
half a cosine) on one thread for the same processor minutes, so other work on the machine costs no candidate anything.
Measured on the first --images of the test part: the NLL in nats, by --draws importance samples of each image (Burda,
Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016, equation 8), and the ELBO.

`default` is the network, batch size and learning rate of `vaekit train fashion-mnist --likelihood bernoulli --binarize
dynamic`. The others change what their name says. `iwae third` spends the last third of the time on the
importance-weighted bound of 8 draws. Names that begin with `paper` are the two architectures of that paper, with its
batch size and draws. Aim: 2 nats less than the default, and less than the paper's.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from contest import fashion_mnist
from timing import write_json
from torch import Tensor, nn

from vaekit.output.table import text_table
from vaekit.training.batches import Batches
from vaekit.training.config import Config
from vaekit.training.device import to_float
from vaekit.training.holdout import read_to_measure
from vaekit.training.networks import VAENetwork
from vaekit.training.objective import Objective, TrainingLikelihood, draw
from vaekit.training.schedule import learning_rate

PIXELS = 28 * 28
LIKELIHOOD = TrainingLikelihood("bernoulli", PIXELS)
DRAWS_AT_ONCE = 25
IMAGES_AT_ONCE = 50
_DECAY = 0.999  # of the averaged weights, per step
_WARMUP_IMAGES = 10_000


class Model(Protocol):
    """A model with its two bounds, for binary images (B, 1, 28, 28)."""

    def log_weights(self, image: Tensor, samples: int) -> Tensor:
        """Return log p(x, z) − log q(z|x) of draws, (S, B)."""

    def elbo(self, image: Tensor) -> Tensor:
        """Return the mean ELBO."""


class OneLayer(nn.Module):
    """A VAE with one layer of latents, such as vaekit's."""

    def __init__(self, network: VAENetwork, latent: int) -> None:
        super().__init__()
        self.network, self.latent = network, latent

    def log_weights(self, image: Tensor, samples: int) -> Tensor:
        draws = draw(self.network, LIKELIHOOD, image, torch.randn(samples, len(image), self.latent))
        return LIKELIHOOD.log_density(draws.reconstruction_error) + draws.log_ratio

    def elbo(self, image: Tensor) -> Tensor:
        draws = draw(self.network, LIKELIHOOD, image, torch.randn(1, len(image), self.latent))
        return Objective().value(draws, LIKELIHOOD)


class Gaussian(nn.Module):
    """Two layers of tanh, and the mean and logarithm of the variance of a Gaussian, as in the paper."""

    def __init__(self, ins: int, hidden: int, outs: int) -> None:
        super().__init__()
        self.body = two_tanh(ins, hidden)
        self.mu, self.logvar = nn.Linear(hidden, outs), nn.Linear(hidden, outs)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        body = self.body(rows)
        return self.mu(body), self.logvar(body).clamp(-10, 10)


class PaperEncoder(Gaussian):
    """The encoder of the paper's network with one layer of latents."""

    def __init__(self) -> None:
        super().__init__(PIXELS, 200, 50)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(image.flatten(1))


class PaperOneLayer(nn.Module):
    """784-200-200-50 and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = PaperEncoder()
        self.logits = nn.Sequential(two_tanh(50, 200), nn.Linear(200, PIXELS), nn.Unflatten(-1, (1, 28, 28)))


class PaperTwoLayers(nn.Module):
    """784-200-200-100-100-100-50 and back, with latents of 100 and of 50 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Gaussian(PIXELS, 200, 100), Gaussian(100, 100, 50)
        self.back = Gaussian(50, 100, 100)
        self.logits = nn.Sequential(two_tanh(100, 200), nn.Linear(200, PIXELS))

    def log_weights(self, image: Tensor, samples: int) -> Tensor:
        rows = image.flatten(1)
        h1, log_q1 = drawn(*(part.expand(samples, -1, -1) for part in self.first(rows)))
        h2, log_q2 = drawn(*self.second(h1))
        log_p = log_normal(h2, torch.zeros_like(h2), torch.zeros_like(h2)) + log_normal(h1, *self.back(h2))
        pixels = -nn.functional.binary_cross_entropy_with_logits(
            self.logits(h1), rows.expand(samples, -1, -1), reduction="none"
        )
        return pixels.sum(2) + log_p - log_q1 - log_q2

    def elbo(self, image: Tensor) -> Tensor:
        return self.log_weights(image, 1).mean()


def two_tanh(ins: int, hidden: int) -> nn.Sequential:
    """Return two layers with tanh."""
    return nn.Sequential(nn.Linear(ins, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())


def drawn(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from a Gaussian; return the draw and its log density."""
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    return z, log_normal(z, mu, logvar)


def log_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Return the log density of z (…, d), summed over the last axis."""
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mu).square() / logvar.exp()).sum(-1)


class Residual(nn.Module):
    """x + convolutions of x, which begin as nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
        )
        nn.init.zeros_(self.body[3].weight)  # type: ignore[arg-type]  # it is a convolution

    def forward(self, rows: Tensor) -> Tensor:
        return cast(Tensor, rows + self.body(rows))


def residual(latent: int) -> Model:
    """Return vaekit's network with a residual block after the second and third halving, and before their doublings."""
    network = VAENetwork((1, 28, 28), latent)
    features, doublings = network.encoder.get_submodule("features"), network.decoder.get_submodule("doublings")
    assert isinstance(features, nn.Sequential)
    assert isinstance(doublings, nn.Sequential)
    features.insert(2, Residual(32)).insert(4, Residual(64))
    doublings.insert(1, Residual(32)).insert(0, Residual(64))
    return OneLayer(network, latent)


@dataclass(frozen=True)
class Candidate:
    """A model and how it is trained."""

    make: Callable[[], Model] = lambda: OneLayer(VAENetwork((1, 28, 28), Config.latent), Config.latent)
    batch: int = Config.batch_size
    lr: float = Config.lr
    samples: int = 8
    """Draws of the importance-weighted bound."""
    weighted_from: float = 1.0
    """The share of the time after which that bound replaces the ELBO."""
    averaged: bool = False


def of_latent(latent: int) -> Callable[[], Model]:
    """Return a builder of vaekit's network with that many latent numbers."""
    return lambda: OneLayer(VAENetwork((1, 28, 28), latent), latent)


CANDIDATES = {
    "default": Candidate(),
    "averaged": Candidate(averaged=True),
    "batch 64": Candidate(batch=64),
    "lr halved": Candidate(lr=Config.lr / 2),
    "lr doubled": Candidate(lr=2 * Config.lr),
    "d = 32": Candidate(of_latent(32)),
    "iwae third": Candidate(weighted_from=2 / 3),
    "iwae third, batch 64": Candidate(batch=64, weighted_from=2 / 3),
    "iwae third, batch 64, d = 32": Candidate(of_latent(32), batch=64, weighted_from=2 / 3),
    "residual": Candidate(lambda: residual(Config.latent)),
    "residual, iwae third": Candidate(lambda: residual(Config.latent), weighted_from=2 / 3),
    "residual, iwae third, d = 32": Candidate(lambda: residual(32), weighted_from=2 / 3),
    "paper, one layer, k = 50": Candidate(
        lambda: OneLayer(cast(VAENetwork, PaperOneLayer()), 50), 20, 1e-3, samples=50, weighted_from=0
    ),
    "paper, two layers, k = 50": Candidate(PaperTwoLayers, 20, 1e-3, samples=50, weighted_from=0),
}


def train(candidate: Candidate, minutes: float) -> tuple[Model, int]:
    """Train for that many processor minutes; return the model and the images seen."""
    torch.manual_seed(0)
    images, _ = fashion_mnist()
    config = Config(
        source="fashion-mnist", channels=1, height=28, width=28, batch_size=candidate.batch, binarize="dynamic"
    )
    batches = Batches(images, config, np.arange(len(images)))
    model = candidate.make()
    module = cast(nn.Module, model)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    mean = copy.deepcopy(module)
    optimiser = torch.optim.AdamW(module.parameters(), candidate.lr, fused=True)
    module.train()
    began, step = time.process_time(), 0
    while (share := (time.process_time() - began) / (60 * minutes)) < 1:
        image = to_float(torch.from_numpy(batches.pixels(step)))
        for group in optimiser.param_groups:
            group["lr"] = candidate.lr * learning_rate(share, 1, min(1, (step + 1) * candidate.batch / _WARMUP_IMAGES))
        optimiser.zero_grad(set_to_none=True)
        loss = -(bound(model, image, candidate.samples) if share >= candidate.weighted_from else model.elbo(image))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
        step += 1
        if candidate.averaged:
            for kept, now in zip(mean.state_dict().values(), module.state_dict().values(), strict=True):
                kept.copy_(now.lerp(kept, _DECAY) if now.is_floating_point() else now)
    return (cast(Model, mean) if candidate.averaged else model), step * candidate.batch


def bound(model: Model, image: Tensor, samples: int) -> Tensor:
    """Return the mean importance-weighted bound (equation 8 of the paper)."""
    return (torch.logsumexp(model.log_weights(image, samples), 0) - math.log(samples)).mean()


@torch.inference_mode()
def measure(model: Model, count: int, draws: int) -> dict[str, float]:
    """Return the mean NLL and ELBO of images of the test part."""
    torch.manual_seed(1)
    cast(nn.Module, model).eval()
    _, images = fashion_mnist()
    evidence, elbo = [], []
    for first in range(0, count, IMAGES_AT_ONCE):
        indices = np.arange(first, min(count, first + IMAGES_AT_ONCE))
        image = to_float(torch.from_numpy(read_to_measure(images, indices, "fixed")))
        parts = [min(DRAWS_AT_ONCE, draws - done) for done in range(0, draws, DRAWS_AT_ONCE)]
        weights = torch.cat([model.log_weights(image, part).double() for part in parts])
        evidence.append(torch.logsumexp(weights, 0) - math.log(draws))
        elbo.append(weights.mean(0))
    return {"nll": -torch.cat(evidence).mean().item(), "elbo": torch.cat(elbo).mean().item()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train each candidate in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--candidates", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", choices=list(CANDIDATES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.alone:
        torch.set_num_threads(1)
        model, seen = train(CANDIDATES[options.alone], options.minutes)
        print(json.dumps(measure(model, options.images, options.draws) | {"images_seen": seen}))
        return
    found: dict[str, dict[str, Any]] = {}
    for name in options.candidates:
        limits = ["--minutes", options.minutes, "--draws", options.draws, "--images", options.images]
        command = [sys.executable, __file__, "--alone", name, *map(str, limits)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {found[name]}", flush=True)
    rows = [("candidate", "images seen", "NLL", "ELBO")]
    rows += [
        (name, f"{figures['images_seen']:,}", f"{figures['nll']:.2f}", f"{figures['elbo']:.2f}")
        for name, figures in found.items()
    ]
    print("\n".join(text_table(rows)))
    write_json(options.json, {"minutes": options.minutes, "draws": options.draws, "candidates": found})


if __name__ == "__main__":
    main()
