"""How long does the process `vaekit sample -n 64 -o grid.png` take, compared with scripts without vaekit?

    python benchmarks/cold_start.py [--run vae] [--model vae-onnx] [--learned vae-flow-onnx] [--rounds 15] [--json FILE]

The bare script uses only numpy, onnxruntime and pillow; PyTorch's script uses torch, safetensors and pillow. Each draws
64 latents from the same mixture prior, decodes them and writes the same grid. With a bundle whose prior was learned
(`vaekit prior --kind flow`), another bare script integrates the same flow. `vaekit --help` is compared with the import
of typer alone. PyTorch's script is skipped if PyTorch or the run is missing, and the flow's if its bundle is. Aims: at
most 1.25 times the bare script, at most a quarter of PyTorch's, and `--help` at most 1.5 times the import.

Python may keep compiled modules in all processes, as it does after `pip install`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from timing import ratio, show, write_json

DRAW = """
prior = json.load(open(f"{model}/manifest.json"))["prior"]
mixture = prior["mixture"]
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

FLOW = """
flow, session = prior["flow"], onnxruntime.InferenceSession(f"{model}/prior.onnx", providers=["CPUExecutionProvider"])
mean, std = np.array(flow["mean"], np.float32), np.array(flow["std"], np.float32)
feeds = {}
if "label_weights" in flow:
    labels = np.array(mixture["labels"])[component]
    feeds["label"] = np.eye(len(flow["label_weights"]), dtype=np.float32)[labels]
steps, z = flow["steps"], (z - mean) / std
for step in range(steps):
    here, after = (np.full(64, share / steps, np.float32) for share in (step, step + 1))
    (a,) = session.run(["velocity"], {"z": z, "t": here, **feeds})
    (b,) = session.run(["velocity"], {"z": z + np.float32(1 / steps) * a, "t": after, **feeds})
    z = z + np.float32(0.5 / steps) * (a + b)
z = mean + std * z
"""

BARE_FLOW = BARE.replace("session =", f"{FLOW}\nsession =", 1)

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
    parser.add_argument("--learned", type=Path, default=Path("vae-flow-onnx"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        grid = str(Path(folder, "grid.png"))
        script = Path(sys.executable).with_name("vaekit")
        commands = {
            "vaekit": [str(script), "sample", "-m", str(options.model), "-n", "64", "-o", grid, "--quiet"],
            "bare": [sys.executable, "-c", BARE, str(options.model), grid],
            "vaekit --help": [str(script), "--help"],
            "import typer": [sys.executable, "-c", "import typer"],
        }
        if options.learned.is_dir():
            arguments = ["-m", str(options.learned), "-n", "64", "-o", grid, "--quiet"]
            commands["vaekit, a flow"] = [str(script), "sample", *arguments]
            commands["bare, a flow"] = [sys.executable, "-c", BARE_FLOW, str(options.learned), grid]
        else:
            print(f"skipped the learned prior: there is no bundle {options.learned}")
        if find_spec("torch") and options.run.is_dir():
            commands["torch"] = [sys.executable, "-c", TORCH, str(options.model), grid, str(options.run)]
        else:
            print("skipped PyTorch's script: torch is not installed, or there is no run")
        seconds = time_in_turn(commands, options.rounds)

    for name, times in seconds.items():
        print(f"{name}: median {statistics.median(times):.3f} s of {len(times)} processes")
    pairs = {
        "vaekit / bare script": ("vaekit", "bare", "<= 1.25"),
        "vaekit / PyTorch's script": ("vaekit", "torch", "<= 0.25"),
        "vaekit / bare script, a flow": ("vaekit, a flow", "bare, a flow", "<= 1.25"),
        "vaekit --help / import typer": ("vaekit --help", "import typer", "<= 1.5"),
    }
    ratios = {}
    for what, (ours, theirs, aim) in pairs.items():
        if ours in seconds and theirs in seconds:
            ratios[what] = ratio(seconds[ours], seconds[theirs])
            show(what, ratios[what], aim)
    write_json(options.json, {"seconds": seconds, "ratios": ratios})


def time_in_turn(commands: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Return the wall time of each command in each round, in seconds, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for number in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
