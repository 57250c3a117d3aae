"""How long does `vaekit encode` take over many pictures, compared with the scripts that people write?

    python benchmarks/bulk_encode.py [--model vae-onnx] [--small 20000] [--photographs 2000] [--rounds 5] [--json FILE]

Writes small PNG files of coloured shapes, of the model's own size, and JPEG files of 1280x960 that look like blurred
noise. Whole commands take turns:

- `vaekit encode`;
- a loop that opens each picture with Pillow, crops and resizes it, and encodes batches of 64;
- PyTorch's DataLoader with as many workers as there are processors, which does the same to each picture, and the same
  session.

The bound is what these processors could do at most if decoding and the model shared them perfectly: 1 / (1 / the rate
of decoding alone, with a process for each processor, + 1 / the model's rate alone, with all threads). It has no start,
so the time to start, measured with one picture, is added to it. Aims: at least 1.6 times the loop, 0.9 of the bound,
and no slower than the DataLoader. Peak memory is that of all processes together.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from stream_memory import peak_memory
from timing import ratio, show, write_json

import vaekit
from vaekit.images.dataset import open_source
from vaekit.images.picture import read_image
from vaekit.output.grid import save_images
from vaekit.system.machine import usable_cpus

PHOTOGRAPH = 1280, 960
BATCH = 64
SAMPLE_SECONDS = 0.02

READ = """
import sys
import numpy as np
from pathlib import Path
from PIL import Image, ImageOps

def read(path, size, mode):
    with Image.open(path) as picture:
        picture = ImageOps.exif_transpose(picture).convert(mode)
    if picture.size != size:
        picture = ImageOps.fit(picture, size, Image.Resampling.BICUBIC)
    pixels = np.asarray(picture, np.float32) / 255
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
"""

ENCODE = """
import onnxruntime
model, folder, output = sys.argv[1:4]
session = onnxruntime.InferenceSession(f"{model}/encoder.onnx", providers=["CPUExecutionProvider"])
_, channels, height, width = session.get_inputs()[0].shape
size, mode = (width, height), "L" if channels == 1 else "RGB"
paths = sorted(Path(folder).iterdir())
parts = []
"""

LOOP = f"""{READ}{ENCODE}
for first in range(0, len(paths), {BATCH}):
    images = np.stack([read(path, size, mode) for path in paths[first : first + {BATCH}]])
    parts.append(session.run(None, {{"image": images}}))
mu, logvar = (np.concatenate(part) for part in zip(*parts))
np.savez(output, mu=mu, logvar=logvar, paths=[str(path) for path in paths])
"""

LOADER = f"""{READ}
import torch
from torch.utils.data import DataLoader, Dataset

class Pictures(Dataset):
    def __init__(self, paths, size, mode):
        self.paths, self.size, self.mode = paths, size, mode

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, number):
        return torch.from_numpy(read(self.paths[number], self.size, self.mode))
{ENCODE}
torch.set_num_threads(1)
for images in DataLoader(Pictures(paths, size, mode), {BATCH}, num_workers={usable_cpus()}):
    parts.append(session.run(None, {{"image": images.numpy()}}))
mu, logvar = (np.concatenate(part) for part in zip(*parts))
np.savez(output, mu=mu, logvar=logvar, paths=[str(path) for path in paths])
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures, time the commands in turn, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("vae-onnx"))
    parser.add_argument("--small", type=int, default=20_000)
    parser.add_argument("--photographs", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        small, photographs = Path(scratch, "small"), Path(scratch, "photographs")
        _, height, width = vaekit.load(options.model).image_shape
        if options.small:
            write_small(small, options.small, (height, width))
            results["small"] = compare(options.model, small, options.rounds)
        if options.photographs:
            write_photographs(photographs, options.photographs)
            results["photographs"] = compare(options.model, photographs, options.rounds)
    write_json(options.json, results)


def write_small(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write pictures of coloured shapes."""
    shapes = open_source("shapes", size=size)
    batches = (
        shapes.read(np.arange(first, min(first + 500, count))) / np.float32(255) for first in range(0, count, 500)
    )
    save_images(batches, count, folder)


def write_photographs(folder: Path, count: int) -> None:
    """Write pictures with detail at several scales, about as large as a photograph's file."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        picture = np.zeros((PHOTOGRAPH[1], PHOTOGRAPH[0], 3), np.float32)
        for cells, weight in ((4, 0.5), (32, 0.3), (256, 0.2)):
            coarse = Image.fromarray(random.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8))
            picture += weight * np.asarray(coarse.resize(PHOTOGRAPH, Image.Resampling.BILINEAR), np.float32)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number:06}.jpg", quality=90)


