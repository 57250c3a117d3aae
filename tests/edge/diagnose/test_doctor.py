from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import vaekit
from vaekit.diagnose import doctor
from vaekit.diagnose.doctor import STATES, ProviderReport, Report, examine, probe
from vaekit.ort.providers import INSTALL_HINTS, PROVIDERS, available_providers, plugins, short_name
from vaekit.ort.session import GraphSession
from vaekit.system import machine
from vaekit.system.machine import has_fast_int8, processor_flags, processor_name, usable_cpus

Stub = Callable[[str], None]


@pytest.fixture(scope="module")
def report() -> Report:
    """Examine this machine."""
    return examine()


@pytest.fixture
def no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip trying providers, which takes seconds."""
    monkeypatch.setattr(doctor, "_probe_elsewhere", lambda name: ("runs", "not tried"))


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Return ``stub(script)``, which replaces the process that tries a provider by a shell script."""

    def put(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


def on(report: Report, name: str) -> ProviderReport:
    (found,) = (provider for provider in report.providers if provider.name == name)
    return found


def distribution(folder: Path, name: str, version: str, *files: str, metadata: bool = True) -> None:
    """Write an installed distribution that owns these files."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    if metadata:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def only_these_distributions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.metadata.distributions  # type: ignore[attr-defined]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: found(path=[str(folder)]))  # type: ignore[attr-defined]


# This machine


def test_the_report_of_this_machine_is_true(report: Report) -> None:
    assert report.vaekit == vaekit.__version__
    assert platform.python_version() in report.python
    assert sys.executable in report.python
    assert report.platform == platform.platform()
    assert report.processor
    assert report.cpus == usable_cpus()
    assert 0 < report.memory_gb < 10_000
    assert set(report.flags) <= processor_flags()
    assert report.fast_int8 == has_fast_int8(processor_flags())
    assert report.onnxruntime == onnxruntime.__version__
    assert report.plugins == tuple(plugins())


def test_the_wheel_that_is_installed_is_found(report: Report) -> None:
    assert any(wheel.startswith("onnxruntime") and onnxruntime.__version__ in wheel for wheel in report.wheels)
    assert bool(report.problems) == (len(report.wheels) > 1)


def test_the_cpu_runs(report: Report) -> None:
    assert on(report, "cpu") == ProviderReport("cpu", "runs", "probe: 2 of 2 nodes on CPU", "")


def test_every_provider_is_reported_once(report: Report) -> None:
    names = [provider.name for provider in report.providers]
    assert names[: len(PROVIDERS)] == list(PROVIDERS)
    assert len(set(names)) == len(names)
    assert {short_name(full) for full in available_providers()} <= set(names)
    for provider in report.providers:
        installed = PROVIDERS.get(provider.name, provider.name) in available_providers()
        assert provider.state in STATES
        assert (provider.state == "missing") == (not installed)
        assert provider.install == ("" if installed else INSTALL_HINTS[provider.name])
        assert provider.detail
        assert "\n" not in provider.detail + provider.install


def test_providers_that_vaekit_has_no_name_for_are_tried_too(monkeypatch: pytest.MonkeyPatch, no_probes: None) -> None:
    monkeypatch.setattr(doctor, "available_providers", lambda: ("CPUExecutionProvider", "AbacusExecutionProvider"))
    report = examine()
    assert on(report, "AbacusExecutionProvider").state == "runs"
    assert len(report.providers) == len(PROVIDERS) + 1
    assert {provider.name for provider in report.providers if provider.state == "missing"} == {*PROVIDERS} - {"cpu"}


@pytest.mark.skipif("openvino" not in map(short_name, onnxruntime.get_available_providers()), reason="no OpenVINO")
def test_openvino_runs_where_its_wheel_is_installed(report: Report) -> None:
    assert on(report, "openvino") == ProviderReport("openvino", "runs", "probe: 2 of 2 nodes on OpenVINO", "")


@pytest.mark.skipif("ggml" not in plugins(), reason="the plugin onnxruntime-ggml is not installed")
def test_a_plugin_that_loads_but_does_not_run_fails(report: Report) -> None:
    assert "ggml" in report.plugins
    assert on(report, "ggml").state == "fails"
    assert "1-D convolutions" in on(report, "ggml").detail


def test_looking_prints_nothing(no_probes: None, capfd: pytest.CaptureFixture[str]) -> None:
    examine()
    assert capfd.readouterr() == ("", "")


# Wheels


@pytest.mark.usefixtures("no_probes")
def test_wheels_that_overwrite_each_other_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "onnxruntime", "1.25.0", "onnxruntime/__init__.py")
    distribution(tmp_path, "onnxruntime-gpu", "1.24.1", "onnxruntime/__init__.py")
    distribution(
        tmp_path, "onnxruntime-ep-webgpu", "1.0", "onnxruntime_ep_webgpu/__init__.py"
    )  # a plugin, which does not own files of onnxruntime
    distribution(tmp_path, "onnx", "1.20", "onnx/__init__.py")
    only_these_distributions(tmp_path, monkeypatch)
    report = examine()
    assert set(report.wheels) == {"onnxruntime 1.25.0", "onnxruntime-gpu 1.24.1"}
    (problem,) = report.problems
    assert "overwrite" in problem
    assert any(f"pip uninstall {names}" in problem for names in ("onnxruntime onnxruntime-gpu", "onnxruntime-gpu onn"))
    assert "\n" not in problem


@pytest.mark.usefixtures("no_probes")
def test_a_second_wheel_beside_the_installed_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    distribution(tmp_path, "onnxruntime-directml", "1.24.1", "onnxruntime/__init__.py")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()
    found = examine()
    assert set(found.wheels) == {*report.wheels, "onnxruntime-directml 1.24.1"}
    assert "onnxruntime-directml" in found.problems[0]


@pytest.mark.usefixtures("no_probes")
def test_one_wheel_is_no_conflict_whatever_lies_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "onnxruntime-openvino", "1.24.1", "onnxruntime/__init__.py", "../bin/onnxruntime_test")
    distribution(tmp_path, "left-behind", "1.0", metadata=False)
    distribution(tmp_path, "onnxruntime-tools", "1.7")
    only_these_distributions(tmp_path, monkeypatch)
    report = examine()
    assert report.wheels == ("onnxruntime-openvino 1.24.1",)
    assert report.problems == ()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        pytest.param(None, ("no ONNX Runtime", "pip install 'vaekit[cpu]'"), id="missing"),
        pytest.param(SimpleNamespace(), ("damaged", "pip uninstall"), id="damaged"),
    ],
)
def test_without_onnx_runtime_all_providers_are_missing(
    found: object, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", found)
    report = examine()
    assert report.onnxruntime is None
    assert report.plugins == ()
    assert all(word in report.problems[-1] for word in words), report.problems
    assert [provider.name for provider in report.providers] == list(PROVIDERS)
    assert {provider.state for provider in report.providers} == {"missing"}
    assert on(report, "cpu").install == INSTALL_HINTS["cpu"]


# Trying a provider


def test_the_probe_is_computed_rightly_on_the_cpu() -> None:
    assert probe("cpu") == ("runs", "probe: 2 of 2 nodes on CPU")


@pytest.mark.parametrize("value", [0.5, 0.67, np.nan, np.inf])
def test_a_provider_that_computes_wrongly_fails(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The correct corner is 1 / (1 + exp(-4/9)) = 0.609, where the kernel covers 4 ones."""
    run = GraphSession.run

    def wrong(self: GraphSession, outputs: list[str], feeds: Any) -> list[np.ndarray]:
        found = run(self, outputs, feeds)[0]
        assert found[0, 0, 0, 0] == pytest.approx(0.6093, abs=1e-4)
        assert found[0, 0, 1, 1] == pytest.approx(0.7311, abs=1e-4)
        found[0, 0, 0, 0] = value
        return [found]

    monkeypatch.setattr(GraphSession, "run", wrong)
    state, detail = probe("cpu")
    assert state == "fails"
    assert f"{value:.4g}" in detail
    assert "0.6093" in detail


def test_a_provider_of_half_precision_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    run = GraphSession.run
    monkeypatch.setattr(
        GraphSession, "run", lambda self, outputs, feeds: [run(self, outputs, feeds)[0].astype(np.float16)]
    )
    assert probe("cpu")[0] == "runs"


@pytest.mark.parametrize("name", [name for name, full in PROVIDERS.items() if full not in available_providers()])
def test_a_provider_that_is_not_installed_fails(name: str) -> None:
    state, detail = probe(name)
    assert state == "fails"
    assert f"{name} is not available" in detail


@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param("kill -SEGV $$", ("SIGSEGV",), id="crashes"),
        pytest.param("kill -KILL $$", ("SIGKILL",), id="is killed"),
        pytest.param("exit 7", ("7",), id="ends with a code"),
        pytest.param("exit 0", ("0",), id="says nothing"),
        pytest.param("echo rubbish", (), id="rubbish"),
        pytest.param("echo '['", (), id="half an answer"),
        pytest.param("echo 5", (), id="a number"),
        pytest.param("echo null", (), id="null"),
        pytest.param("echo '\"no\"'", (), id="two letters"),
        pytest.param("echo '[\"runs\"]'", (), id="a part too few"),
        pytest.param('echo \'{"runs": 1, "all": 2}\'', (), id="an object"),
        pytest.param('echo \'["maybe", "it runs"]\'', (), id="an unknown state"),
        pytest.param("printf '\\377\\376\\n'", (), id="no text"),
        pytest.param('echo \'["runs", "all"]\'; kill -SEGV $$', ("SIGSEGV",), id="crashes at its end"),
    ],
)
def test_a_provider_whose_process_does_not_answer_fails(script: str, words: tuple[str, ...], stub: Stub) -> None:
    stub(script)
    found = on(examine(), "cpu")
    assert found.state == "fails"
    assert all(word in found.detail for word in words), found.detail
    assert found.detail
    assert "\n" not in found.detail


