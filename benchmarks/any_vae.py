"""Can vaekit export VAEs from other libraries? Four are made, exported, verified and run.

    python benchmarks/any_vae.py [--minutes 1] [--edge VENV/bin/vaekit] [-o DIR] [--json FILE]

Two models are trained on Fashion-MNIST for --minutes each with their own losses: a 784-400-20 network in the style of
pytorch/examples, and pythae's VAE with its MNIST networks. diffusers' AutoencoderKL and AutoencoderTiny have random
weights and are exported with free sizes. Each model is exported with `vaekit export`. Then the command `--edge`
verifies the bundle, samples from it and reconstructs test images; the pictures are written to DIR. `--edge` should be
the `vaekit` of a virtual environment without PyTorch; the default is the one of this Python. Needs the extras `train`,
`diffusers` and `pythae`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from timing import write_json
from torch import Tensor, nn
from torch.nn import functional

from vaekit.images.dataset import Images, open_source
from vaekit.images.source import find_test_part
from vaekit_export import VAEDescription

_BATCH, _LR = 128, 1e-3
_COLOURED = ("--images", "shapes", "--size", "32", "--free-size")


class PlainVAE(nn.Module):
    """784-400-20."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and logvar, (B, 20) each."""
        hidden = functional.relu(self.fc1(image.flatten(1)))
        return self.fc21(hidden), self.fc22(hidden)

    def decode(self, z: Tensor) -> Tensor:
        """Decode to images (B, 1, 28, 28)."""
        return torch.sigmoid(self.fc4(functional.relu(self.fc3(z)))).view(-1, 1, 28, 28)

    def loss(self, image: Tensor) -> Tensor:
        """Return the sum of cross-entropy and KL, as in pytorch/examples."""
        mu, logvar = self.encode(image)
        again = self.decode(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))
        entropy = functional.binary_cross_entropy(again, image, reduction="sum")
        return entropy - 0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()


class MethodAsModule(nn.Module):
    """A module that calls one method of a model."""

    def __init__(self, model: PlainVAE, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, rows: Tensor) -> Any:
        return getattr(self.model, self.method)(rows)


def plain() -> tuple[nn.Module, nn.Module, VAEDescription, nn.Module]:
    """Build the VAE; the factory of `vaekit export --module any_vae:plain`."""
    model = PlainVAE()
    description = VAEDescription((1, 28, 28), (20,), likelihood="bernoulli", name="784-400-20")
    return MethodAsModule(model, "encode"), MethodAsModule(model, "decode"), description, model


def main() -> None:
    """Make, export, verify, sample and reconstruct."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--edge", type=Path, default=Path(sys.executable).with_name("vaekit"))
    parser.add_argument("-o", "--output", type=Path, default=Path("any-vae"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    edge = options.edge.absolute()
    imported = subprocess.run([edge.with_name("python"), "-c", "import torch"], check=False, capture_output=True)
    has_torch = imported.returncode == 0
    print(f"{edge} {'has' if has_torch else 'has no'} PyTorch", flush=True)

    train, test = open_source("fashion-mnist"), find_test_part("fashion-mnist")
    found = {}
    for name, make in MODELS.items():
        bundle = options.output / f"{name}-onnx"
        given = make(train, options.minutes, options.output)
        exported = run(edge_of_this(), "export", *given, "-o", bundle, "--json")
        images = "shapes" if "shapes" in given else test
        verified = run(edge, "verify", "-m", bundle, "--json")
        run(edge, "sample", "-m", bundle, "-n", 64, "-o", options.output / f"{name}-samples.png", "-q")
        pairs = options.output / f"{name}-pairs.png"
        again = run(edge, "reconstruct", images, "-m", bundle, "--limit", 16, "-o", pairs, "--json")
        worst = max(result["max_ratio"] for result in exported["parity"]["results"])
        found[name] = {
            "nodes": exported["nodes"],
            "worst_of_allowed": worst,
            "verified": verified["passed"],
            "psnr": again["psnr"],
        }
        print(f"{name}: parity at {worst:.0%} of the tolerance, verified, mean PSNR {again['psnr']:.1f} dB", flush=True)
    write_json(options.json, {"edge_has_torch": has_torch, "minutes": options.minutes, "models": found})


def make_plain(train: Images, minutes: float, folder: Path) -> tuple[str | Path, ...]:
    """Train 784-400-20; return the options of `vaekit export`."""
    model = PlainVAE()
    teach(model, model.loss, train, minutes)
    weights = folder / "plain.safetensors"
    save_file(model.state_dict(), weights)
    return ("--module", "any_vae:plain", "--weights", weights.absolute(), "--images", "fashion-mnist")


def make_pythae(train: Images, minutes: float, folder: Path) -> tuple[str | Path, ...]:
    """Train pythae's VAE; return the options of `vaekit export`."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST, Encoder_Conv_VAE_MNIST

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=16)
    model = VAE(config, encoder=Encoder_Conv_VAE_MNIST(config), decoder=Decoder_Conv_AE_MNIST(config))
    teach(model, lambda image: model({"data": image}).loss, train, minutes)
    model.save(str(folder / "pythae"))
    return ("--pythae", folder / "pythae", "--trust-pickle", "--images", "fashion-mnist")


def make_kl(train: Images, minutes: float, folder: Path) -> tuple[str | Path, ...]:
    """Write an AutoencoderKL with random weights."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(16, 32, 32), norm_num_groups=8, **blocks).save_pretrained(folder / "kl")
    return ("--diffusers", folder / "kl", *_COLOURED)


def make_tiny(train: Images, minutes: float, folder: Path) -> tuple[str | Path, ...]:
    """Write an AutoencoderTiny with random weights."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    AutoencoderTiny().save_pretrained(folder / "tiny")
    return ("--diffusers", folder / "tiny", *_COLOURED)


def teach(model: nn.Module, loss: Callable[[Tensor], Tensor], images: Images, minutes: float) -> None:
    """Train with Adam on a model's own loss for ``minutes``."""
    torch.manual_seed(0)
    pixels = torch.from_numpy(images.read(np.arange(len(images))))
    optimiser = torch.optim.Adam(model.parameters(), _LR)
    model.train()
    started = time.monotonic()
    while True:
        for index in torch.split(torch.randperm(len(pixels)), _BATCH)[:-1]:
            if time.monotonic() - started > 60 * minutes:
                return
            optimiser.zero_grad(set_to_none=True)
            loss(pixels[index].float() / 255).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()


def edge_of_this() -> Path:
    """Return the `vaekit` command of this Python's environment."""
    return Path(sys.executable).with_name("vaekit")


def run(command: Path, *arguments: object) -> dict[str, Any]:
    """Run a command in this folder, so that it can import `any_vae`; return its JSON or {}."""
    words = [str(part.absolute() if isinstance(part, Path) else part) for part in (command, *arguments)]
    done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout or "{}")
    return document


MODELS: dict[str, Callable[[Images, float, Path], tuple[str | Path, ...]]] = {
    "plain": make_plain,
    "pythae": make_pythae,
    "diffusers-kl": make_kl,
    "diffusers-tiny": make_tiny,
}

if __name__ == "__main__":
    main()
