"""Which score finds images of another kind, simple ones among them, that a likelihood rates as usual?

    python benchmarks/unusual_images.py [BUNDLE] [--count 2000] [--json FILE]

BUNDLE is a model of Fashion-MNIST, by default `demo`. Its official test images are the usual ones. A figure is the
AUROC: the probability that an unusual image scores higher than a usual one. Two likelihood ratios that vaekit does not
offer stand beside its scores: −ELBO plus log p of the image under one Gaussian for all pixels, and under a Gaussian for
each pixel (after Ren et al., "Likelihood Ratios for Out-of-Distribution Detection", 2019). Needs the extra `train` and
Fashion-MNIST.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from timing import write_json

import vaekit
from vaekit.diagnose.anomalies import available_scores
from vaekit.images.idx import read_idx
from vaekit.images.shapes import draw_shapes
from vaekit.images.source import find_dataset
from vaekit.types import Array

LEAST_STD = 0.05  # of a pixel's Gaussian

Score = Callable[[Array], Any]


def part(folder: Path, name: str, count: int) -> Array:
    """Return the first images of a part of Fashion-MNIST, float32 (count, 1, 28, 28)."""
    path = next(path for path in folder.iterdir() if path.name.startswith(f"{name}-images"))
    return read_idx(path)[:count, None].astype(np.float32) / np.float32(255)


def unusual(images: Array) -> dict[str, Array]:
    """Return images of other kinds by name, (n, 1, 28, 28) each."""
    rng = np.random.default_rng(0)
    n, grey = len(images), rng.random((len(images), 1, 1, 1), np.float32)
    even = np.ones_like(images)
    shapes = draw_shapes(n, images.shape[2:]).images.mean(axis=1, keepdims=True)
    return {
        "nearly black": even * grey * 0.05,
        "one grey each": even * grey,
        "a third as bright": images * np.float32(0.3),
        "upside down": images[:, :, ::-1].copy(),
        "inverted": 1 - images,
        "coloured shapes, in grey": shapes.astype(np.float32) / np.float32(255),
        "noise": rng.random(images.shape, np.float32),
    }


def ratio_to(mean: Any, std: Any, vae: vaekit.VAE) -> Score:
    """Return the score −ELBO + log p(x) under Gaussians with this mean and standard deviation."""

    def score(images: Array) -> Any:
        squares = np.square((images - mean) / std, dtype=np.float64)
        simple = (-0.5 * squares - np.log(std) - 0.5 * np.log(2 * np.pi)).reshape(len(images), -1).sum(axis=1)
        return vae.score(images) + simple

    return score


def main() -> None:
    """Score usual and unusual images, and print the AUROC of each score and kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("demo"))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    vae = vaekit.load(options.bundle, provider="cpu")
    folder = find_dataset("fashion-mnist")
    usual, training = part(folder, "t10k", options.count), part(folder, "train", 10_000)
    scores: dict[str, Score] = {name: functools.partial(vae.score, by=name) for name in available_scores(vae)}
    scores["ratio, all pixels"] = ratio_to(training.mean(), training.std(), vae)
    scores["ratio, each pixel"] = ratio_to(training.mean(axis=0), training.std(axis=0) + LEAST_STD, vae)
    of_usual = {name: score(usual) for name, score in scores.items()}
    found: dict[str, dict[str, float]] = {}
    print(f"{'':26}" + "".join(f"{name:>19}" for name in scores))
    for kind, images in unusual(usual).items():
        truth = np.repeat([0, 1], [len(usual), len(images)])
        found[kind] = {
            name: float(roc_auc_score(truth, np.concatenate([of_usual[name], score(images)])))
            for name, score in scores.items()
        }
        print(f"{kind:26}" + "".join(f"{auroc:19.3f}" for auroc in found[kind].values()))
    write_json(options.json, {"auroc": found})


if __name__ == "__main__":
    main()
