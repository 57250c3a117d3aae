"""Which network should `vaekit train --downscale` have? Trains candidates on photographs with vaekit's trainer.

    python benchmarks/photographs.py SOURCE [--minutes 2] [--latent 4] [--downscale 8] [--size 64]
                                     [--candidates NAME …] [--likelihood gaussian] [--device cpu]
                                     [--pictures FOLDER] [--json FILE]

All candidates are timed first, on an idle machine; then each trains as many steps as it takes in the given time, so
that other work beside the training changes nothing. Beside them stand the network for vectors with as many latent
numbers, principal components (PCA) fitted to the same images, as many as latent numbers, and, if diffusers is
installed, two of its architectures with as many latent numbers, trained by the same loop: AutoencoderTiny, and an
AutoencoderKL of 32, 64 and 64 channels, which has a downscale of 4. Measured on held-out photographs: -ELBO in nats,
with sigma computed on training images; PSNR at z = mu; the size of both graphs; and the decoder's latency in ONNX
Runtime. A candidate is on the Pareto front if no other is at least as good in -ELBO, latency at batch 1 and size, and
better in one of them. `--pictures` writes photographs beside reconstructions, four times as large.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from quality import beats, latencies
from timing import write_json
from torch import Tensor, nn

from vaekit.images.dataset import Images, open_source
from vaekit.maths.psnr import psnr
from vaekit.output.grid import grid, save_picture
from vaekit.output.table import text_table
from vaekit.system.machine import usable_cpus
from vaekit.training.config import Config
from vaekit.training.device import to_device
from vaekit.training.evaluation import evaluate
from vaekit.training.holdout import hold_out
from vaekit.training.learner import Learner
from vaekit.training.map_networks import MapDecoder, MapEncoder, ResidualBlock, convolution
from vaekit.training.networks import VAENetwork
from vaekit.training.processes import ProcessGroup
from vaekit.training.run import Run
from vaekit.training.trainer import Trainer

_OPSET = 17
_SHOWN = 8  # photographs in a picture
_TIMED_STEPS = 14
PCA = "PCA"
VECTOR = "a vector"

Alteration = Callable[[VAENetwork], None]


class Moments(nn.Module):
    """An encoder made of one that gives mu and logvar as channels of one map."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.inner(image).chunk(2, dim=1)
        return mu, logvar.clamp(-10, 10)


