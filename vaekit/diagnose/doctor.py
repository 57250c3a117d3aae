"""Examine this machine: Python, the processor, ONNX Runtime's wheels, and which providers work."""

from __future__ import annotations

import base64
import json
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Literal, get_args

import numpy as np

import vaekit
from vaekit.errors import VaekitError
from vaekit.ort.providers import (
    INSTALL_HINTS,
    PROVIDERS,
    Selection,
    available_providers,
    import_onnxruntime,
    plugins,
    short_name,
)
from vaekit.ort.session import open_graph
from vaekit.system.machine import available_memory, has_fast_int8, processor_flags, processor_name, usable_cpus
from vaekit.types import one_of

State = Literal["runs", "fails", "missing"]
"""The state of a provider. ``runs``: it ran all nodes of the probe correctly. ``fails``: it is installed but does not
load, run or compute correctly. ``missing``: it is not installed."""
STATES: tuple[State, ...] = get_args(State)

_TELLING_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_PROBE_SECONDS = 120

# y = sigmoid(conv(x)) for x (batch, 1, 4, 4), with a 3x3 kernel of ninths and a padding of one; opset 17, IR 8.
# tests/export/test_probe.py builds this model again and compares.
PROBE_MODEL = base64.b64decode(
    "CAg6tQEKIgoBeAoBdxIBYyIEQ29udioRCgRwYWRzQAFAAUABQAGgAQcKDwoBYxIBeSIHU2lnbW9pZBIFcHJvYmUqMwgBCAEIAwgDEAFCAXdKJD"
    "mO4z05juM9OY7jPTmO4z05juM9OY7jPTmO4z05juM9OY7jPVogCgF4EhsKGQgBEhUKBxIFYmF0Y2gKAggBCgIIBAoCCARiIAoBeRIbChkIARIV"
    "CgcSBWJhdGNoCgIIAQoCCAQKAggEQgQKABAR"
)


@dataclass(frozen=True)
class ProviderReport:
    """The result of trying a provider."""

    name: str
    """vaekit's short name, or ONNX Runtime's own name without one."""
    state: State
    detail: str
    """Node placement, or why it does not run and what it needs."""
    install: str
    """How to install it; empty if it is installed."""


@dataclass(frozen=True)
class Report:
    """A description of this machine and what it can run."""

    vaekit: str
    python: str
    platform: str
    processor: str
    flags: tuple[str, ...]
    """Instruction sets that matter to inference."""
    fast_int8: bool
    """Whether the processor sums 8-bit products in 32 bits in one instruction (VNNI, or ARM's dot product)."""
    cpus: int
    """Processors that this process may use."""
    memory_gb: float
    """Available memory."""
    onnxruntime: str | None
    wheels: tuple[str, ...]
    """Installed distributions that own the folder ``onnxruntime``, with their versions."""
    plugins: tuple[str, ...]
    """Providers in installed plugin packages."""
    problems: tuple[str, ...]
    providers: tuple[ProviderReport, ...]


def examine() -> Report:
    """Examine the machine, and try each installed provider in a separate process."""
    flags = processor_flags()
    wheels = _wheels()
    version, problems = _onnxruntime_state(wheels)
    return Report(
        vaekit=vaekit.__version__,
        python=f"{platform.python_version()} ({platform.python_implementation()}) at {sys.executable}",
        platform=platform.platform(),
        processor=processor_name(),
        flags=tuple(flag for flag in _TELLING_FLAGS if flag in flags),
        fast_int8=has_fast_int8(flags),
        cpus=usable_cpus(),
        memory_gb=available_memory() / 2**30,
        onnxruntime=version,
        wheels=tuple(f"{name} {number}" for name, number in wheels.items()),
        plugins=tuple(plugins()) if version else (),
        problems=tuple(problems),
        providers=tuple(_try_providers(version is not None)),
    )


def probe(name: str) -> tuple[State, str]:
    """Run the probe model on a provider in this process; return state and detail."""
    image = np.ones((1, 1, 4, 4), np.float32)
    reach = np.array([2.0, 3.0, 3.0, 2.0])  # pixels of the image that the kernel covers, along one axis
    expected = 1 / (1 + np.exp(-np.outer(reach, reach) / 9))
    try:
        graph = open_graph("probe", PROBE_MODEL, Selection(name), probe={"x": image})
        (result,) = graph.run(["y"], {"x": image})
    except VaekitError as error:
        return "fails", str(error)
    if not np.allclose(result[0, 0], expected, atol=2e-2):
        return "fails", f"it computes {result[0, 0, 0, 0]:.4g} instead of {expected[0, 0]:.4g}"
    return "runs", graph.describe()


def _wheels() -> dict[str, str]:
    """Return name and version of each distribution that owns files of onnxruntime."""
    found = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata.get_all("Name") or [""])[0]
        if name.lower().startswith(("onnxruntime", "ort-nightly")) and any(
            file.parts[0] == "onnxruntime" for file in distribution.files or ()
        ):
            found[name] = distribution.version
    return found


def _onnxruntime_state(wheels: dict[str, str]) -> tuple[str | None, list[str]]:
    """Return ONNX Runtime's version (None if unusable) and its problems, in words."""
    problems = []
    if len(wheels) > 1:
        problems.append(
            f"{' and '.join(wheels)} own the same files and overwrite each other: pip uninstall {' '.join(wheels)}; "
            "then install only one of them"
        )
    try:
        return str(import_onnxruntime().__version__), problems
    except VaekitError as error:
        return None, [*problems, str(error)]


def _try_providers(installed: bool) -> list[ProviderReport]:
    here = available_providers() if installed else ()
    names = [*PROVIDERS, *(full for full in here if short_name(full) == full)]
    return [_try(name, PROVIDERS.get(name, name) in here) for name in names]


def _try(name: str, installed: bool) -> ProviderReport:
    if not installed:
        return ProviderReport(name, "missing", "not in the installed ONNX Runtime", INSTALL_HINTS.get(name, ""))
    state, detail = _probe_elsewhere(name)
    return ProviderReport(name, state, detail, "")


def _probe_elsewhere(name: str) -> tuple[State, str]:
    """Run ``probe`` in a separate process, because a provider's library may crash it."""
    command = [sys.executable, "-P", "-m", "vaekit.diagnose.doctor", name]  # -P: nothing from the current folder
    try:
        done = subprocess.run(  # noqa: S603 — runs this module
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "fails", f"it did not answer within {_PROBE_SECONDS} seconds"
    if done.returncode < 0:
        return "fails", f"its process was killed by {signal.Signals(-done.returncode).name}"
    try:
        answer = json.loads(done.stdout.splitlines()[-1])  # earlier lines may come from the provider's library
    except (ValueError, IndexError):
        answer = None
    if not isinstance(answer, list) or len(answer) != 2 or answer[0] not in STATES:
        return "fails", f"its process ended with code {done.returncode} and without a result"
    return one_of(STATES, answer[0], "state"), str(answer[1])


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1])))
