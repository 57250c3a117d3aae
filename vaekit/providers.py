"""ONNX Runtime's execution providers: opening a graph on one, and proving that it runs there.

``get_providers()`` proves nothing: ONNX Runtime moves what a provider does not take to the CPU without a word. What is
reported here is node placement, ONNX Runtime's own record of which provider each node of the graph was assigned to.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import BundleError, ProviderError, UsageError
from vaekit.machine import usable_cpus

if TYPE_CHECKING:
    from types import ModuleType

    import onnxruntime

CPU = "CPUExecutionProvider"

PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""vaekit's short names for ONNX Runtime's providers; any name of ONNX Runtime's own can be given as well."""

AUTO = "auto"
AUTO_ORDER = ("cuda", "coreml", "directml", "openvino")
"""What ``auto`` tries before the CPU, where it is installed. TensorRT compiles for minutes, and so must be named."""

INSTALL_HINTS = {
    "cpu": "pip install 'vaekit[cpu]'",
    "cuda": "on a machine with an NVIDIA GPU: pip uninstall onnxruntime; pip install 'vaekit[gpu]'",
    "tensorrt": "on a machine with an NVIDIA GPU and TensorRT: pip uninstall onnxruntime; pip install 'vaekit[gpu]'",
    "openvino": "pip uninstall onnxruntime; pip install 'vaekit[openvino]', or for Intel devices beside onnxruntime: "
    "pip install onnxruntime-ep-openvino",
    "directml": "on Windows: pip uninstall onnxruntime; pip install 'vaekit[directml]'",
    "coreml": "it comes with onnxruntime on macOS: pip install 'vaekit[cpu]'",
    "migraphx": "on a machine with an AMD GPU and ROCm: pip uninstall onnxruntime; pip install onnxruntime-migraphx",
    "webgpu": "pip install onnxruntime-ep-webgpu, beside onnxruntime",
    "qnn": "on a Qualcomm device: pip install onnxruntime-qnn, beside onnxruntime",
    "xnnpack": "build ONNX Runtime with --use_xnnpack: no wheel of it has XNNPACK",
}
"""What makes each provider available, in words."""

NEEDS = {
    "cuda": "an NVIDIA GPU with its driver, CUDA and cuDNN: pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "tensorrt": "an NVIDIA GPU with its driver, CUDA, cuDNN and TensorRT: pip install 'onnxruntime-gpu[cuda,cudnn]' "
    "tensorrt",
    "openvino": "as a plugin, an Intel device; on other processors: pip uninstall onnxruntime onnxruntime-ep-openvino; "
    "pip install 'vaekit[openvino]'",
    "directml": "a GPU with a DirectX 12 driver",
    "coreml": "macOS on Apple's own processors",
    "migraphx": "an AMD GPU with ROCm and MIGraphX",
    "webgpu": "a GPU with a Vulkan, Metal or Direct3D 12 driver",
    "qnn": "a Qualcomm processor with its driver",
}
"""What each provider needs beside its wheel, in words."""

_WHEEL_HINT = "pip install 'vaekit[cpu]' (or [gpu], [openvino], [directml])"

# Full float32 where a provider would else round products to TF32 or bfloat16.
_FP32_OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "OpenVINOExecutionProvider": {"device_type": "CPU", "precision": "FP32"},
}
_THREADS_OPTION = {"OpenVINOExecutionProvider": "num_of_threads", "XnnpackExecutionProvider": "intra_op_num_threads"}

_REDUCED = ("CoreMLExecutionProvider", "QNNExecutionProvider")  # neural engines compute in float16 or integers

_REMOTE = "AzureExecutionProvider"  # calls a service elsewhere: nothing that a device runs

_PLACEMENT = "session.record_ep_graph_assignment_info"
_FATAL = 4  # ONNX Runtime's log severity: what it would print otherwise also comes as an exception

