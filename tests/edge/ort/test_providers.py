"""Names of providers, which are installed, and how to install the others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import vaekit
from vaekit.errors import ProviderError, UsageError
from vaekit.ort import providers
from vaekit.ort.providers import (
    AUTO_ORDER,
    CPU,
    INSTALL_HINTS,
    NEEDS,
    PROVIDERS,
    Selection,
    available_providers,
    display_name,
    is_available,
    plugins,
    provider_class,
    resolve,
    short_name,
)
from vaekit.types import PROVIDER_CLASSES

CUDA, COREML, OPENVINO = (PROVIDERS[name] for name in ("cuda", "coreml", "openvino"))
ABACUS = "AbacusExecutionProvider"

# Names


@pytest.mark.parametrize("name", PROVIDERS)
def test_short_names_and_onnx_runtimes_own_mean_the_same(name: str) -> None:
    full = PROVIDERS[name]
    assert resolve(name) == resolve(full) == resolve(full.lower()) == full
    assert short_name(full) == name
    assert provider_class(full) in PROVIDER_CLASSES


def test_each_provider_has_words_on_how_to_get_it() -> None:
    assert set(INSTALL_HINTS) == set(PROVIDERS)
    assert set(NEEDS) <= set(PROVIDERS)
    assert set(AUTO_ORDER) <= set(PROVIDERS)


def test_names_that_only_onnx_runtime_knows_are_let_through() -> None:
    assert resolve(ABACUS) == ABACUS
    assert short_name(ABACUS) == ABACUS
    assert display_name(ABACUS) == "Abacus"
    assert provider_class(ABACUS) == "accelerator"


@pytest.mark.parametrize("name", ["abacus", "", "cpu,cuda", "gpu", "ExecutionProvider", "CPUExecutionProvider2"])
def test_unknown_names_are_refused_with_the_choices(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        Selection(name)
    text = str(caught.value)
    assert all(choice in text for choice in (repr(name), "auto", *PROVIDERS, *available_providers())), text
    assert "\n" not in text
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("provider", ["auto", "cpu", CPU])
def test_options_are_only_for_a_provider_that_takes_them(provider: str) -> None:
    with pytest.raises(UsageError, match="options"):
        Selection(provider, {"device_type": "CPU"})
    assert Selection(provider).provider == provider


@pytest.mark.parametrize(
    ("full", "kind"),
    [
        (CPU, "cpu"),
        ("XnnpackExecutionProvider", "cpu"),
        (CUDA, "accelerator"),
        (OPENVINO, "accelerator"),
        ("WebGpuExecutionProvider", "accelerator"),
        (COREML, "reduced"),
        ("QNNExecutionProvider", "reduced"),
    ],
)
def test_providers_are_of_classes_by_how_they_compute(full: str, kind: str) -> None:
    assert provider_class(full) == kind


def test_what_runs_elsewhere_is_no_provider_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = SimpleNamespace(get_available_providers=lambda: ["AzureExecutionProvider", CUDA, CPU])
    monkeypatch.setattr(providers, "import_onnxruntime", lambda: wheel)
    monkeypatch.setattr(providers, "plugins", dict)
    assert available_providers() == (CUDA, CPU)


# Plugins

NAMED = 'EP_NAME = "AbacusExecutionProvider"\n'
PLUGIN = (
    f'{NAMED}def get_ep_name():\n    return EP_NAME\n\ndef get_library_path():\n    return "/nowhere/libabacus.so"\n'
)
PLUGINS = {
    "one name, by a function": PLUGIN,
    "one name, by a constant": f"{NAMED}def library_path():\n    return '/nowhere/libabacus.so'\n",
    "names, as ONNX Runtime's guide has it": (
        'def get_ep_names():\n    return ["AbacusExecutionProvider"]\n\n'
        'def get_library_path():\n    return "/nowhere/libabacus.so"\n'
    ),
}
NO_PLUGINS = {
    "no names": "def get_library_path():\n    return 'libabacus.so'\n",
    "no library": NAMED,
    "a library that is not found": f"{NAMED}def get_library_path():\n    raise FileNotFoundError('libabacus.so')\n",
    "an import that fails": f"{PLUGIN}import no_such_module_anywhere\n",
    "a name that is not found": PLUGIN.replace("return EP_NAME", "raise OSError('no device')"),
}


@pytest.mark.parametrize("what", PLUGINS)
def test_a_plugin_that_is_installed_is_found(what: str, plug_in: Callable[[str], None]) -> None:
    assert not is_available(ABACUS)
    plug_in(PLUGINS[what])
    assert plugins()[ABACUS].__name__ == "onnxruntime_abacus"
    assert is_available(ABACUS)
    assert resolve("abacusexecutionprovider") == ABACUS


@pytest.mark.parametrize("what", NO_PLUGINS)
def test_a_package_that_is_no_plugin_is_passed_over(
    what: str, plug_in: Callable[[str], None], tiny_bundle: Path
) -> None:
    plug_in(NO_PLUGINS[what])
    assert ABACUS not in plugins()
    assert vaekit.load(tiny_bundle, provider="cpu").graph("decoder").provider == "cpu"
    with pytest.raises(ProviderError, match="not available"):
        vaekit.load(tiny_bundle, provider=ABACUS).graph("decoder")


@pytest.mark.parametrize("entry", ["", ".", "absolute"])
def test_a_plugin_in_the_current_folder_is_not_imported(
    entry: str, tmp_path: Path, plug_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither found there, nor in the place of one that is installed."""
    plug_in(PLUGIN)
    here = tmp_path / "here"
    here.mkdir()
    for name in ("onnxruntime_abacus.py", "onnxruntime_x.py"):
        (here / name).write_text(f"open('executed', 'w').close()\n{PLUGIN}")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(here) if entry == "absolute" else entry, *sys.path])
    assert ABACUS not in plugins()
    assert not (here / "executed").exists()
