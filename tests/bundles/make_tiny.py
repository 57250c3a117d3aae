"""Make the bundle tiny for the edge's tests, from real 8 x 8 digits and with the real commands.

Needs the extra `train`. The bundle beside this file has format 1 and must not change, because it proves that such
bundles can be read (see make_newest.py). This script documents how it was made.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

HERE = Path(__file__).parent


def main() -> None:
    """Train for at most a minute, and export beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        digits, run = Path(folder, "digits.npy"), Path(folder, "run")
        np.save(digits, load_digits().images.astype(np.float32) / 16)
        vaekit = [sys.executable, "-m", "vaekit_cli"]
        train = ["train", str(digits), "-o", str(run), "--latent", "4", "--steps", "400", "--batch-size", "64"]
        subprocess.run([*vaekit, *train], check=True)
        subprocess.run([*vaekit, "export", str(run), "-o", str(HERE / "tiny")], check=True)


if __name__ == "__main__":
    main()