Feeds = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Selection:
    """Which provider is to run a graph."""

    provider: str = AUTO
    """``auto``, one of PROVIDERS, or a name of ONNX Runtime's own."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the provider, by ONNX Runtime's names for them."""
    allow_fallback: bool = False
    """Whether nodes, or the whole graph, may run on the CPU where the named provider does not take them."""

    def __post_init__(self) -> None:
        if self.provider != AUTO:
            resolve(self.provider)
        if self.options and self.provider == AUTO:
            raise UsageError("provider options belong to one provider: name it with --provider")
        if self.options and resolve(self.provider) == CPU:
            raise UsageError("the provider cpu takes no options; --threads sets its threads")


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
            raise ProviderError(f"the {self.name} failed on {self.provider}: {_one_line(error)}") from error
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
                raise ProviderError(f"it takes {held} of {total} nodes{_needs(candidate.provider, held)}")
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


def resolve(name: str) -> str:
    """ONNX Runtime's name of a provider. Raises UsageError for a name that neither knows."""
    if name in PROVIDERS:
        return PROVIDERS[name]
    known = {full.lower(): full for full in (*PROVIDERS.values(), *available_providers())}
    if name.lower() in known:
        return known[name.lower()]
    if re.fullmatch(r"\w+ExecutionProvider", name):
        return name
    raise UsageError(
        f"there is no provider {name!r}: choose auto, {', '.join(PROVIDERS)}, or a name of ONNX Runtime's own, here "
        f"{', '.join(available_providers())}"
    )


def provider_class(full: str) -> str:
    """The class in ``vaekit.bundle.PROVIDER_CLASSES`` of a provider of ONNX Runtime's name."""
    if full in _REDUCED:
        return "reduced"
    return "cpu" if full in (CPU, "XnnpackExecutionProvider") else "accelerator"


def short_name(full: str) -> str:
    """vaekit's name of a provider of ONNX Runtime's, or that name itself."""
    return next((short for short, name in PROVIDERS.items() if name == full), full)


def spoken(full: str) -> str:
    """A provider's name as people say it: OpenVINO, CUDA, CPU."""
    return full.removesuffix("ExecutionProvider")


def available_providers() -> tuple[str, ...]:
    """ONNX Runtime's names of the providers that the installed wheel and plugins have; nothing is loaded for it."""
    ort = import_onnxruntime()
    built_in = [name for name in ort.get_available_providers() if name != _REMOTE]
    return tuple(dict.fromkeys((*built_in, *plugins())))


def is_available(full: str) -> bool:
    """Whether the installed wheel, or a plugin beside it, has a provider of ONNX Runtime's name."""
    return full in available_providers()


@functools.cache
def plugins() -> dict[str, ModuleType]:
    """Installed plugin packages by the name of the provider that each carries.

    A plugin is a package ``onnxruntime_…`` that says where its library lies (``get_library_path``), for
    ``onnxruntime.register_execution_provider_library``.
    """
    import importlib

    found: dict[str, ModuleType] = {}
    for package in sorted({path.name for folder in sys.path for path in Path(folder).glob("onnxruntime_*")}):
        if not package.isidentifier():
            continue  # its .dist-info
        try:
            module = importlib.import_module(package)
        except Exception:  # noqa: BLE001, S112 — somebody else's package; one that does not import is not there
            continue
        name = _plugin_provider(module)
        if name is not None:
            found[name] = module
    return found


