"""How fast are a bundle's graphs in ONNX Runtime, compared with the same networks in eager PyTorch?

    python benchmarks/versus_torch.py [--run vae] [--model vae-onnx] [--rounds 7] [--json FILE]

Each backend runs in its own process, one after the other, so that thread pools do not affect each other. Both use all
usable processors. Times are medians within a process. A ratio is PyTorch's time divided by ONNX Runtime's, so higher is
better. Aims: at least 2.5 at batch 1, and never below 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import ratio, show, write_json

BATCHES = (1, 16, 64)
GRAPHS = ("encoder", "decoder")
SECONDS = 0.7  # to time each graph at each batch size

Times = dict[str, float]


def main() -> None:
    """Time both backends in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("vae"))
    parser.add_argument("--model", type=Path, default=Path("vae-onnx"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=("onnxruntime", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(run_graph(options.worker, options.model, options.run))))
        return

    rounds: dict[str, list[Times]] = {"onnxruntime": [], "torch": []}
    for _ in range(options.rounds):
        for backend, times in rounds.items():
            times.append(in_own_process(backend, options))
    ratios = {}
    for graph in GRAPHS:
        for batch in BATCHES:
            key = f"{graph} {batch}"
            ours, theirs = ([times[key] for times in rounds[name]] for name in ("onnxruntime", "torch"))
            ratios[key] = ratio(theirs, ours)
            microseconds = 1e6 * statistics.median(ours)
            what = f"{graph} at batch {batch} ({microseconds:.0f} us), PyTorch / ONNX Runtime"
            show(what, ratios[key], ">= 2.5" if batch == 1 else ">= 1")
    write_json(options.json, {"seconds": rounds, "ratios": ratios})


def in_own_process(backend: str, options: argparse.Namespace) -> Times:
    """Measure one backend's times in a new process."""
    command = [sys.executable, __file__, "--worker", backend, "--run", options.run, "--model", options.model]
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    times: Times = json.loads(done.stdout)
    return times


def run_graph(backend: str, model: Path, run: Path) -> Callable[[str, Any], Any]:
    """Return a function that runs a graph on rows of input."""
    import vaekit

    vae = vaekit.load(model)
    shapes = {"encoder": vae.image_shape, "decoder": vae.latent_shape}
    if backend == "onnxruntime":
        names = {"encoder": "image", "decoder": "z"}
        sessions = {"encoder": vae.graph("encoder").session, "decoder": vae.graph("decoder").session}
        return lambda graph, batch: _bind(sessions[graph].run, None, {names[graph]: rows(shapes[graph], batch)})

    import torch

    from vaekit.system.machine import usable_cpus
    from vaekit.training.run import load_run

    torch.set_num_threads(usable_cpus())
    torch.set_grad_enabled(False)
    network = load_run(run).network
    return lambda graph, batch: _bind(getattr(network, graph), torch.from_numpy(rows(shapes[graph], batch)))


def rows(shape: tuple[int, ...], batch: int) -> Any:
    """Draw one batch of input, uniform in [0, 1)."""
    return np.random.default_rng(0).random((batch, *shape), np.float32)


def measure(prepare: Callable[[str, int], Callable[[], Any]]) -> Times:
    """Measure the median seconds of a call, by graph and batch size."""
    times = {}
    for graph in GRAPHS:
        for batch in BATCHES:
            call = prepare(graph, batch)
            for _ in range(5):
                call()
            calls = []
            until = time.perf_counter() + SECONDS
            while time.perf_counter() < until:
                started = time.perf_counter()
                call()
                calls.append(time.perf_counter() - started)
            times[f"{graph} {batch}"] = statistics.median(calls)
    return times


def _bind(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


if __name__ == "__main__":
    main()