def test_a_provider_whose_process_hangs_fails(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub("exec sleep 60")
    monkeypatch.setattr(doctor, "_PROBE_SECONDS", 0.1)
    found = on(examine(), "cpu")
    assert found.state == "fails"
    assert "did not answer within 0.1 seconds" in found.detail


def test_what_a_provider_prints_before_the_answer_does_not_matter(stub: Stub) -> None:
    answer = json.dumps(["fails", "no driver"])
    stub(f"printf 'loading \\377 \\n'; echo warning >&2; echo '{answer}'")
    assert on(examine(), "cpu") == ProviderReport("cpu", "fails", "no driver", "")


def test_each_provider_is_tried_in_a_process_of_its_own(stub: Stub, tmp_path: Path) -> None:
    stub(f'echo "$@" >> \'{tmp_path}/log\'; echo \'["runs", "all"]\'')
    found = examine()
    tried = (tmp_path / "log").read_text().splitlines()
    assert sorted(tried) == sorted(f"-P -m vaekit.diagnose.doctor {short_name(full)}" for full in available_providers())
    assert {provider.state for provider in found.providers} == {"runs", "missing"}


# The processor

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz
flags\t\t: fpu sse4_2 avx avx2 fma f16c

processor\t: 1
model name\t: another
flags\t\t: fpu avx512_vnni
"""
ARM = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 asimddp
CPU implementer\t: 0x41
"""
CORTEX_A72 = ARM.replace(" asimddp", "")


def cpuinfo(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: text if str(path) == "/proc/cpuinfo" else "")


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (X86, {"fpu", "sse4_2", "avx", "avx2", "fma", "f16c"}),
        (ARM, {"fp", "asimd", "evtstrm", "crc32", "asimddp"}),
        ("processor\t: 0\nisa\t: rv64imafdc\n", set()),
        ("flags\t\t:\n", set()),
        ("", set()),
    ],
)
def test_flags_are_those_that_linux_names(text: str, flags: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(monkeypatch, text)
    assert processor_flags() == flags


def test_a_processor_has_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(monkeypatch, X86)
    assert processor_name() == "Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz"


@pytest.mark.parametrize("text", [ARM, ""])
@pytest.mark.parametrize(("processor", "name"), [("arm", "arm"), ("", "aarch64")])
def test_a_processor_without_a_name_is_of_a_kind(
    text: str, processor: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo(monkeypatch, text)
    monkeypatch.setattr(platform, "processor", lambda: processor)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor_name() == name


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        pytest.param(X86, False, id="avx2"),
        pytest.param("flags\t: avx2 avx512f avx512bw", False, id="avx512"),
        pytest.param("flags\t: avx2 avx512f avx512_vnni", True, id="avx512 vnni"),
        pytest.param("flags\t: avx2 avx_vnni", True, id="avx vnni"),
        pytest.param(ARM, True, id="arm's dot product"),
        pytest.param(CORTEX_A72, False, id="arm without it"),
        pytest.param("Features\t: asimd i8mm", True, id="arm's matrices"),
        pytest.param("", False, id="unknown"),
    ],
)
def test_fast_int8_is_what_sums_in_32_bits(text: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(monkeypatch, text)
    assert has_fast_int8(processor_flags()) == fast


@pytest.mark.usefixtures("no_probes")
def test_telling_flags_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(monkeypatch, X86)
    report = examine()
    assert report.processor.startswith("Intel(R) Core(TM) i5")
    assert report.flags == ("avx2", "fma", "f16c")
    assert not report.fast_int8
