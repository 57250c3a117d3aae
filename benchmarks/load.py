"""Does a process that decodes and encodes a hundred thousand times grow?

    python benchmarks/load.py [--model demo] [--calls 100000] [--threads 8] [--seed 0] [--json FILE]

One VAE decodes batches of 1 to 64 latents, in random order, and encodes every tenth result; its sessions have one
thread each. The first twentieth of the calls is a warm-up, in which each size is seen and the allocators take what they
keep. From then on the resident memory is read a hundred times. It has grown if its median over the last fifth is more
than a megabyte above that over the first fifth; the exit code is then 1. The same is done once more from several
threads at a time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from timing import write_json

import vaekit
from vaekit.types import Array

LARGEST_BATCH = 64
READINGS = 100
MOST_GROWTH_BYTES = 1 << 20


def resident_bytes() -> int:
    """Return this process's resident memory. Linux only."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return 1024 * int(line.split()[1])


def use(vae: vaekit.VAE, codes: Array, call: int, size: int) -> None:
    """Decode ``size`` latents, and at every tenth call encode the images."""
    images = vae.decode(codes[:size])
    if call % 10 == 0:
        vae.encode(images)


def grown(readings: Sequence[int]) -> int:
    """Return by how many bytes the last fifth is above the first."""
    fifth = len(readings) // 5
    return round(statistics.median(readings[-fifth:]) - statistics.median(readings[:fifth]))


def measure(model: str, calls: int, threads: int, seed: int) -> list[int]:
    """Make the calls from several threads, and return the readings."""
    vae = vaekit.load(model, provider="cpu", threads=1, batch_size=LARGEST_BATCH)
    numbers = np.random.default_rng(seed)
    codes = numbers.standard_normal((LARGEST_BATCH, *vae.latent_shape)).astype(np.float32)
    sizes = numbers.integers(1, LARGEST_BATCH + 1, calls)
    sizes[:LARGEST_BATCH] = np.arange(1, LARGEST_BATCH + 1)
    parts = np.array_split(np.arange(calls), READINGS + READINGS // 20)
    readings = []
    with ThreadPoolExecutor(threads) as pool:
        for part in parts:
            list(pool.map(lambda call: use(vae, codes, int(call), int(sizes[call])), part))
            readings.append(resident_bytes())
    return readings[-READINGS:]


def main() -> None:
    """Measure with one thread and with several; exit with 1 if memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for threads in (1, options.threads):
        readings = measure(options.model, options.calls, threads, options.seed)
        growth = grown(readings)
        results[f"{threads} threads"] = {"calls": options.calls, "readings": readings, "growth": growth}
        print(
            f"{options.calls:,} calls from {threads} threads: {min(readings) / 1e6:.1f} to {max(readings) / 1e6:.1f} "
            f"MB, growth {growth / 1e6:+.2f} MB",
            flush=True,
        )
    write_json(options.json, results)
    if any(result["growth"] > MOST_GROWTH_BYTES for result in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
