"""How many images a second does training take, beside a plain loop on the same network?

    python benchmarks/training.py [--device cpu|cuda] [--precision fp32|bf16] [--batch-size 128] [--seconds 3]
                                  [--rounds 5] [--with-pythae] [--json FILE]

Ways, interleaved: vaekit's own step, with its batches, noise and checks; a plain loop over images that lie in memory
as float32 tensors; the same loop over a DataLoader, with 0, 2 and 4 worker processes; and, with --with-pythae, the
trainer of pythae, which pip installs in a temporary folder, on the same networks with its own loss. The others train
the default network on 60,000 images of 28x28 with the ELBO, its optimal sigma, and AdamW. Medians and spreads of the
rounds, and the ratio of vaekit's median to each. Aim: 0.97 of the loop with tensors in memory, 1.2 times the
DataLoader; on a GPU 3 times the DataLoader.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from duel import fetch_pythae
from timing import write_json
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from vaekit.images.dataset import Images, open_source
from vaekit.output.table import text_table
from vaekit.training.batches import Batches
from vaekit.training.config import Config
from vaekit.training.device import exact, share_threads
from vaekit.training.learner import Learner
from vaekit.training.networks import VAENetwork
from vaekit.training.processes import ProcessGroup

IMAGES, SHAPE = 60_000, (1, 28, 28)
WORKERS = (0, 2, 4)
_WARM_UP = 10  # steps
_IMAGES_OF_PYTHAE = 12_800  # in each round

Step = Callable[[], object]


def main() -> None:
    """Time the three ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--with-pythae", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    share_threads()
    device = torch.device(options.device)
    images = random_images()
    settings: dict[str, Any] = {"precision": options.precision, "batch_size": options.batch_size}
    config = Config(source="random", channels=SHAPE[0], height=SHAPE[1], width=SHAPE[2], **settings)
    ways = {"vaekit": vaekit_steps(config, images, device)}
    floats = torch.from_numpy(images.read(range(IMAGES))).float().div_(255)
    ways["plain loop, tensors in memory"] = plain_steps(config, batches_in_memory(floats, config.batch_size), device)
    for workers in WORKERS:
        ways[f"plain loop, DataLoader, {workers} workers"] = plain_steps(
            config, batches_of_loader(floats, config.batch_size, workers), device
        )
    rates: dict[str, list[float]] = {name: [] for name in ways}
    packages = tempfile.TemporaryDirectory()
    if options.with_pythae:
        fetch_pythae(packages.name)
        sys.path.append(packages.name)
        rates["pythae's trainer"] = []
        of_pythae = pythae_epoch(config, images, packages.name, options.device)
    for _ in range(options.rounds):
        if options.with_pythae:
            rates["pythae's trainer"].append(of_pythae())
        for name, step in ways.items():
            with exact(device) if name == "vaekit" else torch.backends.cudnn.flags(enabled=True):
                rates[name].append(config.batch_size * steps_per_second(step, options.seconds, device))
    show(rates)
    write_json(options.json, {"device": device_name(device), **settings, "images_per_second": rates})


def random_images() -> Images:
    """Return images of noise, held in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, *SHAPE[1:]), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "images.npy"), pixels)
        return open_source(str(Path(folder, "images.npy")))


def vaekit_steps(config: Config, images: Images, device: torch.device) -> Step:
    """Return vaekit's step on its own batches, with the checks for divergence."""
    torch.manual_seed(0)
    learner = Learner(config, VAENetwork(config.image_shape, config.latent), device, ProcessGroup())
    batches = Batches(images, config, np.arange(len(images)))
    numbered = enumerate(batches.from_step(0))

    def step() -> None:
        number, pixels = next(numbered)
        learner.step(number, pixels, batches.noise(number, 1), config.lr, 1.0)

    return step


def plain_steps(config: Config, batches: Iterator[Tensor], device: torch.device) -> Step:
    """Return a step as people write it: no checks, noise from the device."""
    torch.manual_seed(0)
    network = VAENetwork(config.image_shape, config.latent).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), config.lr)
    network.train()

    def step() -> None:
        image = next(batches).to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            mu, logvar = network.encoder(image)
            decoded = torch.sigmoid(network.decoder.logits(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)))
        error = (decoded.float() - image).square().flatten(1).sum(1)
        variance = (error.detach().mean() / config.pixels).clamp_min(1e-6)
        reconstruction = 0.5 * (config.pixels * torch.log(variance) + error / variance)
        kl = 0.5 * (logvar.exp() + mu.square() - 1 - logvar).sum(1)
        loss = (reconstruction + kl).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def pythae_epoch(config: Config, images: Images, folder: str, device: str) -> Callable[[], float]:
    """Return a function that lets pythae's trainer see some images once, and returns the images a second."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    network = VAENetwork(config.image_shape, config.latent)

    class Encoder(BaseEncoder):  # type: ignore[misc]  # pythae has no types
        def __init__(self) -> None:
            super().__init__()
            self.inner = network.encoder

        def forward(self, image: Tensor) -> Any:
            mu, logvar = self.inner(image)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            super().__init__()
            self.inner = network.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.inner(z))

    floats = torch.from_numpy(images.read(range(_IMAGES_OF_PYTHAE))).float().div_(255)
    trainer = BaseTrainer(
        VAE(VAEConfig(input_dim=config.image_shape, latent_dim=config.latent), Encoder(), Decoder()),
        BaseDataset(floats, torch.zeros(len(floats))),
        training_config=BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=config.batch_size,
            optimizer_cls="AdamW",
            learning_rate=config.lr,
            no_cuda=device == "cpu",
        ),
    )
    trainer.prepare_training()

    def epoch() -> float:
        began = time.perf_counter()
        trainer.train_step(1)
        return len(floats) / (time.perf_counter() - began)

    return epoch


def batches_in_memory(images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield shuffled batches of a tensor, endlessly."""
    while True:
        order = torch.randperm(len(images))
        for first in range(0, len(images) - size + 1, size):
            yield images[order[first : first + size]]


def batches_of_loader(images: Tensor, size: int, workers: int) -> Iterator[Tensor]:
    """Yield shuffled batches of a DataLoader, endlessly."""
    loader = DataLoader(
        TensorDataset(images),
        size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
    for _ in itertools.count():
        for (batch,) in loader:
            yield batch


def steps_per_second(step: Step, seconds: float, device: torch.device) -> float:
    """Take steps for that long, and wait for the device before and after."""
    for _ in range(_WARM_UP):
        step()
    wait(device)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        step()
        done += 1
    wait(device)
    return done / (time.perf_counter() - began)


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Return the device's name, and the threads of a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def show(rates: dict[str, list[float]]) -> None:
    """Print images a second, and vaekit's ratio to each way."""
    own = statistics.median(rates["vaekit"])
    rows = [("", "images/s", "from", "to", "vaekit is")]
    for name, found in rates.items():
        median = statistics.median(found)
        rows.append((name, f"{median:,.0f}", f"{min(found):,.0f}", f"{max(found):,.0f}", f"x{own / median:.2f}"))
    print("\n".join(text_table(rows)), flush=True)


if __name__ == "__main__":
    main()
