"""Drop pictures into a folder that `vaekit score --watch` watches, and check that each is scored, with flat memory.

    python benchmarks/watch.py BUNDLE --count 1000

Every tenth picture is written in two steps with a pause between them, and every 97th is truncated. After half of the
pictures the process is killed with SIGKILL and started again. At the end each picture must have a line: a score, or an
error if it cannot be read.
Needs psutil.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from vaekit.vae import load

HALVES, BAD = 10, 97


def encoded(bundle: Path) -> list[bytes]:
    """Return sixteen pictures of the bundle's size, as PNG."""
    images = (load(bundle, provider="cpu").sample(16, seed=0) * 255).round().astype(np.uint8)
    found = []
    for image in images:
        file = BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "PNG")
        found.append(file.getvalue())
    return found


def drop(path: Path, number: int, contents: bytes) -> None:
    """Write a picture as a camera would, or a slow one, or a broken one."""
    if number % BAD == BAD - 1:
        path.write_bytes(contents[: len(contents) // 2])
    elif number % HALVES == HALVES - 1:
        with open(path, "wb") as file:
            file.write(contents[: len(contents) // 2])
            file.flush()
            time.sleep(0.02)
            file.write(contents[len(contents) // 2 :])
    else:
        path.write_bytes(contents)


def start(bundle: Path, folder: Path, record: Path) -> psutil.Popen:
    """Start the watch."""
    script = Path(sys.executable).with_name("vaekit")
    return psutil.Popen([script, "score", "--watch", folder, "-m", bundle, "-o", record, "--threads", "1", "-q"])


def lines(record: Path) -> int:
    """Count the record's lines."""
    return record.read_bytes().count(b"\n") if record.exists() else 0


def wait_for(record: Path, count: int) -> None:
    """Wait until the record has that many lines."""
    while lines(record) < count:
        time.sleep(0.2)


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--ahead", type=int, default=500, help="wait while more pictures than this have no line yet")
    chosen = parser.parse_args()
    pictures = encoded(chosen.bundle)
    memory: list[int] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder, record = Path(temporary, "in"), Path(temporary, "scores.jsonl")
        folder.mkdir()
        watch = start(chosen.bundle, folder, record)
        began = time.monotonic()
        for number in range(chosen.count):
            if number == chosen.count // 2:
                watch.send_signal(signal.SIGKILL)
                watch.wait()
                watch = start(chosen.bundle, folder, record)
            drop(folder / f"{number:06}.png", number, pictures[number % len(pictures)])
            if number % (chosen.ahead // 5) == 0:
                while number - lines(record) > chosen.ahead + number // BAD:
                    time.sleep(0.1)
            if number % max(1, chosen.count // 20) == 0:
                memory.append(watch.memory_info().rss)
        wait_for(record, chosen.count)
        seconds = time.monotonic() - began
        memory.append(watch.memory_info().rss)
        watch.terminate()
        code = watch.wait()
        rows = [json.loads(line) for line in record.read_bytes().splitlines()]
    report(rows, chosen.count, seconds, memory, code)


def report(rows: list[dict[str, object]], count: int, seconds: float, memory: list[int], code: int) -> None:
    """Check the lines, and print the figures."""
    last = {Path(str(row["path"])).stem: row for row in rows}
    wrong = [
        number
        for number in range(count)
        if ("error" in last.get(f"{number:06}", {})) is not (number % BAD == BAD - 1) or f"{number:06}" not in last
    ]
    more = sum(times - 1 for times in Counter(row["path"] for row in rows).values())
    delays = [
        datetime.fromisoformat(str(row["time"])).timestamp() - int(str(row["modified_ns"])) / 1e9
        for row in rows
        if "error" not in row
    ]
    print(f"{count:,} pictures in {seconds:.1f} s, {count / seconds:.0f}/s; exit code {code}")
    print(f"wrong or missing: {len(wrong)} {wrong[:5]}; scored twice: {more}")
    print(f"seconds from written to scored: median {statistics.median(delays):.3f}, most {max(delays):.1f}")
    print("MiB of memory along the way:", *(f"{each / 2**20:.0f}" for each in memory))
    if wrong or code:
        sys.exit(1)


if __name__ == "__main__":
    main()