def compare(model: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Time the ways over a folder, and print them."""
    count = len(list(folder.iterdir()))
    print(f"{count:,} pictures in {folder.name}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        script = str(Path(sys.executable).with_name("vaekit"))
        single = Path(scratch, "single")
        single.mkdir()
        first = min(folder.iterdir())
        (single / first.name).write_bytes(first.read_bytes())
        output = str(Path(scratch, "out.npz"))
        commands = {
            "vaekit": [script, "encode", str(folder), "-m", str(model), "-o", output, "-q"],
            "start": [script, "encode", str(single), "-m", str(model), "-o", output, "-q"],
            "loop": [sys.executable, "-c", LOOP, str(model), str(folder), output],
        }
        if find_spec("torch"):
            loader = Path(scratch, "loader.py")
            loader.write_text(LOADER)
            commands["loader"] = [sys.executable, str(loader), str(model), str(folder), output]
        seconds: dict[str, list[float]] = {name: [] for name in [*commands, "bound"]}
        for _ in range(rounds):
            for name, command in commands.items():
                seconds[name].append(timed(lambda command=command: subprocess.run(command, check=True)))  # type: ignore[misc]
            alone = decoding_alone(folder, model) + model_alone(model, count)
            seconds["bound"].append(seconds["start"][-1] + alone)
        memory = peak_memory(commands["vaekit"], SAMPLE_SECONDS)
    ratios = {}
    for other, aim in (("loop", ">= 1.6"), ("bound", ">= 0.9"), ("loader", ">= 1")):
        if other in seconds:
            ratios[other] = ratio(seconds[other], seconds["vaekit"])
            show(f"vaekit's rate relative to the {other}", ratios[other], aim)
    for name, times in seconds.items():
        print(f"    {name}: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")
    print(f"    peak memory of vaekit: {memory:.0f} MB", flush=True)
    return {"seconds": seconds, "ratios": ratios, "peak_mb": memory}


def timed(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def decoding_alone(folder: Path, model: Path) -> float:
    """Return how long it takes to decode and resize all pictures, with a process for each processor."""
    channels, height, width = vaekit.load(model).image_shape
    paths = [str(path) for path in sorted(folder.iterdir())]
    pieces = [(paths[first : first + BATCH], channels, height, width) for first in range(0, len(paths), BATCH)]
    with multiprocessing.get_context("spawn").Pool(usable_cpus()) as pool:
        pool.map(decode, [(piece[0][:1], *piece[1:]) for piece in pieces[: 4 * usable_cpus()]])  # imports
        return timed(lambda: pool.map(decode, pieces, chunksize=1))


def decode(piece: tuple[list[str], int, int, int]) -> None:
    """Decode and resize pictures as vaekit does. This runs in a worker process."""
    paths, channels, height, width = piece
    for path in paths:
        read_image(path, channels, (height, width))


def model_alone(model: Path, count: int) -> float:
    """Return how long the encoder takes for that many images, with all threads."""
    vae = vaekit.load(model, provider="cpu")
    images = np.random.default_rng(0).random((BATCH, *vae.image_shape), np.float32)
    vae.encode(images)
    return timed(lambda: [vae.encode(images) for _ in range(-(-count // BATCH))])


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    main()
