from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaekit.diagnose import bench as module
from vaekit.diagnose.bench import DEFAULT_BATCHES, Operation, Results, Setting, Timing, bench, default_threads, settings
from vaekit.errors import ProviderError, UsageError, VaekitError
from vaekit.ort.providers import PROVIDERS, Selection, is_available
from vaekit.ort.session import GraphSession
from vaekit.system.machine import usable_cpus

ON_CPU = Selection("cpu")
MISSING = next(name for name in PROVIDERS if not is_available(PROVIDERS[name]))


def timing(operation: Operation, rate: float, batch: int = 1) -> Timing:
    return Timing(Setting(operation, batch, 1), "cpu", rate, 1.0, 2.0)


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (3,)


def test_settings_are_all_combinations() -> None:
    assert settings((1, 8), (1, 2)) == [
        Setting(operation, batch, threads)  # type: ignore[arg-type]  # of a tuple of str
        for operation, batch, threads in (
            ("encode", 1, 1),
            ("encode", 1, 2),
            ("encode", 8, 1),
            ("encode", 8, 2),
            ("decode", 1, 1),
            ("decode", 1, 2),
            ("decode", 8, 1),
            ("decode", 8, 2),
        )
    ]
    assert settings((), (1, 2)) == []
    assert len(settings(DEFAULT_BATCHES, default_threads())) == 2 * len(DEFAULT_BATCHES) * len(default_threads())


@pytest.mark.parametrize(
    ("cpus", "threads"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (4, (1, 2, 4)),
        (6, (1, 2, 4, 6)),
        (16, (1, 2, 4, 8, 16)),
        (20, (1, 2, 4, 8, 16, 20)),
    ],
)
def test_threads_double_up_to_all_processors(
    cpus: int, threads: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "usable_cpus", lambda: cpus)
    assert default_threads() == threads


def test_on_a_gpu_only_all_processors_are_timed() -> None:
    assert default_threads("cuda") == (usable_cpus(),)


def test_threads_of_this_machine_end_with_its_processors() -> None:
    assert default_threads()[0] == 1
    assert default_threads()[-1] == usable_cpus()


def test_the_best_is_that_of_most_images_a_second() -> None:
    timings = [timing("encode", 10), timing("decode", 99), timing("encode", 30, batch=8), timing("encode", 20)]
    assert Results(timings).best("encode") == timings[2]
    assert Results(timings).best("decode") == timings[1]


@pytest.mark.parametrize("operation", ["encode", "decode"])
def test_what_is_timed_is_the_setting(operation: Operation, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, tuple[int, ...], int]] = []
    run = GraphSession.run

    def watched(self: GraphSession, outputs: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        (rows,) = feeds.values()
        ran.append((self.name, rows.shape, self.session.get_session_options().intra_op_num_threads))
        return run(self, outputs, feeds)

    monkeypatch.setattr(GraphSession, "run", watched)
    setting = Setting(operation, 5, 1)
    found = module._measure(tiny_bundle, ON_CPU, setting, 0.0)
    name, shape = ("encoder", (5, 1, 8, 8)) if operation == "encode" else ("decoder", (5, 4))
    assert set(ran) == {(name, shape, 1)}
    assert len(ran) >= 10
    assert (found.setting, found.provider) == (setting, "cpu")
    assert 0 < found.p50_ms <= found.p95_ms


@pytest.mark.parametrize(
    ("seconds", "runs", "p95", "rate"),
    [
        pytest.param(0.0, 10, 65, 200, id="at least ten"),
        pytest.param(0.245, 15, 40, 240, id="for so long"),
    ],
)
def test_figures_are_those_of_the_clock(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, runs: int, p95: float, rate: float
) -> None:
    """Simulate a graph whose warm-up runs are slow.

    Later runs of 4 images take 10 ms, except one that takes 110 ms.
    """
    took = [0.5] * 3 + [0.01] * 9 + [0.11] + [0.01] * 100
    now, done = 0.0, 0

    def run(self: GraphSession, outputs: list[str], feeds: object) -> list[np.ndarray]:
        nonlocal now, done
        now, done = now + took[done], done + 1
        return []

    monkeypatch.setattr(GraphSession, "run", run)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    found = module._measure(tiny_bundle, ON_CPU, Setting("decode", 4, 1), seconds)
    assert done == 3 + runs
    assert found.p50_ms == pytest.approx(10)
    assert found.p95_ms == pytest.approx(p95)
    assert found.images_per_second == pytest.approx(rate)


def test_each_setting_runs_in_a_process_of_its_own(tiny_bundle: Path) -> None:
    chosen = settings((2,), (1,))
    timings = list(bench(tiny_bundle, ON_CPU, chosen, seconds=0.01))
    assert [found.setting for found in timings] == chosen
    for found in timings:
        assert found.provider == "cpu"
        assert 0 < found.p50_ms <= found.p95_ms
        assert found.images_per_second > 0
        assert Results(timings).best(found.setting.operation) == found
    assert multiprocessing.active_children() == []


def test_a_provider_that_does_not_run_is_one_line(tiny_bundle: Path) -> None:
    with pytest.raises(ProviderError, match=f"{MISSING} is not available"):
        next(bench(tiny_bundle, Selection(MISSING), settings((1,), (1,)), seconds=0.01))


@pytest.mark.parametrize("setting", [Setting("encode", 0, 1), Setting("decode", 1, 0)])
def test_settings_out_of_range_are_refused(tiny_bundle: Path, setting: Setting) -> None:
    with pytest.raises(UsageError, match="must be 1 or more"):
        module._measure(tiny_bundle, ON_CPU, setting, 0.01)


def test_a_process_that_ends_is_told_in_one_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a process that dies, from lack of memory or in a provider's library."""
    monkeypatch.setattr(module, "_measure", Bomb())
    with pytest.raises(VaekitError) as caught:
        next(bench(tiny_bundle, ON_CPU, settings((64,), (1,)), seconds=0.01))
    assert "\n" not in str(caught.value)
    assert "64" in str(caught.value)
