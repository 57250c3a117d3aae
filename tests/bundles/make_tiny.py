"""Make tiny, the bundle that the edge's tests run: real 8 x 8 digits, through the real commands.

Needs the extra `train`. The bundle beside this file is of format 1 and stays as it is, as proof that such bundles are
read: see make_newest.py. This script made it, and shows how to make another like it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

HERE = Path(__file__).parent


def main() -> None:
    """Train for a minute at most, and export beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        digits, run = Path(folder, "digits.npy"), Path(folder, "run")
        np.save(digits, load_digits().images.astype(np.float32) / 16)
        vaekit = [sys.executable, "-m", "vaekit_cli"]
        train = ["train", str(digits), "-o", str(run), "--latent", "4", "--steps", "400", "--batch-size", "64"]
        subprocess.run([*vaekit, *train], check=True)
        subprocess.run([*vaekit, "export", str(run), "-o", str(HERE / "tiny")], check=True)


if __name__ == "__main__":
    main()
