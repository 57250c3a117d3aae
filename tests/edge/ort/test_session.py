"""Reports of placement and fallback are true.

No machine has all providers, so most tests use stand-ins: CPU sessions that report some of their nodes on another
provider, or fail like that provider. Real providers are tested if they are installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

import vaekit
from vaekit.bundle.onnx_file import read_onnx
from vaekit.errors import BundleError, ProviderError
from vaekit.ort import providers, session
from vaekit.ort.providers import (
    AUTO_ORDER,
    CPU,
    INSTALL_HINTS,
    NEEDS,
    PROVIDERS,
    Selection,
    available_providers,
    is_available,
    plugins,
    resolve,
    short_name,
)
from vaekit.ort.session import GraphSession, open_graph, open_on_cpu
from vaekit.system.machine import usable_cpus
from vaekit.types import GRAPHS, GraphName

CUDA, COREML, OPENVINO = (PROVIDERS[name] for name in ("cuda", "coreml", "openvino"))
PROBE = {"z": np.zeros((1, 4), np.float32)}
MISSING = [name for name in PROVIDERS if not is_available(PROVIDERS[name])]
ABACUS = "AbacusExecutionProvider"
ALL = 1_000  # more nodes than any graph here has


@dataclass
class StandIn:
    """How a simulated provider behaves."""

    takes: int = ALL
    """The number of nodes that it runs."""
    load_error: str = ""
    run_error: str = ""
    registration_error: str = ""
    """The error when a plugin's library is registered."""
    options: list[dict[str, str]] = field(default_factory=list)
    """The options of each of its sessions."""
    sessions: list[Any] = field(default_factory=list)


class Runtime:
    """The module onnxruntime with simulated providers, built in or as devices of plugins."""

    def __init__(self, built_in: dict[str, StandIn], plugged_in: dict[str, StandIn] | None = None) -> None:
        self.built_in, self.plugged_in = built_in, plugged_in or {}
        self.registered: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return [*self.built_in, CPU]

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))
        if error := self.plugged_in[name].registration_error:
            raise RuntimeError(error)

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=name) for name in (CPU, *self.plugged_in)]

    def SessionOptions(self) -> Any:  # noqa: N802 — ONNX Runtime's name
        return _SessionOptions()

    def InferenceSession(self, model: bytes, options: Any, providers: Any = (), **rest: Any) -> Any:  # noqa: N802
        """Create a session, as onnxruntime.InferenceSession does."""
        name, given = providers[0] if providers else (options.devices[0].ep_name, options.given)
        stand_in = {**self.built_in, **self.plugged_in}.get(name)
        if stand_in is None:
            return onnxruntime.InferenceSession(model, options, providers=providers, **rest)
        stand_in.options.append(dict(given))
        session = _Session(name, stand_in, model, options, providers=[name], **rest)
        stand_in.sessions.append(session)
        return session


class _SessionOptions(onnxruntime.SessionOptions):  # type: ignore[misc]
    def add_provider_for_devices(self, devices: list[Any], given: dict[str, str]) -> None:
        self.devices, self.given = devices, given


class _Session(onnxruntime.InferenceSession):  # type: ignore[misc]
    """ONNX Runtime's own session, including its retries after failures. Only the inner session is simulated."""

    def __init__(self, name: str, stand_in: StandIn, *arguments: Any, **rest: Any) -> None:
        self._name, self._stand_in = name, stand_in
        super().__init__(*arguments, **rest)

    def _create_inference_session(self, asked: list[str], given: Any, disabled: Any = None) -> None:
        self._fallback_providers = [CPU]
        if self._name in asked and self._stand_in.load_error:
            raise RuntimeError(self._stand_in.load_error)
        super()._create_inference_session([CPU], None, disabled)
        if self._name in asked and self._stand_in.run_error:
            self._sess: Any = _Failing(self._sess, self._stand_in.run_error)

    def get_providers(self) -> list[str]:
        return [self._name, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = [node for part in super().get_provider_graph_assignment_info() for node in part.get_nodes()]
        first, rest = nodes[: self._stand_in.takes], nodes[self._stand_in.takes :]
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda held=held: held)
            for name, held in ((self._name, first), (CPU, rest))
            if held
        ]


class _Failing:
    def __init__(self, inner: Any, error: str) -> None:
        self._inner, self._error = inner, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, *arguments: Any) -> Any:
        raise EPFail(self._error)


