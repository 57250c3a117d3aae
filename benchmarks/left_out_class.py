"""Do scores detect a class that the model has never seen? Trains on Fashion-MNIST without one class, scores all ten.

    python benchmarks/left_out_class.py [--classes 5 8] [--steps 2400] [--json FILE]

For each class left out, a model is trained on the other classes and exported, and `vaekit score` scores the official
test part. The AUROC is the probability that an image of the left-out class scores higher than another image; 0.5 is
chance. The baseline, which needs no model, is the mean squared distance to the mean of the training images. Needs the
extra `train` and Fashion-MNIST. Takes about three minutes per class.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from timing import write_json

from vaekit.images.idx import read_idx
from vaekit.images.source import find_dataset

NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def main() -> None:
    """Train, export and score for each class, and print the AUROC."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[5, 8], help="class numbers from 0 to 9")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    folder = find_dataset("fashion-mnist")
    images, labels = part(folder, "train")
    test_images, test_labels = part(folder, "t10k")
    found = {}
    for left_out in options.classes:
        scores, flagged = scores_without(left_out, images, labels, test_images, options.steps)
        anomalous = test_labels == left_out
        mean = images[labels != left_out].mean(axis=0)
        distances = np.square(test_images - mean).mean(axis=(1, 2))
        found[NAMES[left_out]] = figures = {
            "auroc": float(roc_auc_score(anomalous, scores)),
            "auroc_of_distance_to_mean": float(roc_auc_score(anomalous, distances)),
            "flagged_above_p99": float(flagged[anomalous].mean()),
            "others_flagged_above_p99": float(flagged[~anomalous].mean()),
        }
        print(
            f"without {NAMES[left_out]}: AUROC {figures['auroc']:.3f} (distance to the mean image "
            f"{figures['auroc_of_distance_to_mean']:.3f}); above p99: {figures['flagged_above_p99']:.1%} of the "
            f"left-out class, {figures['others_flagged_above_p99']:.1%} of the others"
        )
    write_json(options.json, {"steps": options.steps, "classes": found})


def part(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read images (N, 28, 28) and labels (N,) of ``train`` or ``t10k``."""
    images, labels = (next(folder.glob(f"{name}-{kind}-*")) for kind in ("images", "labels"))
    return read_idx(images), read_idx(labels)


def scores_without(
    left_out: int,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    test_images: NDArray[np.uint8],
    steps: int,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Train without one class; return scores of the test images, and which are above p99."""
    with tempfile.TemporaryDirectory() as scratch:
        training, test = Path(scratch, "training.npy"), Path(scratch, "test.npy")
        np.save(training, images[labels != left_out])
        np.save(test, test_images)
        run, bundle, output = (str(Path(scratch, name)) for name in ("run", "bundle", "scores.jsonl"))
        vaekit("train", str(training), "-o", run, "--steps", str(steps))
        vaekit("export", run, "-o", bundle)
        vaekit("score", str(test), "-m", bundle, "--json", "--flag-above", "p99", "-o", output)
        rows = [json.loads(line) for line in Path(output).read_text(encoding="utf-8").splitlines()]
    return np.array([row["score"] for row in rows]), np.array([row["flagged"] for row in rows])


def vaekit(*arguments: str) -> None:
    """Run a `vaekit` command quietly."""
    subprocess.run([str(Path(sys.executable).with_name("vaekit")), *arguments, "--quiet"], check=True)


if __name__ == "__main__":
    main()
