"""Does the memory of `vaekit train DIR` stay flat as the folder grows?

    python benchmarks/train_memory.py [--counts 20000 200000] [--steps 200] [--repeats 1] [--json FILE]

Trains on folders with each of --counts PNG files. The available memory is faked to be zero, so that pictures are read
during training instead of being kept in memory. The memory of all processes is sampled as in stream_memory.py. Each
peak is compared with the peak for the smallest count. Aim: within 15 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from stream_memory import peak_memory, write_pictures
from timing import ratio, show, write_json

_SAMPLE_SECONDS = 0.05
_SHAPE = (3, 32, 32)
_SHORT_OF_MEMORY = """
import vaekit.images.dataset
from vaekit_cli.main import main
vaekit.images.dataset.available_memory = lambda: 0
main()
"""


def main() -> None:
    """Measure each count and print the ratios of the peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    peaks: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in options.counts:
            folder = Path(scratch, str(count))
            write_pictures(folder, count, _SHAPE)
            peaks[count] = [train(folder, Path(scratch, "run"), options.steps) for _ in range(options.repeats)]
            print(f"{count:,} files: peak {statistics.median(peaks[count]):.0f} MB", flush=True)
    least = min(peaks)
    ratios = {}
    for count in sorted(set(peaks) - {least}):
        ratios[str(count)] = ratio(peaks[count], peaks[least])
        show(f"peak at {count:,} / at {least:,}", ratios[str(count)], "<= 1.15")
    write_json(options.json, {"peaks_mb": peaks, "ratios": ratios})


def train(folder: Path, run: Path, steps: int) -> float:
    """Train on a folder; return the peak memory of all processes in MB."""
    options = ["--steps", str(steps), "--device", "cpu", "-o", str(run), "--overwrite", "--quiet"]
    command = [sys.executable, "-c", _SHORT_OF_MEMORY, "train", str(folder), *options]
    return peak_memory(command, _SAMPLE_SECONDS)


if __name__ == "__main__":
    main()
