"""How many samples of the built-in shapes are a clean disc, square or triangle, for each prior of a bundle?

    python benchmarks/clean_shapes.py BUNDLE [--count 4096] [--seeds 5] [--pictures FOLDER] [--json FILE]

BUNDLE is the export of a run of `vaekit train shapes`, best with a flow of `vaekit prior`. A classifier learns discs,
squares and triangles, and as a fourth class blends. Half of the blends are two shapes of the same place, size, rotation
and colours, mixed half and half, or nearly so; the others are decoded from the middle between the latents of two images
of different shapes. It learns from the VAE's reconstructions of drawn images, because samples have the VAE's softness
too, and its accuracy is measured on reconstructions that it has not seen. A sample is clean if the classifier is more
sure of one shape than of all else together. Beside the priors stand latents of real images, the best that a prior can
do. Needs the extra `train`. Takes about three minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import write_json
from torch import Tensor, nn

from vaekit.images.shapes import SHAPE_NAMES, draw_factors, render
from vaekit.output.grid import grid, save_picture
from vaekit.output.table import text_table
from vaekit.system.machine import usable_cpus
from vaekit.types import Array
from vaekit.vae import VAE, load

_TRAINING, _TEST, _STEPS, _BATCH = 32_000, 4_000, 1_500, 128
_SEED = 1  # of the drawn images: `vaekit train` draws seed 0
_BLEND = len(SHAPE_NAMES)
_SHOWN = 64
_FLOW_STEPS = (2, 8, 16)  # beside the bundle's own
_WEIGHTS = (0.35, 0.65)  # of one of the two shapes of a blend

Numbers = NDArray[np.int64]
Draw = Callable[[int, int], Array]
"""(number, seed) → images."""


def main() -> None:
    """Train the classifier, and count each prior's clean samples."""
    options = options_of()
    torch.set_num_threads(usable_cpus())
    torch.manual_seed(0)
    vae = load(options.bundle, provider="cpu")
    classifier = trained_classifier(*examples(vae, _TRAINING, 0))
    images, classes = examples(vae, _TEST, _TRAINING)
    found = probabilities(classifier, images).argmax(1)
    shares = ", ".join(
        f"{name} {np.mean(found[classes == number] == number):.1%}"
        for number, name in enumerate((*SHAPE_NAMES, "blend"))
    )
    print(f"the classifier is right about {np.mean(found == classes):.1%} of reconstructions: {shares}")
    rows = [["latents", f"clean of {_SHOWN}, seed 0", "clean, all seeds", *SHAPE_NAMES]]
    measured: dict[str, Any] = {"accuracy": float(np.mean(found == classes))}
    real = draw_factors(options.count, start=_TRAINING + _TEST, seed=_SEED)
    draws: dict[str, Draw] = {"of real images": partial(reconstructed, vae, real)}
    draws |= {prior: partial(drawn, vae, prior, None) for prior in vae.priors}
    if "flow" in vae.priors:
        draws |= {f"flow, {steps} steps": partial(drawn, vae, "flow", steps) for steps in _FLOW_STEPS}
    for name, images_of in draws.items():
        samples = [images_of(options.count, seed) for seed in range(options.seeds)]
        certain = [clean_shapes(classifier, each) for each in samples]
        first, every = int(np.sum(certain[0][:_SHOWN] >= 0)), np.concatenate(certain)
        each = [float(np.mean(every == number)) for number in range(_BLEND)]
        spread = [float(np.mean(part >= 0)) for part in certain]
        measured[name] = {"first": first, "clean": [float(np.mean(spread)), min(spread), max(spread)], "shapes": each}
        text = f"{np.mean(spread):.1%} ({min(spread):.1%} to {max(spread):.1%})"
        rows.append([name, str(first), text, *(f"{share:.1%}" for share in each)])
        if options.pictures is not None:
            options.pictures.mkdir(parents=True, exist_ok=True)
            marks = ["" if number >= 0 else "?" for number in certain[0][:_SHOWN]]
            save_picture(grid(samples[0][:_SHOWN], 8, captions=marks), options.pictures / f"{name}.png")
    print("\n".join(text_table(rows)))
    write_json(options.json, measured)


