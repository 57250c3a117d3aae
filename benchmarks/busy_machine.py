"""Does `vaekit train` keep its time limit beside other work, and how should its threads wait?

    python benchmarks/busy_machine.py [--source fashion-mnist] [--minutes 3] [--steps 300] [--repeats 1]
                                      [--policies-only | --limits-only] [--json FILE]

Two tables. The first trains with `--max-minutes` on an idle machine, beside a busy loop, and beside a busy loop that
stops after twenty seconds: seconds taken, processor seconds obtained, steps done, and the held-out ELBO. Aim: at least
0.8 x the steps that the obtained processor seconds allow at the idle run's rate, and an end between 0.9 and 1.03 of the
time. The second trains `--steps` steps under each policy of waiting threads, idle and beside a busy loop, interleaved.

The machine must have nothing else to do. The first table takes about ten minutes, the second as long for each repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timing import write_json

from vaekit.output.table import text_table
from vaekit.training.config import load_config
from vaekit.training.run import METRICS

BUSY_SECONDS = {"idle": 0.0, "busy": float("inf"), "busy at first": 20.0}
"""How long a busy loop runs beside each training."""
POLICIES: dict[str, dict[str, str]] = {
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "30,000 spins": {"GOMP_SPINCOUNT": "30000"},
    "1,000 spins (vaekit)": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
_OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def main() -> None:
    """Measure what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="fashion-mnist")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=1)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--policies-only", action="store_true")
    only.add_argument("--limits-only", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    found: dict[str, Any] = {}
    if not options.policies_only:
        found["limits"] = limits(options.source, options.minutes, options.repeats)
        show_limits(found["limits"], options.minutes)
    if not options.limits_only:
        found["policies"] = policies(options.source, options.steps, options.repeats)
        show_policies(found["policies"], options.steps)
    write_json(options.json, found)


def limits(source: str, minutes: float, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Train under a time limit in each situation."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in BUSY_SECONDS}
    for _ in range(repeats):
        for name, seconds in BUSY_SECONDS.items():
            with busy_loop(seconds):
                found[name].append(train(source, ("--max-minutes", str(minutes)), {}))
    return found


def policies(source: str, steps: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Train under each policy, idle and beside a busy loop; the seconds that each whole command took."""
    found: dict[str, dict[str, list[float]]] = {name: {"idle": [], "busy": []} for name in POLICIES}
    for _ in range(repeats):
        for situation in ("idle", "busy"):
            for name, environment in POLICIES.items():
                with busy_loop(BUSY_SECONDS[situation]):
                    figures = train(source, ("--steps", str(steps)), environment)
                found[name][situation].append(figures["seconds"])
    return found


@contextmanager
def busy_loop(seconds: float) -> Iterator[None]:
    """Keep one processor busy for ``seconds``, or until the context ends."""
    if not seconds:
        yield
        return
    ends = f"time.monotonic() < {time.monotonic() + seconds}" if seconds < float("inf") else "True"
    with subprocess.Popen([sys.executable, "-c", f"import time\nwhile {ends}: pass"]) as loop:
        try:
            yield
        finally:
            loop.kill()


def train(source: str, length: tuple[str, str], environment: dict[str, str]) -> dict[str, float]:
    """Run `vaekit train` in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in _OWN}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", "vaekit_cli", "train", source, *length, "-o", str(run), "--device", "cpu"]
        before, started = processor_seconds(), time.monotonic()
        subprocess.run([*command, "--quiet"], env=kept | environment, check=True)
        seconds, processor = time.monotonic() - started, processor_seconds() - before
        records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
        elbo = [record["elbo"] for record in records if record["split"] == "validation"][-1]
        return {"seconds": seconds, "processor": processor, "steps": load_config(run).steps, "elbo": elbo}


def processor_seconds() -> float:
    """Return what this program's ended processes have used. A busy loop that has not ended is not among them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show_limits(found: dict[str, list[dict[str, float]]], minutes: float) -> None:
    """Print medians, and how far each situation is from what its processor seconds allow."""
    median = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    rate = median["idle"]["steps"] / median["idle"]["processor"]
    rows = [("", "seconds", "of the time", "processor s", "steps", "of those allowed", "held-out ELBO")]
    for name, run in median.items():
        allowed = rate * run["processor"]
        rows.append(
            (
                name,
                f"{run['seconds']:.1f}",
                f"{run['seconds'] / (60 * minutes):.3f}",
                f"{run['processor']:.0f}",
                f"{run['steps']:,.0f}",
                f"{run['steps'] / allowed:.2f}",
                f"{run['elbo']:.1f}",
            )
        )
    print("\n".join(text_table(rows)), flush=True)
    print("aim: 0.9 to 1.03 of the time, at least 0.8 of the steps allowed", flush=True)


def show_policies(found: dict[str, dict[str, list[float]]], steps: int) -> None:
    """Print the median seconds of each policy."""
    rows: list[tuple[str, ...]] = [(f"{steps} steps, whole command", "idle, s", "beside a busy loop, s")]
    for name, seconds in found.items():
        rows.append((name, *(f"{statistics.median(seconds[situation]):.1f}" for situation in ("idle", "busy"))))
    print("\n".join(text_table(rows)), flush=True)


if __name__ == "__main__":
    main()
