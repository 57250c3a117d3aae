"""ONNX Runtime's execution providers: their names, what is installed here, and what installs the others."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaekit.errors import ProviderError, UsageError

if TYPE_CHECKING:
    from types import ModuleType

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


_REDUCED = ("CoreMLExecutionProvider", "QNNExecutionProvider")  # neural engines compute in float16 or integers

_REMOTE = "AzureExecutionProvider"  # calls a service elsewhere: nothing that a device runs

FATAL = 4  # ONNX Runtime's log severity: what it would print otherwise also comes as an exception


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
    """The class in ``vaekit.bundle.manifest.PROVIDER_CLASSES`` of a provider of ONNX Runtime's name."""
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


def needs(provider: str, held: int = 0) -> str:
    """What a provider that took nothing may lack, to be put behind the complaint."""
    needed = NEEDS.get(short_name(resolve(provider)))
    return f"; it needs {needed}" if needed and not held else ""


def plugin_devices(ort: Any, asked: str, full: str) -> list[Any]:
    """The devices of a plugin's provider, its library registered. Raises ProviderError where there are none."""
    if full not in plugins():
        hint = INSTALL_HINTS.get(short_name(full), "install the wheel or plugin that has it")
        raise ProviderError(
            f"{asked} is not available: ONNX Runtime here has {', '.join(map(spoken, available_providers()))}. To get "
            f"it, {hint}"
        )
    if complaint := _register(full):
        raise ProviderError(f"{asked} does not load: {complaint}{needs(asked)}")
    devices = [device for device in ort.get_ep_devices() if device.ep_name == full]
    if not devices:
        raise ProviderError(f"{asked} is installed, but finds no device of its own on this machine{needs(asked)}")
    return devices


@functools.cache
def _register(full: str) -> str:
    """Register a plugin's library with ONNX Runtime, once a process: "", or why that failed."""
    ort = import_onnxruntime()
    try:
        with quiet(ort):
            ort.register_execution_provider_library(full, _library_path(plugins()[full]))
    except Exception as error:  # noqa: BLE001 — whatever loading a foreign library raises
        return one_line(error)
    return ""


@contextmanager
def quiet(ort: Any) -> Iterator[None]:
    """ONNX Runtime's own log lines off for a while, then at its default again: what failed comes as an exception."""
    ort.set_default_logger_severity(FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)


def one_line(error: Exception) -> str:
    """ONNX Runtime's message without the place in its sources that it starts with, and without its full stop."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^\S+\.(?:cc|cpp|h):\d+ .*?\)(?: const)? (?=\S)", "", text).rstrip(".")
