"""Opening a graph on one of ONNX Runtime's execution providers, and proving that it runs there.

``get_providers()`` proves nothing: ONNX Runtime moves what a provider does not take to the CPU without a word. What is
reported here is node placement, ONNX Runtime's own record of which provider each node of the graph was assigned to.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import BundleError, ProviderError
from vaekit.ort.providers import (
    AUTO,
    AUTO_ORDER,
    CPU,
    FATAL,
    PROVIDERS,
    Selection,
    import_onnxruntime,
    is_available,
    needs,
    one_line,
    plugin_devices,
    quiet,
    resolve,
    short_name,
    spoken,
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


_PLACEMENT = "session.record_ep_graph_assignment_info"


Feeds = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Graph:
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

    def run(self, outputs: list[str], feeds: Feeds) -> list[NDArray[np.float32]]:
        """The graph's outputs. Raises ProviderError where the provider fails."""
        try:
            results: list[NDArray[np.float32]] = self.session.run(outputs, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise ProviderError(f"the {self.name} failed on {self.provider}: {one_line(error)}") from error
        return results

    def describe(self) -> str:
        """Placement in words: ``decoder: 19 of 19 nodes on OpenVINO``."""
        total = sum(self.placement.values())
        parts = [f"{count} of {total} nodes on {spoken(name)}" for name, count in self.placement.items()]
        return f"{self.name}: {', '.join(parts)}"


def open_graph(
    name: str, model: bytes, selection: Selection, *, probe: Feeds, threads: int | None = None, spinning: bool = True
) -> Graph:
    """Open a graph on the selected provider, with every optimisation on.

    A named provider is strict: it runs every node or ProviderError is raised. ``auto`` takes the first of AUTO_ORDER
    that is installed, runs ``probe`` and holds more than half of the nodes, and else the CPU, which is also what a
    named provider falls back to where the selection allows it. ``threads`` defaults to the processors that this process
    may use; ``spinning`` lets waiting threads burn their processor, which is quicker where nothing else needs it.
    """
    wanted = selection.provider
    if wanted == AUTO:
        tried = [short for short in AUTO_ORDER if is_available(PROVIDERS[short])]
        candidates = [Selection(short, allow_fallback=True) for short in tried]
    elif selection.allow_fallback and resolve(wanted) != CPU:
        candidates = [selection]
    else:
        return _open_strictly(name, model, selection, threads, spinning)
    reasons: list[str] = []
    for candidate in candidates:
        try:
            graph = _open(name, model, candidate, threads, spinning)
            graph.run([], probe)
            held = graph.placement.get(resolve(candidate.provider), 0)
            total = sum(graph.placement.values())
            if held == 0 or (wanted == AUTO and 2 * held <= total):
                raise ProviderError(f"it takes {held} of {total} nodes{needs(candidate.provider, held)}")
        except ProviderError as error:
            reasons.append(f"{name}: {candidate.provider} was not taken: {error}")
            continue
        if held < total:
            reasons.append(f"{graph.describe()}, which {candidate.provider} does not run")
        return dataclasses.replace(graph, fell_back=tuple(reasons))
    on_cpu = _open(name, model, Selection("cpu"), threads, spinning)
    return dataclasses.replace(on_cpu, fell_back=tuple(reasons))


def open_on_cpu(name: str, model: bytes) -> Graph:
    """Open a graph on the CPU, as ``open_graph`` does; export gates on this very session.

    Raises ProviderError without ONNX Runtime, BundleError where it cannot load the graph.
    """
    return _open(name, model, Selection("cpu"), None, True)


def _open_strictly(name: str, model: bytes, selection: Selection, threads: int | None, spinning: bool) -> Graph:
    graph = _open(name, model, selection, threads, spinning)
    full = resolve(selection.provider)
    if set(graph.placement) - {full}:
        held = graph.placement.get(full, 0)
        raise ProviderError(
            f"{selection.provider} takes {held} of the {sum(graph.placement.values())} nodes of the {name}"
            f"{_lacking(selection, held)}. --allow-fallback lets the CPU run what it does not."
        )
    return graph


def _lacking(selection: Selection, held: int) -> str:
    """Why a provider may have taken nothing: its options where some were given, else what it needs."""
    if selection.options and not held:
        given = " ".join(f"{key}={value}" for key, value in selection.options.items())
        return f"; check its options {given}"
    return needs(selection.provider, held)


def _open(name: str, model: bytes, selection: Selection, threads: int | None, spinning: bool) -> Graph:
    """A session on one provider, whatever share of the nodes it took."""
    ort = import_onnxruntime()
    full = resolve(selection.provider)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or usable_cpus()
    options.log_severity_level = FATAL
    options.add_session_config_entry(_PLACEMENT, "1")
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if full == "DmlExecutionProvider":
        options.enable_mem_pattern = False  # as its documentation asks for
    provider_options = _provider_options(full, selection.options, options.intra_op_num_threads)
    arguments: dict[str, Any] = {}
    if full in ort.get_available_providers():
        arguments["providers"] = [(full, provider_options)]
    else:
        options.add_provider_for_devices(plugin_devices(ort, selection.provider, full), provider_options)
    try:
        # enable_fallback=0: else a failing provider is retried on the CPU, with a message on stdout.
        with quiet(ort):
            session = ort.InferenceSession(model, options, enable_fallback=0, **arguments)
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        if full == CPU:
            raise BundleError(f"ONNX Runtime {ort.__version__} cannot load this graph: {one_line(error)}") from error
        raise ProviderError(
            f"{selection.provider} cannot load the {name}: {one_line(error)}{needs(selection.provider)}"
        ) from error
    return Graph(name, session, short_name(full), _placement(session), provider_options)


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