Install = Callable[..., Runtime]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return ``install(CUDAExecutionProvider=StandIn(takes=0))``, which simulates providers."""

    def put(**built_in: StandIn) -> Runtime:
        runtime = Runtime(built_in)
        for module in (providers, session):
            monkeypatch.setattr(module, "import_onnxruntime", lambda: runtime)
            monkeypatch.setattr(module, "plugins", dict)
        return runtime

    return put


@pytest.fixture
def model(tiny_bundle: Path) -> bytes:
    return (tiny_bundle / "decoder.onnx").read_bytes()


def open_decoder(model: bytes, provider: str, **rest: Any) -> GraphSession:
    options, allow_fallback = rest.pop("options", {}), rest.pop("allow_fallback", False)
    return open_graph("decoder", model, Selection(provider, options, allow_fallback), probe=PROBE, **rest)


def decode(graph: GraphSession) -> NDArray[np.float32]:
    return graph.run(["image"], {"z": np.ones((2, 4), np.float32)})[0]


def assert_runs_on_the_cpu(graph: GraphSession, model: bytes) -> None:
    assert graph.provider == "cpu"
    assert graph.placement == {CPU: 6}
    assert graph.session.get_providers() == [CPU]
    assert np.array_equal(decode(graph), decode(open_on_cpu("decoder", model)))


# The CPU


@pytest.mark.parametrize("provider", ["cpu", CPU, "cpuexecutionprovider"])
@pytest.mark.parametrize("name", GRAPHS)
def test_every_node_is_proved_to_run_on_the_cpu(tiny_bundle: Path, name: GraphName, provider: str) -> None:
    graph = vaekit.load(tiny_bundle, provider=provider).graph(name)
    nodes = sum(read_onnx((tiny_bundle / f"{name}.onnx").read_bytes()).operators.values())
    assert graph.placement == {CPU: nodes}
    assert graph.provider == "cpu"
    assert graph.describe() == f"{name}: {nodes} of {nodes} nodes on CPU"
    assert (graph.fell_back, dict(graph.options)) == ((), {})


def test_threads_and_their_waiting_are_as_asked_for(model: bytes) -> None:
    alone = open_decoder(model, "cpu", threads=1, spinning=False).session.get_session_options()
    assert alone.intra_op_num_threads == 1
    assert alone.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    usual = open_decoder(model, "cpu").session.get_session_options()
    assert usual.intra_op_num_threads == usable_cpus()
    assert usual.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with pytest.raises(RuntimeError, match="allow_spinning"):  # ONNX Runtime's own default
        usual.get_session_config_entry("session.intra_op.allow_spinning")


def test_the_cpu_has_nothing_to_fall_back_to(model: bytes) -> None:
    assert open_decoder(model, "cpu", allow_fallback=True).fell_back == ()
    for allow_fallback in (False, True):
        with pytest.raises(BundleError, match="cannot load this graph"):
            open_decoder(model[:-40], "cpu", allow_fallback=allow_fallback)


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_a_damaged_graph_is_one_line_and_prints_nothing(
    provider: str, model: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BundleError) as caught:
        open_decoder(model.replace(b"ConvTranspose", b"ConvTraverse_"), provider)
    text = str(caught.value)
    assert "ConvTraverse_" in text
    assert onnxruntime.__version__ in text
    assert "\n" not in text
    assert "ONNXRuntimeError" not in text
    assert capfd.readouterr() == ("", "")


def test_inputs_that_a_graph_does_not_take_are_one_line(model: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    graph = open_decoder(model, "cpu")
    with pytest.raises(ProviderError, match="the decoder failed on cpu: ") as caught:
        graph.run(["image"], {"z": np.zeros((1, 5), np.float32)})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


# Named providers


@pytest.mark.parametrize("name", MISSING)
def test_a_provider_that_is_not_installed_says_what_installs_it(
    name: str, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProviderError) as caught:
        vaekit.load(tiny_bundle, provider=name).sample()
    text = str(caught.value)
    assert text.startswith(f"{name} is not available: ")
    assert INSTALL_HINTS[name] in text
    assert "\n" not in text
    assert caught.value.exit_code == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [*MISSING, ABACUS])
def test_a_provider_that_is_not_installed_falls_back_where_that_is_allowed(name: str, model: bytes) -> None:
    graph = open_decoder(model, name, allow_fallback=True)
    assert_runs_on_the_cpu(graph, model)
    (reason,) = graph.fell_back
    assert reason.startswith(f"decoder: {name} was not used: {name} is not available")


def test_a_provider_that_takes_everything_is_taken(install: Install, model: bytes) -> None:
    install(CUDAExecutionProvider=StandIn())
    for provider in ("cuda", CUDA, "auto"):
        graph = open_decoder(model, provider)
        assert graph.provider == "cuda"
        assert graph.placement == {CUDA: 6}
        assert graph.describe() == "decoder: 6 of 6 nodes on CUDA"
        assert graph.fell_back == ()
        assert np.array_equal(decode(graph), decode(open_on_cpu("decoder", model)))


@dataclass(frozen=True)
class Failure:
    """A provider that fails, and words of the expected message."""

    stand_in: StandIn
    words: tuple[str, ...]
    as_it_opens: bool = True
    """Whether opening a session on it alone fails, before it runs."""


LOG = "/onnxruntime_src/core/cuda_call.cc:129 std::conditional_t<true> onnxruntime::CudaCall(bool) "
FAILURES = {
    "takes no node": Failure(StandIn(takes=0), ("0 of", "6 nodes", NEEDS["cuda"])),
    "takes the fewer nodes": Failure(StandIn(takes=2), ("2 of", "6 nodes")),
    "takes half the nodes": Failure(StandIn(takes=3), ("3 of", "6 nodes")),
    "does not load": Failure(
        StandIn(load_error=f"[ONNXRuntimeError] : 1 : FAIL : {LOG}CUDA failure 35:\n\n\tno driver\n"),
        ("cannot load the decoder: CUDA failure 35: no driver; ", NEEDS["cuda"]),
    ),
    "fails when it runs": Failure(
        StandIn(run_error="[ONNXRuntimeError] : 11 : EP_FAIL : Non-zero status code\nwhile running Conv"),
        ("the decoder failed on cuda: Non-zero status code while running Conv",),
        as_it_opens=False,
    ),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_named_provider_that_fails_is_one_line(
    what: str, install: Install, model: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    failure = FAILURES[what]
    install(CUDAExecutionProvider=failure.stand_in)
    if failure.as_it_opens:
        with pytest.raises(ProviderError) as caught:
            open_decoder(model, "cuda")
    else:
        graph = open_decoder(model, "cuda")
        with pytest.raises(ProviderError) as caught:
            decode(graph)
    text = str(caught.value)
    assert all(word in text for word in failure.words), text
    assert "\n" not in text
    assert "ONNXRuntimeError" not in text
    assert "onnxruntime_src" not in text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("what", [what for what in FAILURES if what.startswith("takes")])
def test_a_named_provider_that_leaves_nodes_says_how_to_let_it(what: str, install: Install, model: bytes) -> None:
    install(CUDAExecutionProvider=FAILURES[what].stand_in)
    with pytest.raises(ProviderError, match="--allow-fallback"):
        open_decoder(model, "cuda")


def test_heading_the_list_of_providers_is_no_proof(install: Install, model: bytes) -> None:
    stand_in = StandIn(takes=0)
    install(CUDAExecutionProvider=stand_in)
    with pytest.raises(ProviderError, match="runs 0 of the 6 nodes"):
        open_decoder(model, "cuda")
    assert open_decoder(model, "auto").placement == {CPU: 6}
    assert [session.get_providers() for session in stand_in.sessions] == [[CUDA, CPU]] * 2


@pytest.mark.parametrize("what", ["takes no node", "does not load", "fails when it runs"])
def test_a_named_provider_that_fails_falls_back_where_that_is_allowed(
    what: str, install: Install, model: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    install(CUDAExecutionProvider=FAILURES[what].stand_in)
    graph = open_decoder(model, "cuda", allow_fallback=True)
    assert_runs_on_the_cpu(graph, model)
    (reason,) = graph.fell_back
    assert reason.startswith("decoder: cuda was not used: ")
    assert all(word in reason for word in FAILURES[what].words), reason
    assert "\n" not in reason
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("takes", [1, 3, 5])
def test_a_named_provider_keeps_what_it_takes_where_fallback_is_allowed(
    takes: int, install: Install, model: bytes
) -> None:
    install(CUDAExecutionProvider=StandIn(takes=takes))
    graph = open_decoder(model, "cuda", allow_fallback=True)
    assert graph.provider == "cuda"
    assert graph.placement == {CUDA: takes, CPU: 6 - takes}
    (reason,) = graph.fell_back
    assert f"{takes} of 6 nodes on CUDA" in reason
    assert f"{6 - takes} of 6 nodes on CPU" in reason
    assert "cuda does not run" in reason


# auto


@pytest.mark.parametrize("what", FAILURES)
def test_auto_falls_back_to_the_cpu_and_says_why(
    what: str, install: Install, model: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    install(CUDAExecutionProvider=FAILURES[what].stand_in)
    graph = open_decoder(model, "auto")
    assert_runs_on_the_cpu(graph, model)
    (reason,) = graph.fell_back
    assert reason.startswith("decoder: cuda was not used: ")
    assert all(word in reason for word in FAILURES[what].words), reason
    assert capfd.readouterr() == ("", "")


def test_auto_takes_a_provider_that_runs_most_nodes_and_says_what_is_left(install: Install, model: bytes) -> None:
    install(OpenVINOExecutionProvider=StandIn(takes=4))
    graph = open_decoder(model, "auto")
    assert graph.placement == {OPENVINO: 4, CPU: 2}
    (reason,) = graph.fell_back
    assert "4 of 6 nodes on OpenVINO, 2 of 6 nodes on CPU" in reason


def test_auto_tries_one_provider_after_another(install: Install, model: bytes) -> None:
    install(
        OpenVINOExecutionProvider=StandIn(),
        CoreMLExecutionProvider=StandIn(takes=1),
        CUDAExecutionProvider=StandIn(load_error="no driver"),
    )
    graph = open_decoder(model, "auto")
    assert graph.provider == "openvino"
    cuda, coreml = graph.fell_back
    assert cuda.startswith("decoder: cuda was not used: ")
    assert "no driver" in cuda
    assert coreml.startswith("decoder: coreml was not used: it runs 1 of 6 nodes")


def test_auto_takes_the_first_of_its_order_whatever_onnx_runtimes_is(install: Install, model: bytes) -> None:
    install(**{PROVIDERS[name]: StandIn() for name in reversed(AUTO_ORDER)})
    assert open_decoder(model, "auto").provider == AUTO_ORDER[0] == "cuda"


def test_auto_never_takes_what_must_be_named(install: Install, model: bytes) -> None:
    tensorrt = StandIn()
    install(TensorrtExecutionProvider=tensorrt)
    graph = open_decoder(model, "auto")
    assert_runs_on_the_cpu(graph, model)
    assert graph.fell_back == ()
    assert tensorrt.options == []


@pytest.mark.parametrize("load_error", ["", "no driver"])
def test_reasons_reach_the_user_of_the_library(install: Install, tiny_bundle: Path, load_error: str) -> None:
    install(CUDAExecutionProvider=StandIn(load_error=load_error))
    vae = vaekit.load(tiny_bundle)
    assert vae.sample(2).shape == (2, 1, 8, 8)
    assert any("no driver" in reason for reason in vae.graph("decoder").fell_back) == bool(load_error)


# Options


@pytest.mark.parametrize(
    ("provider", "asked", "sent"),
    [
        ("cuda", {}, {"use_tf32": "0"}),
        ("cuda", {"device_id": "1"}, {"use_tf32": "0", "device_id": "1"}),
        ("cuda", {"use_tf32": "1"}, {"use_tf32": "1"}),
        ("openvino", {}, {"device_type": "CPU", "precision": "FP32", "num_of_threads": "3"}),
        (
            OPENVINO,
            {"device_type": "GPU", "num_of_threads": "1"},
            {"device_type": "GPU", "precision": "FP32", "num_of_threads": "1"},
        ),
        ("xnnpack", {}, {"intra_op_num_threads": "3"}),
        ("coreml", {"ModelFormat": "MLProgram"}, {"ModelFormat": "MLProgram"}),
    ],
)
def test_providers_are_asked_for_full_float32_unless_they_are_asked_for_else(
    provider: str, asked: dict[str, str], sent: dict[str, str], install: Install, model: bytes
) -> None:
    stand_in = StandIn()
    install(**{resolve(provider): stand_in})
    graph = open_decoder(model, provider, options=asked, threads=3)
    assert stand_in.options == [sent]
    assert graph.options == sent


def test_auto_asks_for_full_float32_too(install: Install, model: bytes) -> None:
    stand_in = StandIn()
    install(CUDAExecutionProvider=stand_in)
    open_decoder(model, "auto")
    assert stand_in.options == [{"use_tf32": "0"}]


def test_directml_runs_without_memory_patterns_as_it_must(install: Install, model: bytes) -> None:
    install(DmlExecutionProvider=StandIn(), CUDAExecutionProvider=StandIn())
    for provider, patterns in (("directml", False), ("cuda", True), ("cpu", True)):
        session = open_decoder(model, provider).session
        assert session.get_session_options().enable_mem_pattern == patterns


# Plugins

PLUGIN = """
EP_NAME = "AbacusExecutionProvider"

