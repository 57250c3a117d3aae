"""Which network should `vaekit train --downscale` have? Trains candidates on photographs with vaekit's trainer.

    python benchmarks/photographs.py SOURCE [--minutes 2] [--latent 4] [--downscale 8] [--size 64]
                                     [--candidates NAME …] [--pictures FOLDER] [--json FILE]

Candidates train one after the other for the same time. Beside them stand the network for vectors with as many latent
numbers, and principal components (PCA) fitted to the same images, as many as latent numbers. Measured on held-out
photographs: -ELBO in nats, with sigma computed on training images; PSNR at z = mu; the size of both graphs; and the
decoder's latency in ONNX Runtime. A candidate is on the Pareto front if no other is at least as good in -ELBO, latency
at batch 1 and size, and better in one of them. `--pictures` writes photographs beside reconstructions, four times as
large.
"""

from __future__ import annotations

import argparse
import json
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
from vaekit.training.map_networks import MapDecoder, MapEncoder, ResidualBlock, convolution
from vaekit.training.networks import VAENetwork
from vaekit.training.trainer import Trainer

_OPSET = 17
_SHOWN = 8  # photographs in a picture
PCA = "PCA"
VECTOR = "a vector"

Alteration = Callable[[VAENetwork], None]


class PreActivation(nn.Module):
    """A residual block with normalisation and activation before each convolution (He et al., 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.BatchNorm2d(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
        self.inner = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + self.inner(features)
        return result


class Normalised(nn.Module):
    """A residual block of two convolutions with batch normalisation and SiLU (He et al., 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.inner = nn.Sequential(convolution(channels, channels), last, nn.BatchNorm2d(channels))

    def forward(self, features: Tensor) -> Tensor:
        return torch.nn.functional.silu(features + self.inner(features))


def nothing(network: VAENetwork) -> None:
    """Leave the network as it is."""


def blocks_by(make: Callable[[int], nn.Module]) -> Alteration:
    """Return an alteration that replaces the residual blocks; ``make`` takes the number of channels."""

    def alter(network: VAENetwork) -> None:
        for stack in (network.encoder.get_submodule("features"), network.decoder.get_submodule("features")):
            assert isinstance(stack, nn.Sequential)
            for number, stage in enumerate(stack):
                if isinstance(stage, ResidualBlock):
                    stack[number] = make(stage.inner[0].in_channels)  # type: ignore[arg-type]  # an int

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


def activation_by(old: type[nn.Module], new: type[nn.Module]) -> Alteration:
    """Return an alteration that replaces activations of one kind by another."""

    def alter(network: VAENetwork) -> None:
        for module in network.modules():
            for name, inner in module.named_children():
                if isinstance(inner, old):
                    setattr(module, name, new())

    return alter


def full_resolution(network: VAENetwork) -> None:
    """Begin and end with a convolution at the image's own resolution, of 16 channels."""
    channels, width = network.image_shape[0], 32
    encoder, decoder = network.encoder, network.decoder
    assert isinstance(encoder, MapEncoder)
    assert isinstance(decoder, MapDecoder)
    encoder.features[0] = nn.Sequential(convolution(channels, 16), convolution(16, width, stride=2))
    decoder.image = nn.Sequential(
        nn.Upsample(scale_factor=2), convolution(width, 16), nn.Conv2d(16, channels, 3, padding=1)
    )


def transposed_image(network: VAENetwork) -> None:
    """End with a transposed convolution in place of a pixel shuffle."""
    assert isinstance(network.decoder, MapDecoder)
    network.decoder.image = nn.Sequential(nn.ConvTranspose2d(32, network.image_shape[0], 4, 2, 1))


CANDIDATES: dict[str, Alteration] = {
    "vaekit": nothing,
    "ReLU everywhere": activation_by(nn.SiLU, nn.ReLU),
    "SiLU everywhere": activation_by(nn.ReLU, nn.SiLU),
    "pre-activation blocks": blocks_by(PreActivation),
    "normalised blocks": blocks_by(Normalised),
    "no blocks": blocks_by(lambda channels: nn.Identity()),
    "pixel shuffle": upsampling_by(pixel_shuffle),
    "transposed": upsampling_by(transposed),
    "transposed image": transposed_image,
    "full resolution": full_resolution,
}


def main() -> None:
    """Train the candidates and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--latent", type=int, default=4)
    parser.add_argument("--downscale", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=Config.lr)
    parser.add_argument(
        "--candidates", nargs="+", choices=[*CANDIDATES, VECTOR, PCA], default=[*CANDIDATES, VECTOR, PCA]
    )
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(json.dumps(trained(options.train, options)))
        return
    found: dict[str, dict[str, Any]] = {}
    for name in options.candidates:
        command = [sys.executable, __file__, *sys.argv[1:], "--train", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {found[name]}", flush=True)
    networks = {name: figures for name, figures in found.items() if name != PCA}
    for figures in networks.values():
        figures["pareto"] = not any(beats(other, figures) for other in networks.values())
    print("\n".join(text_table(rows(found))))
    write_json(options.json, {"minutes": options.minutes, "candidates": found})


def trained(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train a candidate and measure it."""
    torch.set_num_threads(usable_cpus())
    images = open_source(options.source, size=(options.size, options.size))
    numbers = options.latent * (options.size // options.downscale) ** 2
    if name == PCA:
        return {"psnr": pca_psnr(images, numbers)}
    shape: dict[str, Any] = dict(zip(("channels", "height", "width"), images.shape, strict=True))
    latent: dict[str, Any] = (
        {"latent": numbers} if name == VECTOR else {"latent": options.latent, "downscale": options.downscale}
    )
    config = Config(
        source=options.source, batch_size=options.batch_size, lr=options.lr, augment="flip", **shape, **latent
    )
    torch.manual_seed(0)
    network = VAENetwork.of(config)
    CANDIDATES.get(name, nothing)(network)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        trainer = Trainer(config, images, path, network=network, deadline=time.monotonic() + 60 * options.minutes)
        outcome = trainer.run()
        assert outcome.sigma is not None
        held_out = np.load(path / "holdout.npz")["images"]
        figures = measured(trainer.network, config, outcome.sigma**2, held_out, path)
        if options.pictures:
            options.pictures.mkdir(exist_ok=True)
            draw(trainer.network, held_out, options.pictures / f"{name.replace(' ', '-')}.png")
    return {**figures, "images_seen": outcome.steps * config.batch_size}


def measured(
    network: VAENetwork, config: Config, variance: float, held_out: NDArray[np.uint8], folder: Path
) -> dict[str, Any]:
    """Measure a network on held-out images, and its graphs."""
    from vaekit.training.run import Run
    from vaekit_export.onnx_export import export_onnx

    run = Run(folder, config, network.eval(), variance, None, {})
    found = evaluate(run, held_out.__getitem__, np.arange(len(held_out)), samples=1)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # stub lacks it
    image, z = torch.zeros(2, *config.image_shape), torch.zeros(2, *config.latent_shape)
    encoder = export_onnx(network.encoder, image, input_name="image", output_names=("mu", "logvar"), opset=_OPSET)
    decoder = export_onnx(network.decoder, z, input_name="z", output_names=("image",), opset=_OPSET)
    (folder / "decoder.onnx").write_bytes(decoder)
    return {
        "minus_elbo": -found.elbo,
        "kl": found.kl,
        "sigma": found.sigma,
        "psnr": found.psnr,
        "bytes": len(encoder) + len(decoder),
        **latencies(folder / "decoder.onnx", config.latent_shape),
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
