"""How fast a bundle is on this machine, each setting in its own process so that thread pools do not interfere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vaekit.errors import VaekitError
from vaekit.ort.providers import Selection
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
    """One way of running the encoder or the decoder."""

    operation: Operation
    batch: int
    threads: int


@dataclass(frozen=True)
class Timing:
    """How long a setting took."""

    setting: Setting
    provider: str
    images_per_second: float
    p50_ms: float
    """Median milliseconds of a batch."""
    p95_ms: float
    """95th percentile of the same."""

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
    """The timings of all settings, at least one of each operation."""

    timings: Sequence[Timing]

    def of(self, operation: Operation) -> list[Timing]:
        """The timings of one operation."""
        return [timing for timing in self.timings if timing.setting.operation == operation]

    def best(self, operation: Operation) -> Timing:
        """The timing of most images a second."""
        return max(self.of(operation), key=lambda timing: timing.images_per_second)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that ``vaekit bench --json`` prints."""
        return {
            "provider": self.timings[0].provider,
            **{operation: [timing.to_json() for timing in self.of(operation)] for operation in OPERATIONS},
            "best": {operation: self.best(operation).to_json() for operation in OPERATIONS},
        }


def default_threads() -> tuple[int, ...]:
    """One thread, doubled up to the processors that may be used, and these."""
    cpus = usable_cpus()
    return tuple(sorted({*(2**power for power in range(cpus.bit_length()) if 2**power <= cpus), cpus}))


def settings(batches: Iterable[int], threads: Iterable[int]) -> list[Setting]:
    """All combinations, encode before decode."""
    return [Setting(operation, b, t) for operation in OPERATIONS for b in batches for t in threads]


def bench(path: Path, selection: Selection, chosen: list[Setting], *, seconds: float) -> Iterator[Timing]:
    """Time settings one after the other, each for about ``seconds`` and in a new process."""
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
    """The graph to run, its outputs and its inputs: samples of the prior, or images of uniform noise."""
    if setting.operation == "decode":
        return "decoder", ["image"], {"z": vae.sample_latents(setting.batch)}
    images = np.random.default_rng(0).random((setting.batch, *vae.image_shape), np.float32)
    return "encoder", list(vae.manifest.encoder_outputs), {"image": images}
