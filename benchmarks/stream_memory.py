"""Does the memory of `vaekit encode DIR` stay flat as the folder grows?

    python benchmarks/stream_memory.py [--model vae-onnx] [--counts 5000 50000] [--repeats 3] [--json FILE]

Encodes folders with each of --counts PNG files and samples the memory of all processes. Memory is the sum of their
proportional set sizes, so a shared page is counted once. Each peak is compared with the peak for the smallest count.
Aim: within 15 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from timing import ratio, show, write_json

from vaekit.bundle.reading import read_bundle

_SAMPLE_SECONDS = 0.02
_DISTINCT = 1000  # different pictures; all others are hard links to them


def main() -> None:
    """Measure each count and print the ratios of the peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("vae-onnx"))
    parser.add_argument("--counts", type=int, nargs="+", default=[5000, 50_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    shape = read_bundle(options.model).manifest.image.shape
    peaks: dict[int, list[float]] = {}
    rates: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in options.counts:
            folder = Path(scratch, str(count))
            write_pictures(folder, count, shape)
            runs = [encode(options.model, folder, Path(scratch, "latents.npz")) for _ in range(options.repeats)]
            peaks[count] = [peak for peak, _ in runs]
            rates[count] = count / statistics.median(seconds for _, seconds in runs)
            print(
                f"{count:,} files: peak {statistics.median(peaks[count]):.0f} MB "
                f"({min(peaks[count]):.0f} to {max(peaks[count]):.0f}), {rates[count]:,.0f} images/s"
            )
    least = min(peaks)
    ratios = {}
    for count in sorted(set(peaks) - {least}):
        ratios[str(count)] = ratio(peaks[count], peaks[least])
        show(f"peak at {count:,} / at {least:,}", ratios[str(count)], "<= 1.15")
    write_json(options.json, {"peaks_mb": peaks, "images_per_second": rates, "ratios": ratios})


def write_pictures(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """Write a folder of noise PNG files; after the first thousand, hard links to them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    channels, height, width = shape
    for number in range(count):
        path = folder / f"{number:07d}.png"
        if number >= _DISTINCT:
            path.hardlink_to(folder / f"{number % _DISTINCT:07d}.png")
            continue
        size = (height, width) if channels == 1 else (height, width, channels)
        Image.fromarray(random.integers(0, 256, size, np.uint8)).save(path)


def encode(model: Path, folder: Path, output: Path) -> tuple[float, float]:
    """Encode a folder; return the peak memory of all processes in MB, and the seconds."""
    script = Path(sys.executable).with_name("vaekit")
    started = time.perf_counter()
    command = [str(script), "encode", str(folder), "-m", str(model), "-o", str(output), "--quiet"]
    return peak_memory(command, _SAMPLE_SECONDS), time.perf_counter() - started


def peak_memory(command: list[str], sample_seconds: float) -> float:
    """Run a command; return the peak memory of its processes in MB.

    Memory is sampled every ``sample_seconds``.
    """
    process = psutil.Popen(command)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, tree_memory(process))
        time.sleep(sample_seconds)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return peak / 1e6


def tree_memory(process: psutil.Process) -> float:
    """Return the bytes used by a process and all its descendants."""
    total = 0.0
    with suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += one.memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
