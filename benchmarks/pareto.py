"""Which preset and precision gives how much for how little? Presets × precisions, and two other architectures.

    python benchmarks/pareto.py [--minutes 2] [--models tiny small …] [--plot FILE.png] [--json FILE]
    python benchmarks/pareto.py --drawn-from benchmarks/results/pareto.json --plot docs/pareto.png

Every model trains for the same time on Fashion-MNIST with d = 16, is exported, and the presets' bundles are compressed:
`int8-weights`, which computes in float32, and `int8`, which computes in integers. `dense` has fully connected layers,
784-1024-512-16 and back; `taesd-like` has a decoder of TAESD's blocks, three convolutions of 64 channels each, with
nearest upsampling, and an encoder of the same. Measured through vaekit on 2,000 images of the test part: PSNR at
z = mu, and -ELBO in nats with the bundle's sigma; the size of both graphs; and the decoder's time at batches of 64
and 1, the median of interleaved processes. A bundle is on the front if no other is at least as good in time at batch
64, size and -ELBO, and better in one. Takes about twenty minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import LATENT, Heads, Sigmoid, fashion_mnist, pair, settings, train_in_vaekit
from photographs import Taesd
from quality import dense, latencies
from timing import write_json
from torch import nn

import vaekit
from vaekit.maths.psnr import psnr
from vaekit.output.table import text_table
from vaekit.system.machine import usable_cpus
from vaekit.training.config import Config
from vaekit.training.networks import PRESETS, VAENetwork

IMAGES = 2000
_ROUNDS = 5
_HELD_OUT = 1000  # images of the training part for the statistics of foreign bundles
_TAESD_RATE = 5e-4  # with higher ones it does not train
_FAR = 100  # nats behind the best, which is not drawn
_MARKS = {"": "o", "int8-weights": "s", "int8": "^"}
PRECISIONS = {"int8-weights": "--weights-only", "int8": "--no-weights-only"}


def taesd_like() -> VAENetwork:
    """Build an encoder and a decoder of TAESD's blocks, 28 → 14 → 7 pixels and back."""
    width = 64
    halvings = [nn.Sequential(nn.Conv2d(width, width, 3, 2, 1, bias=False), Taesd(width)) for _ in range(2)]
    features = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1), Taesd(width), *halvings, nn.Flatten())
    doublings = [
        nn.Sequential(Taesd(width), nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, 1, 1, bias=False))
        for _ in range(2)
    ]
    top = nn.Sequential(nn.Linear(LATENT, width * 49), nn.Unflatten(1, (width, 7, 7)), nn.ReLU())
    stack = nn.Sequential(top, *doublings, Taesd(width), nn.Conv2d(width, 1, 3, 1, 1))
    return pair(Heads(features, width * 49), Sigmoid(stack))