def import_onnxruntime() -> Any:
    """The onnxruntime module. Raises ProviderError with what to install where there is none."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(f"no ONNX Runtime is installed here: {_WHEEL_HINT}") from error
    if not hasattr(onnxruntime, "InferenceSession"):  # what uninstalling one of two wheels leaves behind
        raise ProviderError(
            "ONNX Runtime is damaged here, as after uninstalling one of two wheels: pip uninstall what `vaekit doctor` "
            f"lists, then {_WHEEL_HINT}"
        )
    return onnxruntime


def _plugin_provider(module: ModuleType) -> str | None:
    """The name of the provider that a plugin carries; None where the package is none, or fails to say."""
    if _library_path(module) is None:
        return None
    try:
        if hasattr(module, "get_ep_names"):
            return str(module.get_ep_names()[0])
        if hasattr(module, "get_ep_name"):
            return str(module.get_ep_name())
        return str(module.EP_NAME)
    except Exception:  # noqa: BLE001 — somebody else's package, which must not break the other providers
        return None


def _library_path(module: ModuleType) -> str | None:
    for attribute in ("get_library_path", "library_path"):
        if hasattr(module, attribute):
            try:
                return str(getattr(module, attribute)())
            except Exception:  # noqa: BLE001 — a plugin that does not find its own library has none
                return None
    return None


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
    return _needs(selection.provider, held)


def _needs(provider: str, held: int = 0) -> str:
    """What a provider that took nothing may lack, to be put behind the complaint."""
    needed = NEEDS.get(short_name(resolve(provider)))
    return f"; it needs {needed}" if needed and not held else ""


def _open(name: str, model: bytes, selection: Selection, threads: int | None, spinning: bool) -> Graph:
    """A session on one provider, whatever share of the nodes it took."""
    ort = import_onnxruntime()
    full = resolve(selection.provider)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or usable_cpus()
    options.log_severity_level = _FATAL
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
        options.add_provider_for_devices(_plugin_devices(ort, selection.provider, full), provider_options)
    try:
        # enable_fallback=0: else a failing provider is retried on the CPU, with a message on stdout.
        with _quiet(ort):
            session = ort.InferenceSession(model, options, enable_fallback=0, **arguments)
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        if full == CPU:
            raise BundleError(f"ONNX Runtime {ort.__version__} cannot load this graph: {_one_line(error)}") from error
        raise ProviderError(
            f"{selection.provider} cannot load the {name}: {_one_line(error)}{_needs(selection.provider)}"
        ) from error
    return Graph(name, session, short_name(full), _placement(session), provider_options)


def _provider_options(full: str, asked: Mapping[str, str], threads: int) -> dict[str, str]:
    ours = dict(_FP32_OPTIONS.get(full, {}))
    if full in _THREADS_OPTION:
        ours[_THREADS_OPTION[full]] = str(threads)
    return {**ours, **asked}


def _plugin_devices(ort: Any, asked: str, full: str) -> list[Any]:
    """The devices of a plugin's provider, its library registered. Raises ProviderError where there are none."""
    if full not in plugins():
        hint = INSTALL_HINTS.get(short_name(full), "install the wheel or plugin that has it")
        raise ProviderError(
            f"{asked} is not available: ONNX Runtime here has {', '.join(map(spoken, available_providers()))}. To get "
            f"it, {hint}"
        )
    if complaint := _register(full):
        raise ProviderError(f"{asked} does not load: {complaint}{_needs(asked)}")
    devices = [device for device in ort.get_ep_devices() if device.ep_name == full]
    if not devices:
        raise ProviderError(f"{asked} is installed, but finds no device of its own on this machine{_needs(asked)}")
    return devices


@functools.cache
def _register(full: str) -> str:
    """Register a plugin's library with ONNX Runtime, once a process: "", or why that failed."""
    ort = import_onnxruntime()
    try:
        with _quiet(ort):
            ort.register_execution_provider_library(full, _library_path(plugins()[full]))
    except Exception as error:  # noqa: BLE001 — whatever loading a foreign library raises
        return _one_line(error)
    return ""


@contextmanager
def _quiet(ort: Any) -> Iterator[None]:
    """ONNX Runtime's own log lines off for a while, then at its default again: what failed comes as an exception."""
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)


def _placement(session: onnxruntime.InferenceSession) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts.most_common())


def _one_line(error: Exception) -> str:
    """ONNX Runtime's message without the place in its sources that it starts with, and without its full stop."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^\S+\.(?:cc|cpp|h):\d+ .*?\)(?: const)? (?=\S)", "", text).rstrip(".")
