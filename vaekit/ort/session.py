"""Open a graph on an execution provider, and prove that it runs there.

``get_providers()`` proves nothing, because ONNX Runtime silently moves nodes that a provider does not support to the
CPU. This module reports node placement instead: ONNX Runtime's own record of the provider assigned to each node.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import BundleError, ProviderError, UsageError
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
    from vaekit.ort.confined import Limits

# Options that make providers compute in full float32 instead of TF32 or bfloat16.
_FP32_OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "OpenVINOExecutionProvider": {"device_type": "CPU", "precision": "FP32"},
}
_THREADS_OPTION = {"OpenVINOExecutionProvider": "num_of_threads", "XnnpackExecutionProvider": "intra_op_num_threads"}

_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"

# ONNX Runtime's log severities.
_WARNING = 2  # the default
_FATAL = 4  # silences ONNX Runtime: errors are raised as exceptions anyway

Feeds = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class GraphSession:
    """A graph loaded by ONNX Runtime, and the placement of its nodes."""

    name: str
    """``encoder`` or ``decoder``, for messages."""
    session: Any
    """ONNX Runtime's InferenceSession, or a ``vaekit.ort.confined.ConfinedSession``."""
    provider: str
    """The provider that was chosen, by its short name if it has one."""
    placement: dict[str, int]
    """Number of nodes on each provider, by ONNX Runtime's names. Providers without nodes are omitted."""
    options: Mapping[str, str] = field(default_factory=dict)
    """All options passed to the provider, including those that vaekit adds."""
    fell_back: tuple[str, ...] = ()
    """Why providers tried earlier were not used, and which nodes the chosen provider does not run."""

    @property
    def nodes(self) -> int:
        """Return the number of nodes on all providers."""
        return sum(self.placement.values())

    def run(self, outputs: list[str], feeds: Feeds) -> list[NDArray[np.float32]]:
        """Compute the outputs. Raises ProviderError if the provider fails."""
        try:
            results: list[NDArray[np.float32]] = self.session.run(outputs, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise ProviderError(f"the {self.name} failed on {self.provider}: {_message(error)}") from error
        return results

    def describe(self) -> str:
        """Describe the placement, as in ``decoder: 19 of 19 nodes on OpenVINO``."""
        parts = [f"{count} of {self.nodes} nodes on {display_name(name)}" for name, count in self.placement.items()]
        return f"{self.name}: {', '.join(parts)}"


class OpenGraphs:
    """The sessions that several models share, by name. Each is opened once, also by several threads.

    A forked process opens its own, because the threads of a session stay in the process that opened it.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._graphs: dict[str, GraphSession] = {}

    def get(self, name: str, opened: Callable[[], GraphSession]) -> GraphSession:
        """Return the session of this name, which ``opened`` opens on first use in this process."""
        if self._process != os.getpid():
            self._begin()
        if name not in self._graphs:
            with self._lock:
                if name not in self._graphs:
                    self._graphs[name] = opened()
        return self._graphs[name]


_sessions: weakref.WeakSet[Any] = weakref.WeakSet()


def _keep_sessions() -> None:
    """Never free the parent's sessions in a forked process: that would wait for their threads, which are not here."""
    import ctypes

    for session in list(_sessions):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_keep_sessions)