PEERS: dict[str, tuple[Callable[[], VAENetwork], float]] = {
    "dense": (dense, Config.lr),
    "taesd-like": (taesd_like, _TAESD_RATE),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, export, compress and measure the models, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--models", nargs="+", choices=[*PRESETS, *PEERS], default=[*PRESETS, *PEERS])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--drawn-from", type=Path, help="results of an earlier run")
    parser.add_argument("--peer", choices=list(PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--time", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.drawn_from:
        plot(json.loads(options.drawn_from.read_text())["bundles"], options.plot)
        return
    if options.peer:
        export_peer(options.peer, options.minutes, options.folder)
        return
    if options.measure or options.time:
        figures = measured(options.measure) if options.measure else latencies(options.time / "decoder.onnx")
        print(json.dumps(figures))
        return

    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models:
            make(name, options.minutes, Path(scratch))
        bundles = sorted(path for path in Path(scratch).iterdir() if (path / "manifest.json").exists())
        found = {path.name: alone("--measure", str(path)) for path in bundles}
        rounds = [{path.name: alone("--time", str(path)) for path in bundles} for _ in range(_ROUNDS)]
    for name, figures in found.items():
        for key in ("ms_batch_1", "ms_batch_64"):
            figures[key] = statistics.median(timed[name][key] for timed in rounds)
    for figures in found.values():
        figures["front"] = not any(beats(other, figures) for other in found.values())
    print("\n".join(text_table(table(found))))
    if options.plot:
        plot(found, options.plot)
    write_json(options.json, {"minutes": options.minutes, "bundles": found})


def make(name: str, minutes: float, folder: Path) -> None:
    """Train a model and write its bundles, NAME and NAME, PRECISION."""
    print(f"training {name}", flush=True)
    if name in PEERS:
        run(sys.executable, __file__, "--peer", name, "--minutes", minutes, "--folder", folder)
        return
    script, trained, bundle = Path(sys.executable).with_name("vaekit"), folder / f"run-{name}", folder / name
    limits = ("--preset", name, "--max-minutes", minutes, "--prior", "none", "-q")
    run(script, "train", "fashion-mnist", *limits, "-o", trained)
    run(script, "export", trained, "-o", bundle, "-q")
    for precision, how in PRECISIONS.items():
        run(script, "compress", bundle, "--int8", how, "-o", folder / f"{name}, {precision}", "-q", required=False)


def run(*command: object, required: bool = True) -> None:
    """Run a command; one that may fail, such as a compression that is not good enough, says so itself."""
    done = subprocess.run([str(word) for word in command], check=False)
    if done.returncode and required:
        sys.exit(done.returncode)


def alone(*arguments: str) -> Any:
    """Run this file with the arguments in a new process; return the JSON it prints."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def export_peer(name: str, minutes: float, folder: Path) -> None:
    """Train another architecture with vaekit's trainer, and export it as a model of another library."""
    from vaekit_export import VAEDescription, export_vae

    torch.set_num_threads(usable_cpus())
    torch.manual_seed(0)
    train, _ = fashion_mnist()
    build, lr = PEERS[name]
    trainer, _ = train_in_vaekit(build(), settings(Config.batch_size, lr), train, minutes, folder / f"run-{name}")
    network = trainer.network
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # stub lacks it
    sigma = trainer.learner.variance.sqrt().item()
    description = VAEDescription((1, 28, 28), (LATENT,), likelihood="gaussian", sigma=sigma, name=name)
    images = train.read(np.arange(len(train) - _HELD_OUT, len(train)))
    export_vae(network.encoder, network.decoder, description, images, folder / name)


def measured(bundle: Path) -> dict[str, Any]:
    """Return a bundle's PSNR, -ELBO and size."""
    vae = vaekit.load(bundle, provider="cpu")
    _, test = fashion_mnist()
    images = test.read(np.arange(IMAGES)).astype(np.float32) / np.float32(255)
    errors = np.square(vae.reconstruct(images) - images).mean((1, 2, 3))
    return {
        "psnr": float(np.mean([psnr(float(error)) for error in errors])),
        "minus_elbo": float(vae.score(images).mean()),
        "kb": sum((bundle / vae.manifest.graphs[name].file).stat().st_size for name in ("encoder", "decoder")) / 1000,
    }


def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Return whether a is at least as good as b in everything, and better in something."""
    pairs = [(a[key], b[key]) for key in ("ms_batch_64", "kb", "minus_elbo")]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def table(found: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of the table, the quickest first."""
    rows: list[tuple[str, ...]] = [("bundle", "decode 64", "decode 1", "size", "PSNR", "-ELBO", "front")]
    for name, f in sorted(found.items(), key=lambda item: item[1]["ms_batch_64"]):
        times = f"{f['ms_batch_64']:.2f} ms", f"{f['ms_batch_1']:.3f} ms"
        front = "yes" if f["front"] else ""
        rows.append((name, *times, f"{f['kb']:,.0f} KB", f"{f['psnr']:.2f} dB", f"{f['minus_elbo']:.1f}", front))
    return rows


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw -ELBO against the decoder's time; the area of a mark grows with the size.

    A bundle that is far behind the others is only named.
    """
    from matplotlib.figure import Figure

    figure = Figure((7.6, 4.4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="decoder, ms at batch 64", ylabel="−ELBO, nats (lower is better)")
    best = min(f["minus_elbo"] for f in found.values())
    for name, f in found.items():
        model, _, precision = name.partition(", ")
        label = f"{name}, {f['kb']:,.0f} KB"
        if f["minus_elbo"] > best + _FAR:
            axes.scatter([], [], label=f"{label}: {f['minus_elbo']:.0f} nats, {f['ms_batch_64']:.0f} ms", color="none")
            continue
        colour, mark = f"C{[*PRESETS, *PEERS].index(model)}", _MARKS[precision]
        axes.scatter(f["ms_batch_64"], f["minus_elbo"], 4 * f["kb"] ** 0.5, colour, marker=mark, alpha=0.6, label=label)
    axes.set_xticks([1, 2, 5], ["1", "2", "5"])
    axes.set_xticks([], minor=True)
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7, labelspacing=1.2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