class FromLogits(nn.Module):
    """A decoder made of one that gives the image before the sigmoid."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def logits(self, z: Tensor) -> Tensor:
        """Return the image before the sigmoid."""
        logits: Tensor = self.inner(z)
        return logits

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(z))


class Taesd(nn.Module):
    """TAESD's residual block: three convolutions with ReLU, without normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second, third = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.inner = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(features + self.inner(features))


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised (Qiao et al., "Micro-Batch Training", 2019)."""

    def forward(self, features: Tensor) -> Tensor:
        weight = self.weight
        centred = weight - weight.mean((1, 2, 3), keepdim=True)
        deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-5
        weight = centred / deviation / weight[0].numel() ** 0.5
        return nn.functional.conv2d(features, weight, self.bias, padding=1)


def normalised(channels: int) -> nn.Module:
    """Build a residual block with batch normalisation before each activation."""
    return Residual(channels, lambda: nn.BatchNorm2d(channels))


def group_normalised(channels: int) -> nn.Module:
    """Build a residual block with group normalisation, which computes statistics over all positions."""
    return Residual(channels, lambda: nn.GroupNorm(8, channels))


def standardised(channels: int) -> nn.Module:
    """Build a residual block with standardised weights."""
    return Residual(channels, nn.Identity, Standardised)


class Residual(nn.Module):
    """A residual block with normalisation and activation before each convolution (He et al., 2016)."""

    def __init__(
        self, channels: int, normalisation: Callable[[], nn.Module], convolution: type[nn.Conv2d] = nn.Conv2d
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [normalisation(), nn.SiLU(), convolution(channels, channels, 3, padding=1)]
        self.inner = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + self.inner(features)
        return result


def nothing(network: VAENetwork) -> None:
    """Leave the network as it is."""


def blocks_by(make: Callable[[int], nn.Module]) -> Alteration:
    """Return an alteration that replaces the residual blocks; ``make`` takes the number of channels."""

    def alter(network: VAENetwork) -> None:
        for stack in (network.encoder.get_submodule("features"), network.decoder.get_submodule("features")):
            assert isinstance(stack, nn.Sequential)
            for number, stage in enumerate(stack):
                if isinstance(stage, ResidualBlock):
                    stack[number] = make(stage.inner[1].in_channels)  # type: ignore[arg-type]  # an int

    return alter


def upsampling_by(make: Callable[[int, int], nn.Module]) -> Alteration:
    """Return an alteration of the upsampling; ``make`` takes the channels before and after it."""

    def alter(network: VAENetwork) -> None:
        stack = network.decoder.get_submodule("features")
        assert isinstance(stack, nn.Sequential)
        for number, stage in enumerate(stack):
            if isinstance(stage, nn.Upsample):
                convolved = stack[number + 1][0]  # type: ignore[index]  # it is a Sequential
                stack[number] = make(convolved.in_channels, convolved.out_channels)
                stack[number + 1] = nn.Identity()

    return alter


def pixel_shuffle(ins: int, outs: int) -> nn.Module:
    """Build a convolution and a pixel shuffle."""
    return nn.Sequential(convolution(ins, 4 * outs), nn.PixelShuffle(2))


def transposed(ins: int, outs: int) -> nn.Module:
    """Build a transposed convolution with normalisation."""
    return nn.Sequential(nn.ConvTranspose2d(ins, outs, 4, 2, 1, bias=False), nn.BatchNorm2d(outs), nn.SiLU())


def pixel_unshuffle(network: VAENetwork) -> None:
    """Begin with a pixel unshuffle and a convolution."""
    assert isinstance(network.encoder, MapEncoder)
    network.encoder.features[0] = nn.Sequential(nn.PixelUnshuffle(2), convolution(4 * network.image_shape[0], 32))


def ending(make: Callable[[int, int], nn.Module]) -> Alteration:
    """Return an alteration of the decoder's end; ``make`` takes its channels and the image's."""

    def alter(network: VAENetwork) -> None:
        assert isinstance(network.decoder, MapDecoder)
        network.decoder.image = make(network.decoder.image.in_channels, network.image_shape[0])  # type: ignore[assignment]

    return alter


def shuffled_image(width: int, channels: int) -> nn.Module:
    """End with a convolution and a pixel shuffle."""
    return nn.Sequential(nn.Conv2d(width, 4 * channels, 3, padding=1), nn.PixelShuffle(2))


def nearest_image(width: int, channels: int) -> nn.Module:
    """End with nearest neighbours and two convolutions at full resolution."""
    doubled = nn.Upsample(scale_factor=2)
    return nn.Sequential(doubled, nn.Conv2d(width, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, channels, 3, padding=1))


def full_resolution(network: VAENetwork) -> None:
    """Begin and end with convolutions at the image's own resolution, of 16 channels."""
    assert isinstance(network.encoder, MapEncoder)
    network.encoder.features[0] = nn.Sequential(convolution(network.image_shape[0], 16), convolution(16, 32, stride=2))
    ending(nearest_image)(network)


def autoencoder_tiny(network: VAENetwork) -> None:
    """Take the architecture of diffusers' AutoencoderTiny (TAESD); its encoder gets outputs for logvar."""
    from diffusers.models.autoencoders.vae import DecoderTiny, EncoderTiny

    channels, latent = network.image_shape[0], network.latent
    width = (64, 64, 64, 64)
    network.encoder = Moments(EncoderTiny(channels, 2 * latent, (1, 3, 3, 3), width, "relu"))  # type: ignore[assignment]
    network.decoder = FromLogits(DecoderTiny(latent, channels, (3, 3, 3, 1), width, 2, "relu", "nearest"))  # type: ignore[assignment]


