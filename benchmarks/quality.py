"""Which network should be the default? Trains candidates on Fashion-MNIST with vaekit's own trainer, d = 16.

    python benchmarks/quality.py [--minutes 2] [--candidates NAME …] [--json FILE]

Candidates train one after the other for the same time, which includes fitting the prior. The measurements are: -ELBO on
the test part in nats, with sigma computed on training images; PSNR at z = mu; the size of both graphs at opset 17; and
the decoder's latency in ONNX Runtime (medians over interleaved processes). A candidate is on the Pareto front if no
other is at least as good in -ELBO, latency at batch 1 and size, and better in one of them. The defaults of `vaekit
train` were chosen from this table. Takes less than twenty minutes with `--minutes 2`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import LATENT, PIXELS, Heads, Sigmoid, fashion_mnist, measure, pair, settings, train_in_vaekit
from timing import write_json
from torch import Tensor, nn

from vaekit.system.machine import usable_cpus
from vaekit.training.config import Config, PresetName
from vaekit.training.networks import VAENetwork

_OPSET = 17
_ROUNDS = 5
_TIMED_RUNS = 50


@dataclass(frozen=True)
class Candidate:
    """A network and its training settings."""

    make: Callable[[], VAENetwork]
    batch_size: int = Config.batch_size
    lr: float = Config.lr


def main() -> None:
    """Train the candidates, time their decoders, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--candidates", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--train", choices=list(CANDIDATES), help=argparse.SUPPRESS)
    parser.add_argument("--time", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(json.dumps(trained(CANDIDATES[options.train], options.minutes, options.folder)))
        return
    if options.time:
        print(json.dumps(latencies(options.folder / options.time)))
        return

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.candidates:
            folder = Path(scratch, name)
            found[name] = alone("--train", name, "--minutes", str(options.minutes), "--folder", str(folder))
            print(f"{name}: {found[name]['images_seen']:,} images, -ELBO {found[name]['minus_elbo']:.1f}", flush=True)
        rounds = [
            {name: alone("--time", f"{name}/decoder.onnx", "--folder", scratch) for name in found}
            for _ in range(_ROUNDS)
        ]
    for name, figures in found.items():
        for key in ("ms_batch_1", "ms_batch_64"):
            figures[key] = statistics.median(timed[name][key] for timed in rounds)
    for figures in found.values():
        figures["pareto"] = not any(beats(other, figures) for other in found.values())
    for line in table(found):
        print(line)
    write_json(options.json, {"minutes": options.minutes, "candidates": found})


def alone(*arguments: str) -> Any:
    """Run this file with the arguments in a new process; return the JSON it prints."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def trained(candidate: Candidate, minutes: float, folder: Path) -> dict[str, Any]:
    """Train a candidate, write its decoder to ``folder``, and return its results."""
    from vaekit_export.onnx_export import export_onnx

    torch.set_num_threads(usable_cpus())
    torch.manual_seed(0)
    train, test = fashion_mnist()
    config = settings(candidate.batch_size, candidate.lr)
    trainer, seen = train_in_vaekit(candidate.make(), config, train, minutes, folder)
    network = trainer.network
    figures = measure(network, train, test)
    network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]  # stub lacks it
    image, z = torch.zeros(2, 1, 28, 28), torch.zeros(2, LATENT)
    encoder = export_onnx(network.encoder, image, input_name="image", output_names=("mu", "logvar"), opset=_OPSET)
    decoder = export_onnx(network.decoder, z, input_name="z", output_names=("image",), opset=_OPSET)
    (folder / "decoder.onnx").write_bytes(decoder)
    return {
        **figures,
        "images_seen": seen,
        "batch_size": candidate.batch_size,
        "lr": candidate.lr,
        "bytes": len(encoder) + len(decoder),
    }


def latencies(path: Path, latent_shape: tuple[int, ...] = (LATENT,)) -> dict[str, float]:
    """Return a decoder's median milliseconds for 1 and for 64 images."""
    from vaekit.ort.session import open_on_cpu

    graph = open_on_cpu("decoder", path.read_bytes())
    found = {}
    for batch in (1, 64):
        z = np.random.default_rng(0).standard_normal((batch, *latent_shape)).astype(np.float32)
        spent = []
        for _ in range(10 + _TIMED_RUNS):
            started = time.perf_counter()
            graph.run(["image"], {"z": z})
            spent.append(time.perf_counter() - started)
        found[f"ms_batch_{batch}"] = 1000 * statistics.median(spent[10:])
    return found


def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Return whether a is at least as good as b in everything, and better in something."""
    pairs = [(a[key], b[key]) for key in ("minus_elbo", "ms_batch_1", "bytes")]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Format the results as a Markdown table."""
    lines = [
        "| candidate | batch, lr | images seen | -ELBO | PSNR | decode 1 | decode 64 | size | front |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, f in found.items():
        lines.append(
            f"| {name} | {f['batch_size']}, {f['lr']:g} | {f['images_seen']:,} | {f['minus_elbo']:.1f} | "
            f"{f['psnr']:.2f} dB | {f['ms_batch_1']:.2f} ms | {f['ms_batch_64']:.2f} ms | "
            f"{f['bytes'] / 1e6:.2f} MB | {'yes' if f['pareto'] else ''} |"
        )
    return lines


def preset(name: PresetName) -> Callable[[], VAENetwork]:
    """Return a builder of vaekit's own network, which has transposed convolutions."""
    return lambda: VAENetwork((1, 28, 28), LATENT, preset=name)


def doubling_by(other: Callable[[nn.ConvTranspose2d], nn.Module]) -> Callable[[], VAENetwork]:
    """Return a builder of vaekit's network `small` with transposed convolutions replaced."""

    def make() -> VAENetwork:
        network = VAENetwork((1, 28, 28), LATENT)
        stack = network.decoder.get_submodule("doublings")
        assert isinstance(stack, nn.Sequential)
        for number, stage in enumerate(stack):
            if isinstance(stage, nn.ConvTranspose2d):
                stack[number] = other(stage)
            elif isinstance(stage, nn.Sequential) and isinstance(stage[0], nn.ConvTranspose2d):
                stage[0] = other(stage[0])
        return network

    return make


def upsampling(stage: nn.ConvTranspose2d) -> nn.Module:
    """Return nearest-neighbour upsampling followed by a 3 x 3 convolution."""
    convolution = nn.Conv2d(stage.in_channels, stage.out_channels, 3, 1, 1, bias=stage.bias is not None)
    return nn.Sequential(nn.Upsample(scale_factor=2), *cropped(stage), convolution)


def shuffling(stage: nn.ConvTranspose2d) -> nn.Module:
    """Return a 3 x 3 convolution to four times the channels, and a pixel shuffle."""
    convolution = nn.Conv2d(stage.in_channels, 4 * stage.out_channels, 3, 1, 1, bias=stage.bias is not None)
    return nn.Sequential(convolution, nn.PixelShuffle(2), *cropped(stage))


def cropped(stage: nn.ConvTranspose2d) -> list[nn.Module]:
    """Return a layer that crops the output if the stage's side is odd, else nothing."""
    return [Crop()] if stage.kernel_size[0] == 3 else []


class Crop(nn.Module):
    """Remove the last row and column."""

    def forward(self, image: Tensor) -> Tensor:
        return image[..., :-1, :-1]


def dense() -> VAENetwork:
    """Build a fully connected network, 784-1024-512 and back, with batch normalisation."""

    def layer(ins: int, outs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(ins, outs, bias=False), nn.BatchNorm1d(outs), nn.SiLU())

    features = nn.Sequential(nn.Flatten(), layer(PIXELS, 1024), layer(1024, 512))
    out = nn.Sequential(nn.Linear(1024, PIXELS), nn.Unflatten(1, (1, 28, 28)))
    return pair(Heads(features, 512), Sigmoid(nn.Sequential(layer(LATENT, 512), layer(512, 1024), out)))


CANDIDATES = {
    "tiny": Candidate(preset("tiny")),
    "small": Candidate(preset("small")),
    "base": Candidate(preset("base")),
    "small, upsample": Candidate(doubling_by(upsampling)),
    "small, pixel shuffle": Candidate(doubling_by(shuffling)),
    "dense": Candidate(dense),
}

if __name__ == "__main__":
    main()
