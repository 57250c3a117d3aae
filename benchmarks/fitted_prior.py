"""How many Gaussians should the mixture prior have, and does the model copy its training images?

    python benchmarks/fitted_prior.py RUN [-o prior.png] [--json FILE]

RUN is a folder that `vaekit train` wrote. Mixtures with several numbers of components and types of covariance are
fitted to codes z drawn from q(z|x) for 12,000 training images, as in training. They are compared by the mean log
density, in nats, of codes of held-out images. The picture shows samples from N(0, I) and samples from the run's own
mixture, some with the nearest training image below. A ratio measures copying: the distance of samples to their nearest
training images, divided by the same distance for reconstructions of held-out images. For copies it would be near zero.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from timing import write_json

from vaekit.images.dataset import open_source
from vaekit.maths.prior import draw_mixture, draw_normal
from vaekit.output.grid import grid, save_picture
from vaekit.training.device import to_device
from vaekit.training.holdout import STATISTICS_IMAGES, split_numbers
from vaekit.training.mixture import MAX_COMPONENTS
from vaekit.training.networks import reparameterise
from vaekit.training.run import Run, load_holdout, load_run

COMPONENTS = (1, 4, 16, 32, 64, 128)
COVARIANCES = ("full", "tied", "diag", "spherical")

_ITERATIONS = 40  # as in training
_SHOWN = 32
_BATCH = 500

Array = NDArray[np.float32]


def main() -> None:
    """Fit the mixtures, compare them and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("prior.png"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    run = load_run(options.run)
    images = open_source(run.config.source, size=run.config.image_shape[1:])
    training, _ = split_numbers(len(images), run.config.seed)
    pixels = images.read(training)
    held_out = load_holdout(run)
    codes, fresh = codes_of(run, pixels[:: -(-len(pixels) // STATISTICS_IMAGES)]), codes_of(run, held_out)
    fits = [judged(codes, fresh, kind, count) for kind in COVARIANCES for count in COMPONENTS]
    standard = float(np.mean(-0.5 * np.square(fresh).sum(1) - fresh.shape[1] / 2 * np.log(2 * np.pi)))
    for line in table(fits, standard):
        print(line)

    copying = draw(run, pixels, held_out, options.output)
    print(
        f"nearest training image, median root mean squared distance per pixel: samples {copying['samples']:.4f}, "
        f"reconstructions of held-out images {copying['reconstructions']:.4f}: x{copying['ratio']:.2f}"
    )
    write_json(options.json, {"standard_normal": standard, "fits": fits, "nearest": copying})


@torch.inference_mode()
def codes_of(run: Run, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Draw one z from q(z|x) for each image, (N, d)."""
    noise = torch.Generator().manual_seed(1)
    parts = []
    for first in range(0, len(pixels), _BATCH):
        mu, logvar = run.network.encoder(to_device(pixels[first : first + _BATCH], torch.device("cpu")))
        parts.append(reparameterise(mu, logvar, torch.randn(mu.shape, generator=noise)))
    return torch.cat(parts).numpy().astype(np.float64)


def judged(codes: NDArray[np.float64], fresh: NDArray[np.float64], kind: str, count: int) -> dict[str, Any]:
    """Fit a mixture; return its mean log density of held-out codes in nats, and the seconds taken."""
    started = time.monotonic()
    model = GaussianMixture(count, covariance_type=kind, max_iter=_ITERATIONS, random_state=0)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(codes)
    return {
        "covariance": kind,
        "components": count,
        "held_out_nats": float(model.score(fresh)),
        "training_nats": float(model.score(codes)),
        "seconds": time.monotonic() - started,
    }


def table(fits: list[dict[str, Any]], standard: float) -> list[str]:
    """Format held-out log densities in Markdown, with a row per type of covariance."""
    lines = [
        f"mean log density of held-out codes in nats (N(0, I): {standard:.2f}); vaekit fits {MAX_COMPONENTS}, full",
        "| covariance | " + " | ".join(f"{count} components" for count in COMPONENTS) + " |",
        "|---|" + "---|" * len(COMPONENTS),
    ]
    for kind in COVARIANCES:
        row = [f"{fit['held_out_nats']:.2f} ({fit['seconds']:.0f} s)" for fit in fits if fit["covariance"] == kind]
        lines.append(f"| {kind} | {' | '.join(row)} |")
    return lines


@torch.inference_mode()
def draw(run: Run, pixels: NDArray[np.uint8], held_out: NDArray[np.uint8], output: Path) -> dict[str, float]:
    """Write the picture; return the distances to the nearest training images."""
    assert run.mixture is not None
    decoder = run.network.decoder
    normal = decoder(torch.from_numpy(draw_normal(run.config.latent, _SHOWN))).numpy()
    samples = decoder(torch.from_numpy(draw_mixture(run.mixture, 4 * _SHOWN))).numpy()
    originals = to_device(held_out[: 4 * _SHOWN], torch.device("cpu"))
    reconstructions = decoder(run.network.encoder(originals)[0]).numpy()
    numbers, distances = nearest(samples, pixels)
    copies = pixels[numbers[:_SHOWN]].astype(np.float32) / np.float32(255)
    columns = _SHOWN // 2
    pairs = [part for at in (0, columns) for part in (samples[at : at + columns], copies[at : at + columns])]
    titles = ["N(0, I)", "", *["mixture", "nearest"] * 2]
    save_picture(grid(np.concatenate((normal, *pairs)), columns, row_titles=titles), output)
    usual = nearest(reconstructions, pixels)[1]
    found = {"samples": float(np.median(distances)), "reconstructions": float(np.median(usual))}
    return found | {"ratio": found["samples"] / found["reconstructions"]}


def nearest(images: Array, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the nearest training image of each image.

    Returns its number, and the root mean squared distance per pixel.
    """
    rows = images.reshape(len(images), -1)
    best, least = np.zeros(len(rows), np.int64), np.full(len(rows), np.inf)
    for first in range(0, len(pixels), _BATCH):
        block = pixels[first : first + _BATCH].reshape(-1, rows.shape[1]).astype(np.float32) / np.float32(255)
        squares = np.square(rows).sum(1)[:, None] - 2 * rows @ block.T + np.square(block).sum(1)
        closest = squares.argmin(1)
        found = squares[np.arange(len(rows)), closest]
        better = found < least
        best[better], least[better] = first + closest[better], found[better]
    return best, np.sqrt(np.maximum(least, 0) / rows.shape[1])


if __name__ == "__main__":
    main()