def autoencoder_kl(network: VAENetwork) -> None:
    """Take the architecture of diffusers' AutoencoderKL, with a quarter of the image's sides."""
    from diffusers.models.autoencoders.vae import Decoder, Encoder

    (channels, height, width), numbers = network.image_shape, math.prod(network.latent_shape)
    latent = numbers // (height // 4 * (width // 4))
    network.latent_shape = (latent, height // 4, width // 4)
    sizes, down, up = (32, 64, 64), ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    network.encoder = Moments(Encoder(channels, latent, down, sizes))  # type: ignore[assignment]
    network.decoder = FromLogits(Decoder(latent, channels, up, sizes))  # type: ignore[assignment]


PEERS: dict[str, Alteration] = {"AutoencoderTiny": autoencoder_tiny, "AutoencoderKL": autoencoder_kl}
RATES = {"AutoencoderTiny": 5e-4, "AutoencoderKL": 1e-3}  # with higher ones they do not train
CANDIDATES: dict[str, Alteration] = {
    "vaekit": nothing,
    "TAESD's blocks": blocks_by(Taesd),
    "batch-normalised blocks": blocks_by(normalised),
    "group-normalised blocks": blocks_by(group_normalised),
    "standardised blocks": blocks_by(standardised),
    "no blocks": blocks_by(lambda channels: nn.Identity()),
    "pixel unshuffle first": pixel_unshuffle,
    "pixel shuffle": upsampling_by(pixel_shuffle),
    "transposed": upsampling_by(transposed),
    "pixel shuffle last": ending(shuffled_image),
    "nearest last": ending(nearest_image),
    "full resolution": full_resolution,
}


def main() -> None:
    """Time and train the candidates and print the table."""
    options = options_of(sys.argv[1:])
    if options.time:
        print(json.dumps(timed(options.time, options)))
        return
    if options.train:
        print(json.dumps(trained(options.train, options)))
        return
    names = [name for name in options.candidates if name not in PEERS or importlib.util.find_spec("diffusers")]
    for name in sorted(set(options.candidates) - set(names)):
        print(f"{name} is left out: diffusers is not installed")
    found: dict[str, dict[str, Any]] = {name: {} if name == PCA else child("--time", name) for name in names}
    print(f"all candidates are timed: {found}", flush=True)
    for name in names:
        batch, _ = batch_and_rate(name, options)
        steps = max(1, int(60 * options.minutes * found[name].get("images_per_second", 0) / batch))
        found[name] |= child("--train", name, "--steps", str(steps))
        print(f"{name}: {found[name]}", flush=True)
    networks = {name: figures for name, figures in found.items() if name != PCA}
    for figures in networks.values():
        figures["pareto"] = not any(beats(other, figures) for other in networks.values())
    print("\n".join(text_table(rows(found))))
    write_json(options.json, {"minutes": options.minutes, "candidates": found})


def options_of(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--latent", type=int, default=4)
    parser.add_argument("--downscale", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--likelihood", choices=["gaussian", "laplace"], default=Config.likelihood)
    parser.add_argument("--device", default="cpu", help="The device that trains. Candidates are timed on the CPU.")
    every = [*CANDIDATES, *PEERS, VECTOR, PCA]
    parser.add_argument("--candidates", nargs="+", choices=every, default=every)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--time", help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=Config.steps, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def child(*options: str) -> dict[str, Any]:
    """Run this file in a new process with further options, and return the JSON object that it prints."""
    command = [sys.executable, __file__, *sys.argv[1:], *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def batch_and_rate(name: str, options: argparse.Namespace) -> tuple[int, float]:
    """Return the batch size and learning rate of a candidate: vaekit's own for vectors."""
    if name == VECTOR:
        return Config.batch_size, Config.lr
    return options.batch_size, RATES.get(name, options.lr)


def network_of(name: str, images: Images, options: argparse.Namespace) -> tuple[Config, VAENetwork]:
    """Build a candidate's network, with its settings."""
    numbers = options.latent * (options.size // options.downscale) ** 2
    latent: dict[str, Any] = (
        {"latent": numbers} if name == VECTOR else {"latent": options.latent, "downscale": options.downscale}
    )
    batch_size, rate = batch_and_rate(name, options)
    shape: dict[str, Any] = dict(zip(("channels", "height", "width"), images.shape, strict=True))
    config = Config(
        source=options.source,
        batch_size=batch_size,
        lr=rate,
        likelihood=options.likelihood,
        augment="flip",
        steps=options.steps,
        **shape,
        **latent,
    )
    torch.manual_seed(0)
    network = VAENetwork.of(config)
    {**CANDIDATES, **PEERS}.get(name, nothing)(network)
    return config, network


def timed(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time a candidate's training steps, and its graphs."""
    from vaekit_export.onnx_export import export_onnx

    torch.set_num_threads(usable_cpus())
    images = open_source(options.source, size=(options.size, options.size))
    config, network = network_of(name, images, options)
    seconds = seconds_a_step(config, network, images)
    network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # stub lacks it
    image, z = torch.zeros(2, *config.image_shape), torch.zeros(2, *network.latent_shape)
    encoder = export_onnx(network.encoder, image, input_name="image", output_names=("mu", "logvar"), opset=_OPSET)
    decoder = export_onnx(network.decoder, z, input_name="z", output_names=("image",), opset=_OPSET)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "decoder.onnx")
        path.write_bytes(decoder)
        return {
            "images_per_second": config.batch_size / seconds,
            "bytes": len(encoder) + len(decoder),
            **latencies(path, network.latent_shape),
        }


def seconds_a_step(config: Config, network: VAENetwork, images: Images) -> float:
    """Return the median time of a training step on the CPU."""
    learner = Learner(config, network, torch.device("cpu"), ProcessGroup())
    pixels = images.read(np.arange(config.batch_size))
    eps = np.random.default_rng(0).standard_normal((1, len(pixels), config.latent_numbers)).astype(np.float32)
    seconds = []
    for step in range(_TIMED_STEPS):
        began = time.perf_counter()
        learner.step(step, pixels, eps, 1e-4, 1.0)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[2:]))


def trained(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train a candidate and measure it on held-out images."""
    torch.set_num_threads(usable_cpus())
    images = open_source(options.source, size=(options.size, options.size))
    if name == PCA:
        return {"psnr": pca_psnr(images, options.latent * (options.size // options.downscale) ** 2)}
    config, network = network_of(name, images, options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        trainer = Trainer(config, images, path, network=network, device=options.device)
        outcome = trainer.run()
        assert outcome.sigma is not None
        held_out = np.load(path / "holdout.npz")["images"]
        run = Run(path, config, trainer.network.cpu().eval(), outcome.sigma**2, None, {})
        found = evaluate(run, held_out.__getitem__, np.arange(len(held_out)), samples=1)
        if options.pictures:
            options.pictures.mkdir(exist_ok=True)
            draw(trainer.network, held_out, options.pictures / f"{re.sub('[^A-Za-z0-9]+', '-', name)}.png")
    return {
        "images_seen": outcome.steps * config.batch_size,
        "minus_elbo": -found.elbo,
        "kl": found.kl,
        "sigma": found.sigma,
        "psnr": found.psnr,
    }


def pca_psnr(images: Images, components: int) -> float:
    """Return the mean PSNR of held-out images after projection on principal components of the training images."""
    split = hold_out(images, 0)
    training = images.read(split.training).reshape(len(split.training), -1).astype(np.float32) / 255
    held_out = images.read(split.holdout).reshape(len(split.holdout), -1).astype(np.float32) / 255
    mean = training.mean(0)
    _, _, axes = torch.linalg.svd(torch.from_numpy(training - mean), full_matrices=False)
    basis = axes[:components].numpy()
    projected = (held_out - mean) @ basis.T @ basis + mean
    return float(np.mean([psnr(error) for error in ((np.clip(projected, 0, 1) - held_out) ** 2).mean(1)]))


@torch.inference_mode()
def draw(network: VAENetwork, held_out: NDArray[np.uint8], path: Path) -> None:
    """Write photographs above their reconstructions, four times as large."""
    chosen = to_device(held_out[:: max(1, len(held_out) // _SHOWN)][:_SHOWN], torch.device("cpu"))
    both = torch.cat((chosen, torch.sigmoid(network.logits(network.encode(chosen)[0])))).numpy()
    save_picture(grid(both, _SHOWN), path)
    with Image.open(path) as picture:
        picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.NEAREST).save(path)


def rows(found: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of the table."""
    head = ("candidate", "images seen", "-ELBO", "PSNR", "decode 1", "decode 64", "MB", "front")
    lines: list[tuple[str, ...]] = [head]
    for name, f in found.items():
        if name == PCA:
            lines.append((name, "", "", f"{f['psnr']:.2f} dB", "", "", "", ""))
            continue
        times = (f"{f['ms_batch_1']:.2f} ms", f"{f['ms_batch_64']:.1f} ms")
        figures = (f"{f['images_seen']:,}", f"{f['minus_elbo']:.0f}", f"{f['psnr']:.2f} dB", *times)
        lines.append((name, *figures, f"{f['bytes'] / 1e6:.2f}", "yes" if f["pareto"] else ""))
    return lines


if __name__ == "__main__":
    main()
