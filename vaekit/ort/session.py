"""Opening a graph on one of ONNX Runtime's execution providers, and proving that it runs there.

``get_providers()`` proves nothing: ONNX Runtime moves what a provider does not take to the CPU without a word. What is
reported here is node placement, ONNX Runtime's own record of which provider each node of the graph was assigned to.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import BundleError, ProviderError
from vaekit.ort.providers import (
    AUTO,
    AUTO_ORDER,
    CPU,
    INSTALL_HINTS,
    NEEDS,
    PROVIDERS,
    Selection,
    available_providers,
    display_name,
    import_onnxruntime,
    is_available,
    library_path,
    plugins,
    resolve,
    short_name,
)
from vaekit.system.machine import usable_cpus

if TYPE_CHECKING:
    import onnxruntime

# Full float32 where a provider would else round products to TF32 or bfloat16.
_FP32_OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "OpenVINOExecutionProvider": {"device_type": "CPU", "precision": "FP32"},
}
_THREADS_OPTION = {"OpenVINOExecutionProvider": "num_of_threads", "XnnpackExecutionProvider": "intra_op_num_threads"}

_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"

# ONNX Runtime's log severities.
_WARNING = 2  # its default
_FATAL = 4  # silent: the errors that it would print are raised as exceptions too

Feeds = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class GraphSession:
    """A graph that ONNX Runtime has loaded, and what was proved of where it runs."""

    name: str
    """``encoder`` or ``decoder``, for messages."""
    session: onnxruntime.InferenceSession
    provider: str
    """The provider that was taken, by its short name where it has one."""
    placement: dict[str, int]
    """Nodes by ONNX Runtime's name of the provider that they run on, none with zero nodes."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options that the provider was given, vaekit's own included."""
    fell_back: tuple[str, ...] = ()
    """Why each provider that was tried before this one was not taken, and what it left to others."""

    @property
    def nodes(self) -> int:
        """Number of nodes, wherever they run."""
        return sum(self.placement.values())

    def run(self, outputs: list[str], feeds: Feeds) -> list[NDArray[np.float32]]:
        """Compute the outputs. Raises ProviderError where the provider fails."""
        try:
            results: list[NDArray[np.float32]] = self.session.run(outputs, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise ProviderError(f"the {self.name} failed on {self.provider}: {_message(error)}") from error
        return results

    def describe(self) -> str:
        """Return the placement in words: ``decoder: 19 of 19 nodes on OpenVINO``."""
        parts = [f"{count} of {self.nodes} nodes on {display_name(name)}" for name, count in self.placement.items()]
        return f"{self.name}: {', '.join(parts)}"


def open_graph(
    name: str, model: bytes, selection: Selection, *, probe: Feeds, threads: int | None = None, spinning: bool = True
) -> GraphSession:
    """Open a graph on the selected provider, with every optimisation on.

    A named provider is strict: it runs every node or ProviderError is raised. ``auto`` takes the first of AUTO_ORDER
    that is installed, runs ``probe`` and holds more than half of the nodes, and else the CPU, which is also what a
    named provider falls back to where the selection allows it. ``threads`` defaults to the processors that this process
    may use; ``spinning`` lets waiting threads burn their processor, which is quicker where nothing else needs it.
    """
    is_auto = selection.provider == AUTO
    if is_auto:
        tried = [short for short in AUTO_ORDER if is_available(PROVIDERS[short])]
        candidates = [Selection(short, allow_fallback=True) for short in tried]
    elif selection.allow_fallback and resolve(selection.provider) != CPU:
        candidates = [selection]
    else:
        return _open_strictly(name, model, selection, threads, spinning)
    reasons: list[str] = []
    for candidate in candidates:
        try:
            graph = _open(name, model, candidate, threads, spinning)
            graph.run([], probe)
            held = graph.placement.get(resolve(candidate.provider), 0)
            if held == 0 or (is_auto and 2 * held <= graph.nodes):
                lacking = "" if held else _requirement(candidate.provider)
                raise ProviderError(f"it takes {held} of {graph.nodes} nodes{lacking}")
        except ProviderError as error:
            reasons.append(f"{name}: {candidate.provider} was not taken: {error}")
            continue
        if held < graph.nodes:
            reasons.append(f"{graph.describe()}, which {candidate.provider} does not run")
        return dataclasses.replace(graph, fell_back=tuple(reasons))
    on_cpu = _open(name, model, Selection("cpu"), threads, spinning)
    return dataclasses.replace(on_cpu, fell_back=tuple(reasons))


def open_on_cpu(name: str, model: bytes) -> GraphSession:
    """Open a graph on the CPU, as ``open_graph`` does; export gates on this very session.

    Raises ProviderError without ONNX Runtime, BundleError where it cannot load the graph.
    """
    return _open(name, model, Selection("cpu"), None, True)


def _open_strictly(name: str, model: bytes, selection: Selection, threads: int | None, spinning: bool) -> GraphSession:
    graph = _open(name, model, selection, threads, spinning)
    full = resolve(selection.provider)
    if set(graph.placement) - {full}:
        held = graph.placement.get(full, 0)
        lacking = "" if held else _suspected_cause(selection)
        raise ProviderError(
            f"{selection.provider} takes {held} of the {graph.nodes} nodes of the {name}{lacking}. --allow-fallback "
            "lets the CPU run what it does not."
        )
    return graph


def _suspected_cause(selection: Selection) -> str:
    """Suffix for the error of a provider that took nothing: check its options, if any, or what it needs."""
    if selection.options:
        given = " ".join(f"{key}={value}" for key, value in selection.options.items())
        return f"; check its options {given}"
    return _requirement(selection.provider)


def _requirement(provider: str) -> str:
    """Suffix for the error of a provider that does not load or run: what it needs beside its wheel."""
    needed = NEEDS.get(short_name(resolve(provider)))
    return f"; it needs {needed}" if needed else ""


def _open(name: str, model: bytes, selection: Selection, threads: int | None, spinning: bool) -> GraphSession:
    """A session on one provider, whatever share of the nodes it took."""
    ort = import_onnxruntime()
    full = resolve(selection.provider)
    threads = threads or usable_cpus()
    options = _session_options(ort, full, threads, spinning)
    provider_options = _provider_options(full, selection.options, threads)
    arguments: dict[str, Any] = {}
    if full in ort.get_available_providers():
        arguments["providers"] = [(full, provider_options)]
    else:
        options.add_provider_for_devices(_plugin_devices(ort, selection.provider, full), provider_options)
    try:
        # enable_fallback=0: else a failing provider is retried on the CPU, with a message on stdout.
        with nullcontext() if full == CPU else _silenced(ort):
            session = ort.InferenceSession(model, options, enable_fallback=0, **arguments)
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        if full == CPU:
            raise BundleError(f"ONNX Runtime {ort.__version__} cannot load this graph: {_message(error)}") from error
        raise ProviderError(
            f"{selection.provider} cannot load the {name}: {_message(error)}{_requirement(selection.provider)}"
        ) from error
    return GraphSession(name, session, short_name(full), _placement(session), provider_options)


def _session_options(ort: Any, full: str, threads: int, spinning: bool) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL
    options.add_session_config_entry(_RECORD_PLACEMENT, "1")
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if full == "DmlExecutionProvider":
        options.enable_mem_pattern = False  # as its documentation asks for
    return options


def _provider_options(full: str, asked: Mapping[str, str], threads: int) -> dict[str, str]:
    ours = dict(_FP32_OPTIONS.get(full, {}))
    if full in _THREADS_OPTION:
        ours[_THREADS_OPTION[full]] = str(threads)
    return {**ours, **asked}


def _placement(session: onnxruntime.InferenceSession) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts.most_common())


def _plugin_devices(ort: Any, asked: str, full: str) -> list[Any]:
    """The devices of a plugin's provider, its library registered. Raises ProviderError where there are none."""
    if full not in plugins():
        hint = INSTALL_HINTS.get(short_name(full), "install the wheel or plugin that has it")
        available = ", ".join(map(display_name, available_providers()))
        raise ProviderError(f"{asked} is not available: ONNX Runtime here has {available}. To get it, {hint}")
    if complaint := _register(full):
        raise ProviderError(f"{asked} does not load: {complaint}{_requirement(asked)}")
    devices = [device for device in ort.get_ep_devices() if device.ep_name == full]
    if not devices:
        raise ProviderError(
            f"{asked} is installed, but finds no device of its own on this machine{_requirement(asked)}"
        )
    return devices


@functools.cache
def _register(full: str) -> str:
    """Register a plugin's library with ONNX Runtime, once a process: "", or why that failed."""
    ort = import_onnxruntime()
    try:
        with _silenced(ort):
            ort.register_execution_provider_library(full, library_path(plugins()[full]))
    except Exception as error:  # noqa: BLE001 — whatever loading a foreign library raises
        return _message(error)
    return ""


@contextmanager
def _silenced(ort: Any) -> Iterator[None]:
    """Turn off ONNX Runtime's own log lines for a block, and back to their default after it.

    ONNX Runtime does not tell the level that a host program may have set, so a graph on the CPU is opened without this:
    only the libraries of other providers log more than the session's own level lets through.
    """
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def _message(error: Exception) -> str:
    """ONNX Runtime's message on one line, without the place in its sources that it starts with or its full stop."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^\S+\.(?:cc|cpp|h):\d+ .*?\)(?: const)? (?=\S)", "", text).rstrip(".")
