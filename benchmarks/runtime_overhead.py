"""What do vaekit's checks and batches cost, beside a bare loop over ONNX Runtime?

    python benchmarks/runtime_overhead.py [--model vae-onnx] [--images 4096] [--rounds 15] [--json FILE]

The class `VAE` encodes and decodes --images at its default batch size. The bare loop does the same with
`InferenceSession.run`, at the best of four batch sizes, and keeps what comes back; it checks nothing. Both have the
same threads and options, take turns, and are compared by the median of the pairwise ratios. The same is done with one
image at a time, for the latency.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import ratio, show, write_json

import vaekit
from vaekit.ort.session import open_on_cpu
from vaekit.types import Array

BATCHES = (16, 32, 64, 128)
ONE_BY_ONE = 200
"""Calls with one image, in each round."""


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def bare(session: Any, name: str, rows: Array, batch: int) -> list[Array]:
    """Run rows through a session, batch by batch."""
    parts = [session.run(None, {name: rows[first : first + batch]}) for first in range(0, len(rows), batch)]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def best_batch(session: Any, name: str, rows: Array) -> int:
    """Return the batch size at which the bare loop is fastest."""
    medians = {
        batch: statistics.median(seconds(lambda batch=batch: bare(session, name, rows, batch)) for _ in range(3))  # type: ignore[misc]
        for batch in BATCHES
    }
    return min(medians, key=lambda batch: medians[batch])


def alternate(rounds: int, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Time two actions in turns, after one turn of each that does not count."""
    ours()
    theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return [mine for mine, _ in pairs], [bare for _, bare in pairs]


def repeated(action: Callable[[int], object], count: int) -> Callable[[], None]:
    """Return an action that calls another with 0 to ``count`` − 1."""

    def run() -> None:
        for number in range(count):
            action(number)

    return run


def measure(name: str, session: Any, rows: Array, rounds: int, ours: Callable[[Array], object]) -> dict[str, Any]:
    """Compare one graph, with all rows at once and one by one."""
    tensor = session.get_inputs()[0].name
    batch = best_batch(session, tensor, rows)
    mine, bares = alternate(rounds, lambda: ours(rows), lambda: bare(session, tensor, rows, batch))
    throughput = ratio(bares, mine)
    show(f"{name}: throughput relative to a bare loop at batches of {batch}", throughput, ">= 0.98")
    print(f"    {len(rows) / statistics.median(mine):,.0f} images a second")
    one = [rows[number : number + 1] for number in range(min(ONE_BY_ONE, len(rows)))]
    singly, bare_singly = alternate(
        rounds,
        repeated(lambda number: ours(one[number]), len(one)),
        repeated(lambda number: session.run(None, {tensor: one[number]}), len(one)),
    )
    latency = ratio(singly, bare_singly)
    show(f"{name}: latency of one image relative to the bare call", latency, "<= 1.05")
    both = (1e6 * statistics.median(times) / len(one) for times in (singly, bare_singly))
    print("    {:,.0f} and {:,.0f} microseconds".format(*both))
    return {"throughput": throughput, "latency": latency, "batch": batch, "seconds": mine, "bare_seconds": bares}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both graphs and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vae-onnx")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    vae = vaekit.load(options.model, provider="cpu")
    latents = vae.sample_latents(options.images)
    images = vae.decode(latents)
    sessions = {
        name: open_on_cpu(name, vae.bundle.files[vae.manifest.graphs[name].file]).session
        for name in ("encoder", "decoder")
    }
    results = {
        "encoder": measure("encode", sessions["encoder"], images, options.rounds, vae.encode),
        "decoder": measure("decode", sessions["decoder"], latents, options.rounds, vae.decode),
    }
    write_json(options.json, results)


if __name__ == "__main__":
    main()
