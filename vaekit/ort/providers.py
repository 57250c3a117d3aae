"""ONNX Runtime's execution providers: their names, which are installed, and how to install the others."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaekit.errors import ProviderError, UsageError
from vaekit.types import ProviderClass

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
"""vaekit's short names of providers. ONNX Runtime's own names are accepted too."""

AUTO = "auto"
AUTO_ORDER = ("cuda", "coreml", "directml", "openvino")
"""The providers that ``auto`` tries before the CPU, if installed. TensorRT is missing because it compiles for minutes,
so users must name it."""

ON_GPU = ("cuda", "tensorrt", "directml", "migraphx", "webgpu")
"""The providers that compute on a GPU."""

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
"""How to install each provider."""

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
"""What each provider needs in addition to its wheel."""

_WHEEL_HINT = "pip install 'vaekit[cpu]' (or [gpu], [openvino], [directml])"

_REDUCED = ("CoreMLExecutionProvider", "QNNExecutionProvider")  # neural engines compute in float16 or integers

_REMOTE = "AzureExecutionProvider"  # calls a remote service and runs nothing on this machine


@dataclass(frozen=True)
class Selection:
    """The choice of a provider."""

    provider: str = AUTO
    """``auto``, one of PROVIDERS, or ONNX Runtime's own name of a provider."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the provider, by ONNX Runtime's option names."""
    allow_fallback: bool = False
    """Whether the CPU may run nodes, or the whole graph, if the named provider cannot."""

    def __post_init__(self) -> None:
        if self.provider != AUTO:
            resolve(self.provider)
        if self.options and self.provider == AUTO:
            raise UsageError("provider options need a named provider: add --provider NAME")
        if self.options and resolve(self.provider) == CPU:
            raise UsageError("the provider cpu has no options; set its threads with --threads")


def resolve(name: str) -> str:
    """Return ONNX Runtime's name of a provider. Raises UsageError if unknown."""
    if name in PROVIDERS:
        return PROVIDERS[name]
    known = {full.lower(): full for full in (*PROVIDERS.values(), *available_providers())}
    if name.lower() in known:
        return known[name.lower()]
    if re.fullmatch(r"\w+ExecutionProvider", name):
        return name
    raise UsageError(
        f"unknown provider {name!r}: choose auto, {', '.join(PROVIDERS)}, or one of ONNX Runtime's own names "
        f"({', '.join(available_providers())})"
    )


def provider_class(full: str) -> ProviderClass:
    """Return the precision class of a provider, given ONNX Runtime's name."""
    if full in _REDUCED:
        return "reduced"
    return "cpu" if full in (CPU, "XnnpackExecutionProvider") else "accelerator"


def short_name(full: str) -> str:
    """Return vaekit's short name of a provider, or ONNX Runtime's if none."""
    return next((short for short, name in PROVIDERS.items() if name == full), full)


def display_name(full: str) -> str:
    """Return a provider's name for messages, such as OpenVINO, CUDA or CPU."""
    return full.removesuffix("ExecutionProvider")


def available_providers() -> tuple[str, ...]:
    """List installed providers by ONNX Runtime's names, without loading their libraries."""
    ort = import_onnxruntime()
    built_in = [name for name in ort.get_available_providers() if name != _REMOTE]
    return tuple(dict.fromkeys((*built_in, *plugins())))


def is_available(full: str) -> bool:
    """Return whether the installed wheel or a plugin has this provider."""
    return full in available_providers()


@functools.cache
def plugins() -> dict[str, ModuleType]:
    """Find installed plugin packages, by the name of their provider.

    A plugin is a package ``onnxruntime_…`` with a function ``get_library_path``. It returns the library to pass to
    ``onnxruntime.register_execution_provider_library``. Finding plugins imports them, so the current folder, which may
    hold anyone's files, is not searched.
    """
    import importlib

    found: dict[str, ModuleType] = {}
    for package in sorted({path.name for folder in _installed_folders() for path in folder.glob("onnxruntime_*")}):
        if not package.isidentifier() or not _is_installed(package):
            continue  # a .dist-info folder, or a package hidden by one in the current folder
        try:
            module = importlib.import_module(package)
        except Exception:  # noqa: BLE001, S112 — a third-party package that fails to import counts as missing
            continue
        name = _plugin_provider(module)
        if name is not None:
            found[name] = module
    return found


def import_onnxruntime() -> Any:
    """Import onnxruntime. Raises ProviderError if it is missing or damaged."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(f"no ONNX Runtime is installed: {_WHEEL_HINT}") from error
    if not hasattr(onnxruntime, "InferenceSession"):  # happens after uninstalling one of two installed wheels
        raise ProviderError(
            "the installed ONNX Runtime is damaged, perhaps because one of two wheels was uninstalled: pip uninstall "
            f"the wheels that `vaekit doctor` lists, then {_WHEEL_HINT}"
        )
    return onnxruntime


def _installed_folders() -> list[Path]:
    """Return the folders that modules are imported from, without the current one."""
    here = os.path.realpath(os.curdir)
    return [Path(folder) for folder in sys.path if folder and os.path.realpath(folder) != here]


def _is_installed(package: str) -> bool:
    """Return whether Python would import a package from one of those folders."""
    from importlib.util import find_spec

    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is None:
        return False
    file = Path(spec.origin)
    return (file.parents[1] if file.stem == "__init__" else file.parent) in _installed_folders()


def _plugin_provider(module: ModuleType) -> str | None:
    """Return the name of a plugin's provider; None if it is not a plugin."""
    if library_path(module) is None:
        return None
    try:
        if hasattr(module, "get_ep_names"):
            return str(module.get_ep_names()[0])
        if hasattr(module, "get_ep_name"):
            return str(module.get_ep_name())
        return str(module.EP_NAME)
    except Exception:  # noqa: BLE001 — a broken third-party package must not break the other providers
        return None


def library_path(module: ModuleType) -> str | None:
    """Return the path of a plugin's library, or None if it has none."""
    for attribute in ("get_library_path", "library_path"):
        if hasattr(module, attribute):
            try:
                return str(getattr(module, attribute)())
            except Exception:  # noqa: BLE001 — third-party code may raise anything
                return None
    return None
