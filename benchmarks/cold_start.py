"""How long does the process `vaekit sample -n 64 -o grid.png` take, compared with scripts without vaekit?

    python benchmarks/cold_start.py [--run vae] [--model vae-onnx] [--rounds 15] [--json FILE]

The bare script uses only numpy, onnxruntime and pillow; PyTorch's script uses torch, safetensors and pillow. Each draws
64 latents from the same mixture prior, decodes them and writes the same grid. PyTorch's script is skipped if PyTorch or
the run is missing. Aims: at most 1.25 times the bare script, and at most a quarter of PyTorch's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from timing import ratio, show, write_json

DRAW = """
mixture = json.load(open(f"{model}/manifest.json"))["prior"]["mixture"]
weights, means, cholesky = (np.array(mixture[key]) for key in ("weights", "means", "cholesky"))
random = np.random.default_rng(0)
component = random.choice(len(weights), 64, p=weights)
eps = random.standard_normal((64, means.shape[1]))
z = (means[component] + np.einsum("nij,nj->ni", cholesky[component], eps)).astype(np.float32)
"""

WRITE = """
pixels = np.rint(images.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
factor = max(1, 64 // max(pixels.shape[1:3]))
pixels = pixels.repeat(factor, 1).repeat(factor, 2)
high, wide = pixels.shape[1] + 2, pixels.shape[2] + 2
canvas = np.full((8 * high + 2, 8 * wide + 2, 3), 255, np.uint8)
for k in range(64):
    top, left = 2 + k // 8 * high, 2 + k % 8 * wide
    canvas[top : top + high - 2, left : left + wide - 2] = pixels[k]
Image.fromarray(canvas).save(output)
"""

BARE = f"""
import json, sys
import numpy as np, onnxruntime
from PIL import Image
model, output = sys.argv[1:3]
{DRAW}
session = onnxruntime.InferenceSession(f"{{model}}/decoder.onnx", providers=["CPUExecutionProvider"])
(images,) = session.run(["image"], {{"z": z}})
{WRITE}
"""

TORCH = f"""
import json, sys
import numpy as np, torch
from pathlib import Path
from PIL import Image
from vaekit.training.run import load_run
model, output, run = sys.argv[1:4]
{DRAW}
with torch.inference_mode():
    images = load_run(Path(run)).network.decoder(torch.from_numpy(z)).numpy()
{WRITE}
"""


def main() -> None:
    """Time the processes in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("vae"))
    parser.add_argument("--model", type=Path, default=Path("vae-onnx"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        grid = str(Path(folder, "grid.png"))
        script = Path(sys.executable).with_name("vaekit")
        commands = {
            "vaekit": [str(script), "sample", "-m", str(options.model), "-n", "64", "-o", grid, "--quiet"],
            "bare": [sys.executable, "-c", BARE, str(options.model), grid],
        }
        if find_spec("torch") and options.run.is_dir():
            commands["torch"] = [sys.executable, "-c", TORCH, str(options.model), grid, str(options.run)]
        else:
            print("skipped PyTorch's script: torch is not installed, or there is no run")
        seconds = time_in_turn(commands, options.rounds)

    for name, times in seconds.items():
        print(f"{name}: median {statistics.median(times):.3f} s of {len(times)} processes")
    ratios = {"bare": ratio(seconds["vaekit"], seconds["bare"])}
    show("vaekit / bare script", ratios["bare"], "<= 1.25")
    if "torch" in seconds:
        ratios["torch"] = ratio(seconds["vaekit"], seconds["torch"])
        show("vaekit / PyTorch's script", ratios["torch"], "<= 0.25")
    write_json(options.json, {"seconds": seconds, "ratios": ratios})


def time_in_turn(commands: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Return the wall time of each command in each round, in seconds, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