def options_of() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=Path, help="a folder for 64 samples of each prior, blends marked with ?")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def examples(vae: VAE, count: int, start: int) -> tuple[Array, Numbers]:
    """Return reconstructions of drawn images, two fifths of which are blends, and their classes."""
    factors = draw_factors(count, start=start, seed=_SEED)
    random = np.random.default_rng(start)
    classes = np.where(random.random(count) < 2 / 5, _BLEND, factors[:, 0].astype(np.int64))
    size = vae.image_shape[1:]
    images = render(factors, size) / np.float32(255)
    others = factors.copy()
    others[:, 0] = (factors[:, 0] + random.integers(1, _BLEND, count)) % _BLEND
    weights = random.uniform(*_WEIGHTS, (count, 1, 1, 1)).astype(np.float32)
    blends = weights * images + (1 - weights) * (render(others, size) / np.float32(255))
    chosen = np.where((classes == _BLEND)[:, None, None, None], blends, images)
    mu, _ = vae.encode(images)
    partner = random.permutation(count)
    between = (classes == _BLEND) & (factors[:, 0] != factors[partner, 0]) & (random.random(count) < 3 / 4)
    mu_of_chosen, _ = vae.encode(chosen)
    return vae.decode(np.where(between[:, None], (mu + mu[partner]) / 2, mu_of_chosen)), classes


def trained_classifier(images: Array, classes: Numbers) -> nn.Module:
    """Train a small convolutional network."""

    def stage(ins: int, outs: int) -> list[nn.Module]:
        return [nn.Conv2d(ins, outs, 3, padding=1), nn.BatchNorm2d(outs), nn.ReLU(), nn.MaxPool2d(2)]

    side = images.shape[2] // 8
    network = nn.Sequential(
        *(*stage(images.shape[1], 32), *stage(32, 64), *stage(64, 64), nn.Flatten()),
        *(nn.Linear(64 * side * side, 64), nn.ReLU(), nn.Linear(64, _BLEND + 1)),
    )
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=_STEPS)
    random = np.random.default_rng(0)
    for _ in range(_STEPS):
        rows = random.integers(len(images), size=_BATCH)
        loss = nn.functional.cross_entropy(network(torch.from_numpy(images[rows])), torch.from_numpy(classes[rows]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # in PyTorch's stubs
        optimiser.step()
        schedule.step()
    return network.eval()


def probabilities(network: nn.Module, images: Array) -> Array:
    """Return the classes' probabilities, (N, 4)."""
    with torch.inference_mode():
        parts: list[Tensor] = [network(part).softmax(1) for part in torch.split(torch.from_numpy(images), 500)]
    return np.concatenate([part.numpy() for part in parts])


def clean_shapes(network: nn.Module, images: Array) -> Numbers:
    """Return the number of each image's shape, or -1 if it is not clean, (N,)."""
    found = probabilities(network, images)
    best = found.argmax(1)
    return np.where((best < _BLEND) & (found.max(1) > 1 / 2), best, -1)


def drawn(vae: VAE, prior: str, steps: int | None, count: int, seed: int) -> Array:
    """Return samples of a prior."""
    return vae.sample(count, seed=seed, prior=prior, prior_steps=steps)


def reconstructed(vae: VAE, factors: NDArray[np.float64], count: int, seed: int) -> Array:
    """Return images decoded from z ~ q(z|x) of drawn images."""
    mu, logvar = vae.posterior(render(factors, vae.image_shape[1:])[:count] / np.float32(255))
    noise = np.random.default_rng(seed).standard_normal(mu.shape, np.float32)
    return vae.decode(mu + np.exp(logvar / 2) * noise)


if __name__ == "__main__":
    main()
