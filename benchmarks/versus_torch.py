"""How fast are a bundle's graphs in vaekit, compared with PyTorch and with OpenVINO's own runtime?

    python benchmarks/versus_torch.py [--run vae] [--model vae-onnx] [--weights vae-int8w] [--qdq vae-int8q]
                                      [--rounds 5] [--json FILE]

Ours are the bundle, and the bundles of `vaekit compress --int8 --weights-only` and `--no-weights-only`, where they are
given and exist. Peers are the run's network in eager PyTorch, traced and frozen by torch.jit, and compiled by
torch.compile, and the bundle's ONNX files in OpenVINO's runtime, if it is installed (float32, latency hint). Each
backend runs in its own process, the processes take turns, and all use all usable processors. Times are medians within
a process. A ratio is the peer's time divided by that of `bundle`, so higher is better. Aims: at least 2.5 of eager
PyTorch at batch 1, and never below 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from timing import ratio, write_json

from vaekit.output.table import text_table

BATCHES = (1, 16, 64)
GRAPHS = ("encoder", "decoder")
INPUTS = {"encoder": "image", "decoder": "z"}
SECONDS = 0.5  # to time each graph at each batch size
OURS, PEERS = ("bundle", "weights", "qdq"), ("eager", "jit", "compile", "openvino")

Times = dict[str, float]
Prepare = Callable[[str, Any], Callable[[], Any]]
"""Returns a function that runs a graph on rows of input."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the backends in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("vae"))
    parser.add_argument("--model", type=Path, default=Path("vae-onnx"))
    parser.add_argument("--weights", type=Path, default=Path("vae-int8w"))
    parser.add_argument("--qdq", type=Path, default=Path("vae-int8q"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=(*OURS, *PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(measure(*prepared(options.worker, options))))
        return

    present = [name for name in (*OURS, *PEERS) if is_present(name, options)]
    rounds: dict[str, list[Times]] = {name: [] for name in present}
    for _ in range(options.rounds):
        for name, times in rounds.items():
            times.append(in_own_process(name, options))
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    rows = [("graph, batch", "bundle", *(name for name in present if name != "bundle"))]
    for key in rounds["bundle"][0]:
        ours = [times[key] for times in rounds["bundle"]]
        ratios[key] = {
            name: ratio([times[key] for times in rounds[name]], ours) for name in present if name != "bundle"
        }
        cells = (f"x{found['median']:.2f} ({found['min']:.2f}-{found['max']:.2f})" for found in ratios[key].values())
        rows.append((key, f"{1e6 * statistics.median(ours):,.0f} us", *cells))
    print("\n".join(text_table(rows)))
    write_json(options.json, {"seconds": rounds, "ratios": ratios})


def is_present(backend: str, options: argparse.Namespace) -> bool:
    """Return whether a backend and its model are here."""
    if backend in OURS:
        return model_of(backend, options).exists()
    return find_spec("openvino" if backend == "openvino" else "torch") is not None


def model_of(backend: str, options: argparse.Namespace) -> Path:
    """Return the bundle of one of our backends."""
    models: dict[str, Path] = {"bundle": options.model, "weights": options.weights, "qdq": options.qdq}
    return models[backend]


def in_own_process(backend: str, options: argparse.Namespace) -> Times:
    """Measure one backend's times in a new process."""
    models = ["--run", options.run, "--model", options.model, "--weights", options.weights, "--qdq", options.qdq]
    command = [sys.executable, __file__, "--worker", backend, *map(str, models)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    times: Times = json.loads(done.stdout.splitlines()[-1])
    return times


def prepared(backend: str, options: argparse.Namespace) -> tuple[Prepare, dict[str, tuple[int, ...]]]:
    """Return the function that prepares a backend's calls, and the shapes of the graphs' inputs."""
    import vaekit

    vae = vaekit.load(options.model if backend in PEERS else model_of(backend, options), provider="cpu")
    shapes = {"encoder": vae.image_shape, "decoder": vae.latent_shape}
    if backend in OURS:
        return (lambda graph, rows: of_session(vae.graph(graph).session, INPUTS[graph], rows)), shapes
    if backend == "openvino":
        return of_openvino(options.model), shapes
    return of_torch(backend, options.run), shapes


def of_session(session: Any, name: str, rows: Any) -> Callable[[], Any]:
    """Return a call of ONNX Runtime."""
    return lambda: session.run(None, {name: rows})


def of_openvino(model: Path) -> Prepare:
    """Return OpenVINO's way to run the graphs, in float32 as the others."""
    from vaekit.system.machine import usable_cpus

    openvino = importlib.import_module("openvino")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": usable_cpus(),
    }

    def prepare(graph: str, rows: Any) -> Callable[[], Any]:
        network = openvino.Core().read_model(model / f"{graph}.onnx")
        network.reshape(list(rows.shape))
        request = openvino.compile_model(network, "CPU", settings).create_infer_request()
        return lambda: request.infer([rows], share_inputs=True)

    return prepare


def of_torch(way: str, run: Path) -> Prepare:
    """Return one of PyTorch's ways to run the networks."""
    import warnings

    import torch

    from vaekit.system.machine import usable_cpus
    from vaekit.training.run import load_run

    warnings.simplefilter("ignore")  # torch.jit says that it is old
    torch.set_num_threads(usable_cpus())
    torch.set_grad_enabled(False)
    network = load_run(run).network

    def prepare(graph: str, rows: Any) -> Callable[[], Any]:
        tensor, module = torch.from_numpy(rows), getattr(network, graph)
        if way == "jit":
            traced = torch.jit.trace(module, tensor)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            module = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
        if way == "compile":
            module = torch.compile(module, dynamic=False)
        return lambda: module(tensor)

    return prepare


def measure(prepare: Prepare, shapes: dict[str, tuple[int, ...]]) -> Times:
    """Measure the median seconds of a call, by graph and batch size."""
    times = {}
    for graph in GRAPHS:
        for batch in BATCHES:
            rows = np.random.default_rng(0).random((batch, *shapes[graph]), np.float32)
            call = prepare(graph, rows)
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


if __name__ == "__main__":
    main()