def get_ep_name():
    return EP_NAME

def get_library_path():
    return "/nowhere/libabacus.so"
"""


def test_a_plugins_library_that_does_not_load_is_one_line(
    plug_in: Callable[[str], None], model: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    plug_in(PLUGIN)
    for _ in range(2):  # the second call does not try again
        with pytest.raises(ProviderError, match=rf"{ABACUS} does not load: .*libabacus\.so") as caught:
            open_decoder(model, ABACUS)
        assert "\n" not in str(caught.value)
    assert_runs_on_the_cpu(open_decoder(model, ABACUS, allow_fallback=True), model)
    assert capfd.readouterr() == ("", "")


def plugged(monkeypatch: pytest.MonkeyPatch, **plugged_in: StandIn) -> Runtime:
    """Simulate an ONNX Runtime whose plugin finds these devices."""
    runtime = Runtime({}, plugged_in)
    for module in (providers, session):
        monkeypatch.setattr(module, "import_onnxruntime", lambda: runtime)
    return runtime


def test_a_plugin_runs_on_the_devices_that_it_finds(
    plug_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, model: bytes
) -> None:
    plug_in(PLUGIN)
    stand_in = StandIn()
    runtime = plugged(monkeypatch, AbacusExecutionProvider=stand_in)
    for _ in range(2):
        graph = open_decoder(model, ABACUS, options={"beads": "7"})
        assert graph.placement == {ABACUS: 6}
        assert graph.describe() == "decoder: 6 of 6 nodes on Abacus"
    assert runtime.registered == [(ABACUS, "/nowhere/libabacus.so")]
    assert stand_in.options == [{"beads": "7"}] * 2


def test_a_plugin_is_held_to_what_it_takes(
    plug_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, model: bytes
) -> None:
    plug_in(PLUGIN)
    plugged(monkeypatch, AbacusExecutionProvider=StandIn(takes=1))
    with pytest.raises(ProviderError, match="runs 1 of the 6 nodes"):
        open_decoder(model, ABACUS)


def test_a_plugin_without_a_device_says_so(
    plug_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, model: bytes
) -> None:
    plug_in(PLUGIN)
    runtime = plugged(monkeypatch, AbacusExecutionProvider=StandIn())
    monkeypatch.setattr(runtime, "get_ep_devices", lambda: [SimpleNamespace(ep_name=CPU)])
    with pytest.raises(ProviderError, match="finds no supported device"):
        open_decoder(model, ABACUS)
    graph = open_decoder(model, ABACUS, allow_fallback=True)
    assert_runs_on_the_cpu(graph, model)
    assert "finds no supported device" in graph.fell_back[0]


# ONNX Runtime itself


@pytest.mark.parametrize(
    ("found", "words"),
    [
        pytest.param(None, ("no ONNX Runtime", "pip install 'vaekit[cpu]'"), id="missing"),
        pytest.param(ModuleType("onnxruntime"), ("damaged", "pip uninstall", "pip install"), id="damaged"),
    ],
)
@pytest.mark.parametrize("provider", ["auto", "cpu", "openvino"])
def test_without_onnx_runtime_the_way_out_is_named(
    found: ModuleType | None,
    words: tuple[str, ...],
    provider: str,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", found)
    for allow_fallback in (False, True):
        with pytest.raises(ProviderError) as caught:
            vaekit.load(tiny_bundle, provider=provider, allow_fallback=allow_fallback).sample()
        assert all(word in str(caught.value) for word in words), caught.value
        assert "\n" not in str(caught.value)


# Installed providers


@pytest.mark.parametrize("full", available_providers())
def test_a_provider_of_this_machine_runs_every_node_or_says_why_not(
    full: str, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vae = vaekit.load(tiny_bundle, provider=full)
    golden = np.load(tiny_bundle / "golden.npz")
    complaint = ""
    try:
        assert vae.decode(golden["z"]) == pytest.approx(golden["decoded"], abs=2e-2)
    except ProviderError as error:
        complaint = str(error)
    if complaint:
        assert full != CPU
        assert full in complaint or short_name(full) in complaint
        assert "\n" not in complaint
    else:
        assert vae.graph("decoder").placement == {full: 6}
    printed = capfd.readouterr()
    assert printed.out == ""
    if full not in plugins():  # plugins write their own logs
        assert printed.err == ""


@pytest.mark.parametrize("full", available_providers())
def test_with_fallback_every_provider_of_this_machine_gives_images(full: str, tiny_bundle: Path) -> None:
    vae = vaekit.load(tiny_bundle, provider=full, allow_fallback=True)
    golden = np.load(tiny_bundle / "golden.npz")
    assert vae.decode(golden["z"]) == pytest.approx(golden["decoded"], abs=2e-2)
    graph = vae.graph("decoder")
    assert sum(graph.placement.values()) == 6
    assert all(graph.placement.values())
    assert bool(graph.fell_back) == (set(graph.placement) != {full})


@pytest.mark.skipif(
    OPENVINO not in onnxruntime.get_available_providers(), reason="the wheel onnxruntime-openvino is not installed"
)
class TestOpenVINO:
    @pytest.mark.parametrize("provider", ["openvino", "auto"])
    def test_it_runs_every_node(self, tiny_bundle: Path, provider: str, capfd: pytest.CaptureFixture[str]) -> None:
        vae = vaekit.load(tiny_bundle, provider=provider, threads=1)
        for name, nodes in zip(GRAPHS, (7, 6), strict=True):
            assert vae.graph(name).placement == {OPENVINO: nodes}
            assert vae.graph(name).describe() == f"{name}: {nodes} of {nodes} nodes on OpenVINO"
            assert vae.graph(name).options["precision"] == "FP32"
        assert vae.reconstruct(vae.sample(3)).shape == (3, 1, 8, 8)
        assert capfd.readouterr() == ("", "")

    def test_it_passes_verify(self, tiny_bundle: Path) -> None:
        found = vaekit.load(tiny_bundle, provider="openvino").verify()
        assert found.passed
        assert found.provider == "openvino"
        assert found.placement == {"encoder": {OPENVINO: 7}, "decoder": {OPENVINO: 6}}
        assert found.fell_back == ()

    @pytest.mark.parametrize("options", [{"device_type": "ABACUS"}, {"precision": "FP3"}, {"beads": "7"}])
    def test_options_that_it_does_not_know_are_one_line(
        self, options: dict[str, str], model: bytes, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(ProviderError, match=r"^openvino (cannot load|runs 0 of)") as caught:
            open_decoder(model, "openvino", options=options)
        assert "\n" not in str(caught.value)
        assert_runs_on_the_cpu(open_decoder(model, "openvino", options=options, allow_fallback=True), model)
        assert capfd.readouterr() == ("", "")


@pytest.mark.skipif("ggml" not in plugins(), reason="the plugin onnxruntime-ggml is not installed")
class TestGgml:
    """This provider accepts every node, but cannot run convolutions of images."""

    def test_alone_it_fails_when_it_runs(self, tiny_bundle: Path) -> None:
        vae = vaekit.load(tiny_bundle, provider="ggml")
        assert vae.graph("decoder").placement == {"ggml": 6}
        with pytest.raises(ProviderError, match=r"the decoder failed on ggml: .*1-D convolutions") as caught:
            vae.sample()
        assert "\n" not in str(caught.value)

    def test_where_fallback_is_allowed_the_cpu_runs_instead(self, model: bytes) -> None:
        graph = open_decoder(model, "ggml", allow_fallback=True)
        assert_runs_on_the_cpu(graph, model)
        (reason,) = graph.fell_back
        assert reason.startswith("decoder: ggml was not used: the decoder failed on ggml")


# ONNX Runtime's log level, which it does not tell


def test_the_hosts_log_level_is_not_touched_on_the_cpu(
    tiny_bundle: Path, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[int] = []
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", levels.append)
    vae = vaekit.load(tiny_bundle, provider="cpu")
    vae.decode(np.zeros((1, *vae.latent_shape), np.float32))
    with pytest.raises(BundleError):
        open_graph("graph", model[:-20], Selection("cpu"), probe={})
    assert levels == []
