"""How fast a bundle is here: each setting in a process of its own, so that thread pools do not disturb each other."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vaekit.errors import VaekitError
from vaekit.ort.providers import Selection
from vaekit.system.machine import usable_cpus
from vaekit.vae import VAE, load

DEFAULT_BATCHES = (1, 8, 64)

_WARMUP_RUNS = 3
_LEAST_RUNS = 10


@dataclass(frozen=True)
class Setting:
    """One way of running one half of a bundle."""

    graph: str
    """``encode`` or ``decode``."""
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


def default_threads() -> tuple[int, ...]:
    """One thread, doubled up to the processors that may be used, and these."""
    cpus = usable_cpus()
    return tuple(sorted({*(2**power for power in range(cpus.bit_length()) if 2**power <= cpus), cpus}))


def settings(batches: Iterable[int], threads: Iterable[int]) -> list[Setting]:
    """All combinations, encode before decode."""
    return [Setting(graph, b, t) for graph in ("encode", "decode") for b in batches for t in threads]


def bench(path: Path, selection: Selection, chosen: list[Setting], *, seconds: float) -> Iterator[Timing]:
    """Time each setting for about so many seconds, one after the other, each in a new process."""
    for setting in chosen:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                timing = pool.submit(_measure, path, selection, setting, seconds).result()
            except BrokenProcessPool as error:
                raise VaekitError(
                    f"the process that timed {setting.graph} at batch size {setting.batch} with {setting.threads} "
                    "threads died; it may have run out of memory"
                ) from error
        yield timing


def best(timings: Iterable[Timing], graph: str) -> Timing:
    """The setting of most images a second."""
    return max((t for t in timings if t.setting.graph == graph), key=lambda timing: timing.images_per_second)


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


def _work(vae: VAE, setting: Setting) -> tuple[str, list[str], dict[str, np.ndarray]]:
    """The graph to run, its outputs and its inputs: samples of the prior, or images of uniform noise."""
    if setting.graph == "decode":
        return "decoder", ["image"], {"z": vae.sample_latents(setting.batch)}
    images = np.random.default_rng(0).random((setting.batch, *vae.image_shape), np.float32)
    return "encoder", list(vae.manifest.encoder_outputs), {"image": images}
