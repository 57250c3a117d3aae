"""Is vaekit's training better than a simple training loop? Equal time, equal d, Fashion-MNIST.

    python benchmarks/duel.py [--minutes 5] [--contenders vaekit dense …] [--with-pythae] [--json FILE]

Contenders run one after the other, each in its own process:

- `vaekit`: everything that `vaekit train` does, except reading the data;
- plain loops with AdamW and a batch size of 128: `dense` (784-400-16, no schedule), `transposed` (three convolutions
  down and up, no schedule), `transposed-cycle` (the same with a one-cycle schedule) and `dense-deep` (784-1024-512-16
  with batch normalisation and that schedule);
- with --with-pythae, pythae's VAE with its MNIST networks, which pip installs in a temporary folder.

All have d = 16 and a Gaussian likelihood. All are measured in the same way: -ELBO on the test part in nats with all
constants, with sigma computed on 12,000 training images. Takes about six minutes each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contest import (
    LATENT,
    PIXELS,
    Heads,
    Sigmoid,
    fashion_mnist,
    measure,
    one_cycle,
    pair,
    plain_loop,
    settings,
    train_in_vaekit,
)
from timing import write_json
from torch import Tensor, nn

from vaekit.images.dataset import Images
from vaekit.system.machine import usable_cpus
from vaekit.training.config import Config
from vaekit.training.networks import VAENetwork

PYTHAE = "pythae==0.1.2"
PYTHAE_NEEDS = ("cloudpickle", "imageio", "pydantic", "tqdm", "typing_extensions")  # beside torch, NumPy, scikit-learn

Contender = Callable[[Images, float], tuple[VAENetwork, int]]
"""Trains for a number of minutes; returns the network and the number of images seen."""


def main() -> None:
    """Train each contender and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS))
    parser.add_argument("--with-pythae", action="store_true", help="install pythae with pip and include it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--packages", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.packages:
        sys.path.append(options.packages)
    if options.alone:
        print(json.dumps(compete(options.alone, options.minutes)))
        return

    names = options.contenders or [name for name in CONTENDERS if name != "pythae" or options.with_pythae]
    found = {}
    with tempfile.TemporaryDirectory() as packages:
        if "pythae" in names:
            fetch_pythae(packages)
        for name in names:
            command = [sys.executable, __file__, "--alone", name, "--minutes", str(options.minutes)]
            done = subprocess.run([*command, "--packages", packages], check=True, capture_output=True, text=True)
            found[name] = figures = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name:<17} -ELBO {figures['minus_elbo']:7.1f} nats, KL {figures['kl']:5.1f}, sigma "
                f"{figures['sigma']:.4f}, PSNR {figures['psnr']:.2f} dB, {figures['images_seen']:,} images seen",
                flush=True,
            )
    if "vaekit" in found and len(found) > 1:
        best = min((name for name in found if name != "vaekit"), key=lambda name: found[name]["minus_elbo"])
        lead = found[best]["minus_elbo"] - found["vaekit"]["minus_elbo"]
        print(f"vaekit is {lead:.1f} nats better than the best other contender, {best}; aim 15")
    write_json(options.json, {"minutes": options.minutes, "contenders": found})


