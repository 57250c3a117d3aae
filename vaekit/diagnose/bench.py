"""Measure how fast this machine runs a bundle.

Each setting runs in a separate process, so that thread pools do not affect each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vaekit.errors import VaekitError
from vaekit.ort.providers import ON_GPU, Selection
from vaekit.system.machine import usable_cpus
from vaekit.system.workers import SpawnedPool
from vaekit.types import GraphName
from vaekit.vae import VAE, load

Operation = Literal["encode", "decode"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

DEFAULT_BATCHES = (1, 8, 64)

_WARMUP_RUNS = 3
_LEAST_RUNS = 10


@dataclass(frozen=True)
class Setting:
    """A batch size and number of threads for the encoder or decoder."""

    operation: Operation
    batch: int
    threads: int


@dataclass(frozen=True)
class Timing:
    """The measured speed of a setting."""

    setting: Setting
    provider: str
    images_per_second: float
    p50_ms: float
    """Median time per batch, in milliseconds."""
    p95_ms: float
    """95th percentile of the time per batch, in milliseconds."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of one row of ``vaekit bench --json``."""
        return {
            "batch": self.setting.batch,
            "threads": self.setting.threads,
            "images_per_second": self.images_per_second,
            "p50_ms": self.p50_ms,
            "p95_ms": self.p95_ms,
        }


@dataclass(frozen=True)
class Results:
    """The timings of all settings, with at least one per operation."""

    timings: Sequence[Timing]

    def of(self, operation: Operation) -> list[Timing]:
        """Return the timings of one operation."""
        return [timing for timing in self.timings if timing.setting.operation == operation]

    def best(self, operation: Operation) -> Timing:
        """Return the timing with the most images per second."""
        return max(self.of(operation), key=lambda timing: timing.images_per_second)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that ``vaekit bench --json`` prints."""
        return {
            "provider": self.timings[0].provider,
            **{operation: [timing.to_json() for timing in self.of(operation)] for operation in OPERATIONS},
            "best": {operation: self.best(operation).to_json() for operation in OPERATIONS},
        }


def default_threads(provider: str = "cpu") -> tuple[int, ...]:
    """Return 1, 2, 4 … up to the number of usable processors, which is included.

    On a provider that computes on a GPU, the number of threads hardly matters, and only the last is returned.
    """
    cpus = usable_cpus()
    if provider in ON_GPU:
        return (cpus,)
    return tuple(sorted({*(2**power for power in range(cpus.bit_length()) if 2**power <= cpus), cpus}))


def settings(batches: Iterable[int], threads: Iterable[int]) -> list[Setting]:
    """Return all combinations, encode before decode."""
    return [Setting(operation, b, t) for operation in OPERATIONS for b in batches for t in threads]


def bench(path: Path, selection: Selection, chosen: list[Setting], *, seconds: float) -> Iterator[Timing]:
    """Time the settings in turn, each for about ``seconds`` in a new process."""
    for setting in chosen:
        with SpawnedPool(1) as pool:
            try:
                timing = pool.submit(_measure, path, selection, setting, seconds).result()
            except BrokenProcessPool as error:
                raise VaekitError(
                    f"the process that timed {setting.operation} at batch size {setting.batch} with {setting.threads} "
                    "threads died; it may have run out of memory"
                ) from error
        yield timing


def _measure(path: Path, selection: Selection, setting: Setting, seconds: float) -> Timing:
    vae = load(
        path,
        provider=selection.provider,
        provider_options=selection.options,
        allow_fallback=selection.allow_fallback,
        threads=setting.threads,
        batch_size=setting.batch,
    )
    name, outputs, feeds = _work(vae, setting)
    graph = vae.graph(name)
    for _ in range(_WARMUP_RUNS):
        graph.run(outputs, feeds)
    milliseconds: list[float] = []
    began = time.perf_counter()
    while len(milliseconds) < _LEAST_RUNS or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        graph.run(outputs, feeds)
        milliseconds.append(1000 * (time.perf_counter() - started))
    p50, p95 = np.percentile(milliseconds, (50, 95))
    rate = 1000 * setting.batch * len(milliseconds) / sum(milliseconds)
    return Timing(setting, graph.provider, rate, float(p50), float(p95))


def _work(vae: VAE, setting: Setting) -> tuple[GraphName, list[str], dict[str, np.ndarray]]:
    """Return the graph to run, its output names and its inputs.

    The decoder's inputs are samples from the prior, the encoder's are images of uniform noise.
    """
    if setting.operation == "decode":
        return "decoder", ["image"], {"z": vae.sample_latents(setting.batch)}
    images = np.random.default_rng(0).random((setting.batch, *vae.image_shape), np.float32)
    return "encoder", list(vae.manifest.encoder_outputs), {"image": images}
