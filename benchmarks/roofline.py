"""How near is each layer of a bundle's graphs to what one processor could do?

    python benchmarks/roofline.py [--model vae-onnx] [--batch 64] [--seconds 3] [--json FILE]

On one thread. ONNX Runtime's own profile gives the time of each node as it really runs, after fusing. Its FLOPs (a
multiplication and an addition are two) and bytes (inputs and outputs once, weights included) follow from the shapes.
In the same run the processor's peaks are measured: a matrix product of 1024 x 1024, and a copy of 512 MB, which no
cache holds. A layer can take no less than the longer of FLOPs / peak and bytes / bandwidth; the share is that bound
relative to the time. Layers whose data fit in a cache can beat the bandwidth. Nodes that compute no products count no
FLOPs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from threadpoolctl import threadpool_limits
from timing import write_json

from vaekit.bundle.reading import read_bundle
from vaekit.output.table import text_table

SIDE, COPIED = 1024, 1 << 29
_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "FusedGemm"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the peaks and both graphs, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("vae-onnx"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    bundle = read_bundle(options.model)
    manifest = bundle.manifest
    shapes = {"image": manifest.image.shape, "z": manifest.latent.shape}
    peaks = {"flops": product_peak(), "bytes": copy_peak()}
    print(f"matrix product {peaks['flops'] / 1e9:.0f} GFLOP/s, copy {peaks['bytes'] / 1e9:.1f} GB/s, one thread")
    graphs = {}
    for name, tensor in (("encoder", "image"), ("decoder", "z")):
        model = bundle.files[manifest.graphs[name].file]
        rows = np.random.default_rng(0).random((options.batch, *shapes[tensor]), np.float32)
        graphs[name] = layers(model, {tensor: rows}, options.seconds, peaks)
        show(name, options.batch, graphs[name])
    write_json(options.json, {"batch": options.batch, "peaks": peaks, "graphs": graphs})


def product_peak() -> float:
    """Return the FLOPs a second of a large matrix product, the best of several."""
    a, b = (np.random.default_rng(seed).random((SIDE, SIDE), np.float32) for seed in (0, 1))
    with threadpool_limits(1):
        return 2 * SIDE**3 / min(timed(lambda: a @ b) for _ in range(10))


def copy_peak() -> float:
    """Return the bytes a second, read and written, of a large copy, the best of several."""
    source = np.ones(COPIED // 8)
    target = np.empty_like(source)
    return 2 * COPIED / min(timed(lambda: np.copyto(target, source)) for _ in range(5))


def timed(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def layers(model: bytes, feeds: dict[str, Any], seconds: float, peaks: dict[str, float]) -> list[dict[str, Any]]:
    """Return each node's FLOPs, bytes, median time, bound and share, in the order in which they run."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    weights = weights_of(model)
    spent: dict[str, list[float]] = defaultdict(list)
    known: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["name"].removesuffix("_kernel_time")
            spent[node].append(event["dur"] / 1e6)
            known[node] = event["args"]
    return [described(known[node], weights.get(node), statistics.median(times), peaks) for node, times in spent.items()]


def weights_of(model: bytes) -> dict[str, list[int]]:
    """Return the shapes of the transposed convolutions' weights, which the profile leaves out, by node."""
    graph = onnx.load_from_string(model).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return {node.name: shapes[node.input[1]] for node in graph.node if node.op_type == "ConvTranspose"}


def described(
    node: dict[str, Any], weight: list[int] | None, seconds: float, peaks: dict[str, float]
) -> dict[str, Any]:
    """Return the figures of a node, from its shapes and its time."""
    ins = [shape for entry in node["input_type_shape"] for shape in entry.values()]
    if weight is not None:
        ins.insert(1, weight)
    outs = [shape for entry in node["output_type_shape"] for shape in entry.values()]
    flops = flops_of(node["op_name"], ins, outs)
    moved = 4 * sum(math.prod(shape) for shape in (*ins, *outs))
    bound = max(flops / peaks["flops"], moved / peaks["bytes"])
    return {
        "operator": node["op_name"],
        "output": outs[0],
        "flops": flops,
        "bytes": moved,
        "seconds": seconds,
        "bound": bound,
        "limit": "FLOPs" if flops / peaks["flops"] == bound else "bytes",
    }


def flops_of(operator: str, ins: list[list[int]], outs: list[list[int]]) -> int:
    """Return a node's FLOPs: twice the multiplications of its products."""
    if operator in _PRODUCTS:
        return 2 * math.prod(outs[0]) * ins[0][-1]
    if operator.endswith("ConvTranspose"):  # each input number meets all weights of its channel
        return 2 * math.prod(ins[0]) * math.prod(ins[1][1:])
    if operator.endswith("Conv"):
        return 2 * math.prod(outs[0]) * math.prod(ins[1][1:])
    return 0


def row(node: dict[str, Any]) -> tuple[str, ...]:
    """Return a node's cells."""
    seconds = max(node["seconds"], 1e-9)
    return (
        node["operator"],
        "x".join(map(str, node["output"])),
        f"{node['flops'] / 1e6:.1f}",
        f"{node['bytes'] / 1e6:.2f}",
        f"{1e6 * seconds:.0f}",
        f"{node['flops'] / seconds / 1e9:.0f}",
        node["limit"],
        f"{node['bound'] / seconds:.0%}",
    )


def show(name: str, batch: int, nodes: list[dict[str, Any]]) -> None:
    """Print a graph's table."""
    rows = [("", "output", "MFLOP", "MB", "us", "GFLOP/s", "limited by", "share of the bound"), *map(row, nodes)]
    whole, bound = (sum(node[key] for node in nodes) for key in ("seconds", "bound"))
    print(f"\n{name}, batch {batch}")
    print("\n".join(text_table(rows)))
    flops = sum(node["flops"] for node in nodes)
    print(f"all: {flops / 1e6:.0f} MFLOP, {1e3 * whole:.2f} ms, {flops / whole / 1e9:.0f} GFLOP/s: {bound / whole:.0%}")


if __name__ == "__main__":
    main()