def open_graph(
    name: str, model: bytes, selection: Selection, *, probe: Feeds, threads: int | None = None, spinning: bool = True
) -> GraphSession:
    """Open a graph on the selected provider, with all optimisations enabled.

    A named provider is strict: ProviderError is raised unless it runs every node. If the selection allows fallback, the
    CPU runs the rest. ``auto`` chooses the first provider of AUTO_ORDER that is installed, can run the graph on
    ``probe``, and runs more than half of the nodes; otherwise it chooses the CPU.

    ``threads`` defaults to the number of processors that this process may use. With ``spinning``, waiting threads keep
    their processor busy, which is faster if no other work needs it.
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
                raise ProviderError(f"it runs {held} of {graph.nodes} nodes{lacking}")
        except ProviderError as error:
            reasons.append(f"{name}: {candidate.provider} was not used: {error}")
            continue
        if held < graph.nodes:
            reasons.append(f"{graph.describe()}, because {candidate.provider} does not run all of them")
        return dataclasses.replace(graph, fell_back=tuple(reasons))
    on_cpu = _open(name, model, Selection("cpu"), threads, spinning)
    return dataclasses.replace(on_cpu, fell_back=tuple(reasons))


def open_on_cpu(name: str, model: bytes, threads: int | None = None, spinning: bool = True) -> GraphSession:
    """Open a graph on the CPU, as ``open_graph`` does.

    Export uses this session for its parity gate. Raises ProviderError if ONNX Runtime is missing, and BundleError if it
    cannot load the graph.
    """
    return _open(name, model, Selection("cpu"), threads, spinning)


def open_confined(
    name: str, model: bytes, selection: Selection, limits: Limits, *, threads: int | None = None, spinning: bool = True
) -> GraphSession:
    """Open a graph from a stranger on the CPU, in a process of its own with limits (see ``vaekit.ort.confined``).

    Raises UsageError for a provider other than the CPU, and BundleError if the graph cannot be opened.
    """
    from vaekit.ort.confined import ConfinedSession, EndedError

    if selection.provider != AUTO and resolve(selection.provider) != CPU:
        raise UsageError(f"untrusted graphs run on the CPU only, not on {selection.provider}")
    try:
        session = ConfinedSession(name, model, threads or usable_cpus(), spinning, limits)
    except EndedError as error:
        raise BundleError(f"the {name} cannot be opened: {error}") from error
    return GraphSession(name, session, short_name(CPU), session.placement)


def _open_strictly(name: str, model: bytes, selection: Selection, threads: int | None, spinning: bool) -> GraphSession:
    graph = _open(name, model, selection, threads, spinning)
    full = resolve(selection.provider)
    if set(graph.placement) - {full}:
        held = graph.placement.get(full, 0)
        lacking = "" if held else _suspected_cause(selection)
        raise ProviderError(
            f"{selection.provider} runs {held} of the {graph.nodes} nodes of the {name}{lacking}. --allow-fallback "
            "lets the CPU run the others."
        )
    return graph


def _suspected_cause(selection: Selection) -> str:
    """Return a suffix for the error of a provider that runs no nodes."""
    if selection.options:
        given = " ".join(f"{key}={value}" for key, value in selection.options.items())
        return f"; check its options {given}"
    return _requirement(selection.provider)


def _requirement(provider: str) -> str:
    """Return an error suffix: what a provider needs in addition to its wheel."""
    needed = NEEDS.get(short_name(resolve(provider)))
    return f"; it needs {needed}" if needed else ""


def _open(name: str, model: bytes, selection: Selection, threads: int | None, spinning: bool) -> GraphSession:
    """Open a session on one provider, however many of the nodes it runs."""
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
        # Without enable_fallback=0, ONNX Runtime retries on the CPU and prints a message on stdout.
        with nullcontext() if full == CPU else _silenced(ort):
            session = ort.InferenceSession(model, options, enable_fallback=0, **arguments)
            _sessions.add(session)
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
        options.enable_mem_pattern = False  # required by DirectML's documentation
    return options


def _provider_options(full: str, asked: Mapping[str, str], threads: int) -> dict[str, str]:
    ours = dict(_FP32_OPTIONS.get(full, {}))
    if full in _THREADS_OPTION:
        ours[_THREADS_OPTION[full]] = str(threads)
    return {**ours, **asked}


def _placement(session: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts.most_common())


def _plugin_devices(ort: Any, asked: str, full: str) -> list[Any]:
    """Register a plugin's library and return its devices. Raises ProviderError if it has none."""
    if full not in plugins():
        hint = INSTALL_HINTS.get(short_name(full), "install the wheel or plugin that has it")
        available = ", ".join(map(display_name, available_providers()))
        raise ProviderError(f"{asked} is not available: this ONNX Runtime has {available}. To install it: {hint}")
    if complaint := _register(full):
        raise ProviderError(f"{asked} does not load: {complaint}{_requirement(asked)}")
    devices = [device for device in ort.get_ep_devices() if device.ep_name == full]
    if not devices:
        raise ProviderError(f"{asked} is installed, but finds no supported device on this machine{_requirement(asked)}")
    return devices


@functools.cache
def _register(full: str) -> str:
    """Register a plugin's library once per process; return an error message or ""."""
    ort = import_onnxruntime()
    try:
        with _silenced(ort):
            ort.register_execution_provider_library(full, library_path(plugins()[full]))
    except Exception as error:  # noqa: BLE001 — loading a third-party library may raise anything
        return _message(error)
    return ""


@contextmanager
def _silenced(ort: Any) -> Iterator[None]:
    """Silence ONNX Runtime's log within a block, and restore the default afterwards.

    ONNX Runtime does not report the level that a host program may have set. So graphs on the CPU are opened without
    this: only the libraries of other providers log more than the session's own level lets through.
    """
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def _message(error: Exception) -> str:
    """Return ONNX Runtime's message on one line, without source location or full stop."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^\S+\.(?:cc|cpp|h):\d+ .*?\)(?: const)? (?=\S)", "", text).rstrip(".")
