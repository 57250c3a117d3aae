"""What do latents that are maps cost in bits, beside the codecs of pictures?

    python benchmarks/rate_distortion.py SOURCE [--minutes 2] [--betas 0.3 1 3 10] [--latent 8] [--downscale 8]
                                         [--size 64] [--plot FILE.png] [--json FILE]

Trains one VAE for each beta, as many steps as fit the given time on an idle machine. The rate is the KL on held-out
photographs in bits per pixel: what a coder with the prior N(0, I) would need for z by bits-back coding. The distortion
is the PSNR of the decoder's image at z from q(z|x), as such a coder would transmit it. JPEG, WebP and AVIF are written
by Pillow on the same photographs at several qualities. Their files have headers, which weigh much in pictures of 64x64:
so the figures without the smallest file that a codec writes, of one grey picture, are given too.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from photographs import seconds_a_step
from PIL import Image, features
from timing import write_json

from vaekit.images.dataset import Images, open_source
from vaekit.maths.psnr import psnr
from vaekit.output.table import text_table
from vaekit.system.machine import usable_cpus
from vaekit.training.config import Config
from vaekit.training.device import to_device
from vaekit.training.networks import VAENetwork, reparameterise
from vaekit.training.objective import kl_standard_normal
from vaekit.training.trainer import Trainer

CODECS = {"JPEG": "jpg", "WEBP": "webp", "AVIF": "avif"}
QUALITIES = (2, 5, 10, 20, 35, 50, 70, 85)
_BATCH = 32


def main() -> None:
    """Train the models, measure them and the codecs, and print and plot the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.3, 1.0, 3.0, 10.0])
    parser.add_argument("--latent", type=int, default=8)
    parser.add_argument("--downscale", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(usable_cpus())
    images = open_source(options.source, size=(options.size, options.size))
    config = settings(images, 1.0, 1, options)
    steps = int(60 * options.minutes / seconds_a_step(config, VAENetwork.of(config), images))
    found: dict[str, list[dict[str, float]]] = {"vaekit": []}
    held_out = np.empty(0, np.uint8)
    for beta in options.betas:
        point, held_out = trained(images, beta, steps, options)
        found["vaekit"].append(point)
        print(f"beta {beta:g}: {point}", flush=True)
    for codec, feature in CODECS.items():
        if features.check(feature):
            found[codec] = [coded(held_out, codec, quality) for quality in QUALITIES]
    print("\n".join(text_table(rows(found))))
    write_json(options.json, {"steps": steps, "points": found})
    if options.plot:
        plot(found, options.plot)


def settings(images: Images, beta: float, steps: int, options: argparse.Namespace) -> Config:
    """Return the settings of one training."""
    channels, height, width = images.shape
    return Config(
        source=options.source,
        channels=channels,
        height=height,
        width=width,
        latent=options.latent,
        downscale=options.downscale,
        beta=beta,
        batch_size=_BATCH,
        lr=2e-3,
        augment="flip",
        steps=steps,
    )


def trained(
    images: Images, beta: float, steps: int, options: argparse.Namespace
) -> tuple[dict[str, float], NDArray[np.uint8]]:
    """Train with a beta; return rate and distortion on the held-out images, and these."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings(images, beta, steps, options), images, Path(folder, "run"))
        trainer.run()
        held_out: NDArray[np.uint8] = np.load(Path(folder, "run", "holdout.npz"))["images"]
    network = trainer.network.eval()
    with torch.inference_mode():
        x = to_device(held_out, torch.device("cpu"))
        mu, logvar = network.encode(x)
        eps = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
        decoded = torch.sigmoid(network.logits(reparameterise(mu, logvar, eps)))
        kl = kl_standard_normal(mu, logvar).sum(1).mean().item()
    rate = kl / math.log(2) / (held_out.shape[2] * held_out.shape[3])
    return {"beta": beta, "bits_per_pixel": rate, "psnr": mean_psnr(decoded.numpy(), held_out)}, held_out


def coded(held_out: NDArray[np.uint8], codec: str, quality: int) -> dict[str, float]:
    """Write the images with a codec; return rates, with and without headers, and distortion."""
    files = [encoded(image, codec, quality) for image in held_out]
    pixels = held_out.shape[2] * held_out.shape[3]
    header = len(encoded(np.full_like(held_out[0], 128), codec, quality))
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    size = float(np.mean([len(file) for file in files]))
    return {
        "quality": quality,
        "bits_per_pixel": 8 * size / pixels,
        "without_header": 8 * (size - header) / pixels,
        "psnr": mean_psnr(decoded.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255), held_out),
    }


def encoded(image: NDArray[np.uint8], codec: str, quality: int) -> bytes:
    """Return a picture's file."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, codec, quality=quality)
    return buffer.getvalue()


def mean_psnr(decoded: NDArray[np.float32], held_out: NDArray[np.uint8]) -> float:
    """Return the mean PSNR over images."""
    errors = ((decoded - held_out / np.float32(255)) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean([psnr(max(error, 1e-10)) for error in errors.tolist()]))


def rows(found: dict[str, list[dict[str, float]]]) -> list[tuple[str, ...]]:
    """Return the rows of the table."""
    lines: list[tuple[str, ...]] = [("", "bits per pixel", "without header", "PSNR")]
    for name, points in found.items():
        for point in points:
            setting = f"beta {point['beta']:g}" if "beta" in point else f"quality {point['quality']:g}"
            bare = f"{point['without_header']:.3f}" if "without_header" in point else ""
            lines.append((f"{name}, {setting}", f"{point['bits_per_pixel']:.3f}", bare, f"{point['psnr']:.2f} dB"))
    return lines


def plot(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw rate against distortion."""
    from matplotlib.figure import Figure

    figure = Figure((6, 4.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="bits per pixel", ylabel="PSNR in dB")
    for name, points in found.items():
        decibels = [point["psnr"] for point in points]
        (line,) = axes.plot([point["bits_per_pixel"] for point in points], decibels, "o-", markersize=4, label=name)
        if "without_header" in points[0]:
            bare = [point["without_header"] for point in points]
            axes.plot(bare, decibels, "--", color=line.get_color(), label=f"{name} without header")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
