"""What does each term of the loss do to the latent space? Compares reconstruction only, KL only, and both.

    python benchmarks/three_objectives.py [--steps 1600] [-o objectives.png] [--json FILE]

Three models with d = 2 are trained on Fashion-MNIST with `--objective autoencoder`, `prior-only` and `elbo`. The top
row shows codes drawn from q(z|x) for 3,000 test images, coloured by class; the bottom row shows the decoded plane. The
first latent space has holes without any images, and extends far beyond N(0, I). In the second, every image has the same
posterior N(0, I), so images cannot be distinguished. The third is smooth. A number measures how well codes separate the
classes: the share of images whose nearest other code has the same class. Needs the extras `train` and `plot`. Takes
less than five minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from timing import write_json

import vaekit
from vaekit.images.idx import read_idx
from vaekit.images.source import CLASS_NAMES, find_dataset
from vaekit.output.plots import Projection, decoded_plane, legend, new_figure, save_figure, scatter

PANELS = {
    "autoencoder": "reconstruction only",
    "prior-only": "KL only",
    "elbo": "both: the ELBO",
}

_IMAGES = 3000


def main() -> None:
    """Train the three models and draw them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("-o", "--output", type=Path, default=Path("objectives.png"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    folder = find_dataset("fashion-mnist")
    images, labels = (read_idx(next(folder.glob(f"t10k-{kind}-*")))[:_IMAGES] for kind in ("images", "labels"))
    names = [CLASS_NAMES["fashion-mnist"][label] for label in labels]
    figure = new_figure(15.0, 9.8)
    found: dict[str, Any] = {}
    for number, (objective, title) in enumerate(PANELS.items()):
        with tempfile.TemporaryDirectory() as scratch:
            vae = trained(objective, options.steps, Path(scratch))
            codes = draws(vae, images)
            above, below = figure.add_subplot(2, 3, number + 1), figure.add_subplot(2, 3, number + 4)
            same = same_class(codes, labels)
            found[objective] = {"nearest_has_same_class": same, "standard_deviation": codes.std(0).tolist()}
            panel(above, below, vae, codes, names, f"{title}\nnearest code of the same class: {same:.0%}")
            print(
                f"{objective}: nearest code has the same class for {same:.1%}; codes spread {codes.std(0)}", flush=True
            )
    legend(above)
    save_figure(figure, options.output)
    write_json(options.json, {"steps": options.steps, "objectives": found})


def trained(objective: str, steps: int, scratch: Path) -> vaekit.VAE:
    """Train a model with two latent dimensions and this objective."""
    run, bundle = str(scratch / "run"), str(scratch / "bundle")
    command = str(Path(sys.executable).with_name("vaekit"))
    settings = ("--latent", "2", "--objective", objective, "--steps", str(steps), "-o", run, "--quiet")
    subprocess.run([command, "train", "fashion-mnist", *settings], check=True)
    subprocess.run([command, "export", run, "-o", bundle, "--quiet"], check=True)
    vae = vaekit.load(bundle)
    vae.decode(np.zeros((1, 2), np.float32))  # opens the graph before the folder is removed
    return vae


def draws(vae: vaekit.VAE, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Draw z from q(z|x) for each image, (N, 2)."""
    mu, logvar = vae.encode(images[:, None].astype(np.float32) / 255)
    assert logvar is not None
    eps = np.random.default_rng(0).standard_normal(mu.shape, np.float32)
    z: NDArray[np.float32] = mu + np.exp(0.5 * logvar) * eps
    return z


def same_class(codes: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    """Return the share of codes whose nearest other code has the same class."""
    _, numbers = NearestNeighbors(n_neighbors=2).fit(codes).kneighbors(codes)
    return float((labels[numbers[:, 1]] == labels).mean())


def panel(above: Axes, below: Axes, vae: vaekit.VAE, codes: NDArray[np.float32], names: list[str], title: str) -> None:
    """Draw one model: its codes above, and the decoded plane of the same extent below."""
    reach = max(3.0, float(np.quantile(np.abs(codes), 0.995)))
    scatter(above, Projection(codes.astype(np.float64), ("z0", "z1")), names)
    above.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach))
    above.set_aspect("equal", adjustable="box")
    decoded_plane(below, vae.decode, reach)


if __name__ == "__main__":
    main()