def compete(name: str, minutes: float) -> dict[str, Any]:
    """Train and measure one contender."""
    torch.set_num_threads(usable_cpus())
    torch.manual_seed(0)
    train, test = fashion_mnist()
    network, seen = CONTENDERS[name](train, minutes)
    return {
        **measure(network, train, test),
        "images_seen": seen,
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def vaekit(train: Images, minutes: float) -> tuple[VAENetwork, int]:
    """Train as `vaekit train fashion-mnist --max-minutes` does."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer, seen = train_in_vaekit(None, settings(Config.batch_size, Config.lr), train, minutes, Path(scratch))
    return trainer.network, seen


def dense(train: Images, minutes: float) -> tuple[VAENetwork, int]:
    """One hidden layer of 400 on each side, 1e-3, no schedule."""
    encoder = Heads(nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 400), nn.ReLU()), 400)
    stack = nn.Sequential(nn.Linear(LATENT, 400), nn.ReLU(), nn.Linear(400, PIXELS), nn.Unflatten(1, (1, 28, 28)))
    network = pair(encoder, Sigmoid(stack))
    return network, plain_loop(network, train, minutes, batch_size=128, lr=lambda seen, gone: 1e-3)


def dense_deep(train: Images, minutes: float) -> tuple[VAENetwork, int]:
    """Two hidden layers of 1024 and 512 with batch normalisation, one cycle to 4e-3."""

    def layer(ins: int, outs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(ins, outs), nn.BatchNorm1d(outs), nn.SiLU())

    encoder = Heads(nn.Sequential(nn.Flatten(), layer(PIXELS, 1024), layer(1024, 512)), 512)
    out = nn.Sequential(nn.Linear(1024, PIXELS), nn.Unflatten(1, (1, 28, 28)))
    network = pair(encoder, Sigmoid(nn.Sequential(layer(LATENT, 512), layer(512, 1024), out)))
    return network, plain_loop(network, train, minutes, batch_size=128, lr=one_cycle(4e-3))


def transposed(train: Images, minutes: float) -> tuple[VAENetwork, int]:
    """Three convolutions down and three transposed ones up, 1e-3, no schedule."""
    network = three_levels()
    return network, plain_loop(network, train, minutes, batch_size=128, lr=lambda seen, gone: 1e-3)


def transposed_cycle(train: Images, minutes: float) -> tuple[VAENetwork, int]:
    """The same, one cycle to 4e-3."""
    network = three_levels()
    return network, plain_loop(network, train, minutes, batch_size=128, lr=one_cycle(4e-3))


def three_levels() -> VAENetwork:
    """Images padded to 32 x 32; 32, 64 and 128 channels down to 4 x 4; and back through 64, 32 and 16."""

    def down(ins: int, outs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(ins, outs, 3, 2, 1), nn.BatchNorm2d(outs), nn.SiLU())

    def up(ins: int, outs: int) -> nn.Module:
        return nn.Sequential(nn.ConvTranspose2d(ins, outs, 4, 2, 1), nn.BatchNorm2d(outs), nn.SiLU())

    features = nn.Sequential(nn.ZeroPad2d(2), down(1, 32), down(32, 64), down(64, 128), nn.Flatten())
    top = nn.Sequential(nn.Linear(LATENT, 2048), nn.Unflatten(1, (128, 4, 4)), nn.BatchNorm2d(128), nn.SiLU())
    stack = nn.Sequential(top, up(128, 64), up(64, 32), up(32, 16), nn.Conv2d(16, 1, 3, 1, 1), nn.ZeroPad2d(-2))
    return pair(Heads(features, 2048), Sigmoid(stack))


def pythae(train: Images, minutes: float) -> tuple[VAENetwork, int]:
    """Train pythae's convolutional MNIST networks in the plain loop.

    pythae's own loss has sigma = 1, which would give blurrier images.
    """
    from pythae.models import VAEConfig
    from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST, Encoder_Conv_VAE_MNIST

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT)
    encoder = PythaeEncoder(Encoder_Conv_VAE_MNIST(config))
    network = pair(encoder, PythaeDecoder(Decoder_Conv_AE_MNIST(config)))
    return network, plain_loop(network, train, minutes, batch_size=128, lr=lambda seen, gone: 1e-3)


class PythaeEncoder(nn.Module):
    """An encoder, image → mu and logvar, that wraps one of pythae's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.inner(image)
        return found.embedding, found.log_covariance


class PythaeDecoder(nn.Module):
    """A decoder, z → image, that wraps one of pythae's, which ends in a sigmoid."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def logits(self, z: Tensor) -> Tensor:
        """Return the logits of the decoded image, (B, 1, 28, 28)."""
        return torch.logit(self(z), 1e-7)

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.inner(z).reconstruction
        return image


def fetch_pythae(folder: str) -> None:
    """Install pythae and its missing dependencies in a folder, without another PyTorch."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder]
    subprocess.run([*pip, "--no-deps", PYTHAE], check=True)
    subprocess.run([*pip, *PYTHAE_NEEDS], check=True)


CONTENDERS: dict[str, Contender] = {
    "vaekit": vaekit,
    "dense": dense,
    "transposed": transposed,
    "transposed-cycle": transposed_cycle,
    "dense-deep": dense_deep,
    "pythae": pythae,
}

if __name__ == "__main__":
    main()
