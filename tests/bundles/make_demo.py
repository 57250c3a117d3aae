"""Make vaekit/demo, the bundle that comes with vaekit: `python tests/bundles/make_demo.py` (four minutes on two cores).

It is trained on Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017; MIT licence), which vaekit must find: see `vaekit train
fashion-mnist`. On one kind of processor, the same versions give the same bytes.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = Path(__file__).parents[2] / "vaekit" / "demo"
COMMANDS = (
    ("train", "fashion-mnist", "--preset", "tiny", "--latent", "10", "--steps", "12000", "-o", "run"),
    ("export", "run", "-o", "bundle"),
    ("compress", "bundle", "--int8", "--weights-only", "--seconds", "0", "-o", str(TARGET)),
)


def main() -> None:
    """Train, export and compress."""
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            subprocess.run([sys.executable, "-m", "vaekit_cli", *command], cwd=folder, check=True)


if __name__ == "__main__":
    main()
