"""verify, bench, doctor, and the choice of providers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vaekit as package
from vaekit.ort.providers import INSTALL_HINTS, PROVIDERS, available_providers

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Fails = Callable[..., None]

CPU = "CPUExecutionProvider"
OUTPUTS = [("encoder", "mu"), ("encoder", "logvar"), ("decoder", "image")]

cuda_is_missing = pytest.mark.skipif(
    PROVIDERS["cuda"] in available_providers(), reason="this ONNX Runtime has CUDA, which may run here"
)


@pytest.fixture
def without_onnxruntime(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which ONNX Runtime cannot be imported."""
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "onnxruntime.py").write_text("raise ImportError")
    return {"PYTHONPATH": str(tmp_path / "missing")}


def nodes(bundle: Path) -> dict[str, int]:
    """Count each graph's nodes after this ONNX Runtime has optimised it for the CPU."""
    vae = package.load(bundle, provider="cpu")
    return {name: vae.graph(name).placement[CPU] for name in ("encoder", "decoder")}


def alter_golden(bundle: Path, **changes: float) -> None:
    """Change golden vectors, as if PyTorch had computed others, and update the manifest."""
    with np.load(bundle / "golden.npz") as golden:
        arrays = {name: golden[name] + np.float32(changes.get(name, 0)) for name in golden.files}
    with open(bundle / "golden.npz", "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["golden"]["sha256"] = hashlib.sha256((bundle / "golden.npz").read_bytes()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


# verify


def test_verify_proves_the_bundle_to_people(vaekit: Run, tiny_bundle: Path) -> None:
    result = vaekit("verify", "-m", tiny_bundle, "--provider", "cpu")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["graph", "output"]
    assert [tuple(line.split()[:2]) for line in lines[1:4]] == OUTPUTS
    assert all(line.endswith(" holds") for line in lines[1:4])
    placed = [f"{graph}: {count} of {count} nodes on CPU" for graph, count in nodes(tiny_bundle).items()]
    assert lines[4:] == [*placed, "verify holds on cpu"]


def test_verify_proves_the_bundle_to_machines(vaekit: Run, tiny_bundle: Path) -> None:
    result = vaekit("verify", "-m", tiny_bundle, "--provider", "cpu", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["passed"] is True
    assert document["provider"] == "cpu"
    assert document["placement"] == {graph: {CPU: count} for graph, count in nodes(tiny_bundle).items()}
    assert [(output["graph"], output["output"]) for output in document["outputs"]] == OUTPUTS
    for output in document["outputs"]:
        assert output["passed"] is True
        assert 0 <= output["max_abs"] < 1e-4
        assert output["max_rel"] >= 0
        assert output["psnr"] is None or output["psnr"] > 80


def test_verify_that_does_not_hold_is_exit_code_3(
    vaekit: Run, assert_fails: Fails, copied_bundle: Path, tmp_path: Path
) -> None:
    alter_golden(copied_bundle, logvar=0.25)
    result = vaekit("verify", "-m", "bundle", "--provider", "cpu")
    assert_fails(result, 3, "encoder output logvar", "cpu", "vaekit verify --provider cpu")
    assert len(result.stderr.splitlines()) == 1
    lines = result.stdout.splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["holds", "differs", "holds"]
    assert lines[-1] == "verify does not hold on cpu"
    alter_golden(copied_bundle, decoded=0.01)
    machine = vaekit("verify", "-m", "bundle", "--provider", "cpu", "--json", "--quiet")
    assert_fails(machine, 3, "encoder output logvar, decoder output image")
    assert len(machine.stderr.splitlines()) == 1
    document = json.loads(machine.stdout)
    assert document["passed"] is False
    assert [output["passed"] for output in document["outputs"]] == [True, False, False]
    assert document["outputs"][1]["max_abs"] == pytest.approx(0.25, abs=1e-4)
    assert document["outputs"][2]["max_abs"] == pytest.approx(0.01, abs=1e-4)


def test_golden_vectors_that_are_altered_or_unreadable_are_refused(
    vaekit: Run, assert_fails: Fails, copied_bundle: Path
) -> None:
    manifest = json.loads((copied_bundle / "manifest.json").read_text())
    (copied_bundle / "golden.npz").write_bytes(b"junk")
    assert_fails(vaekit("verify", "-m", "bundle"), 1, "golden.npz", "sha256")
    manifest["golden"]["sha256"] = hashlib.sha256(b"junk").hexdigest()
    (copied_bundle / "manifest.json").write_text(json.dumps(manifest))
    result = vaekit("verify", "-m", "bundle", "--json")
    assert_fails(result, 1, "golden.npz", "cannot be read")
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_missing_bundle_is_named_with_the_way_to_one(vaekit: Run, assert_fails: Fails, command: str) -> None:
    assert_fails(vaekit(command, "-m", "none"), 1, "none", "vaekit export")


# providers


@cuda_is_missing
def test_a_named_provider_that_is_not_there_says_what_to_install(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path
) -> None:
    hint = INSTALL_HINTS["cuda"]
    assert "pip install 'vaekit[gpu]'" in hint
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8), np.uint8))
    np.save(tmp_path / "z.npy", np.zeros((2, 4), np.float32))
    commands = (
        ("verify",),
        ("verify", "--json"),
        ("bench",),
        ("sample",),
        ("encode", "images.npy"),
        ("decode", "z.npy"),
        ("reconstruct", "images.npy"),
        ("interpolate", "--from-seed", "0", "--to-seed", "1"),
        ("traverse",),
        ("score", "images.npy", "-o", "s.csv"),
    )
    for command in commands:
        result = vaekit(*command, "-m", tiny_bundle, "--provider", "cuda")
        assert_fails(result, 1, "cuda is not available", hint)
        assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)
    named = vaekit("verify", "-m", tiny_bundle, env={"VAEKIT_PROVIDER": "cuda"})
    assert_fails(named, 1, "cuda is not available", hint)
    overruled = vaekit("verify", "-m", tiny_bundle, "--provider", "cpu", env={"VAEKIT_PROVIDER": "cuda"})
    assert overruled.returncode == 0
    full_name = vaekit("verify", "-m", tiny_bundle, "--provider", PROVIDERS["cuda"])
    assert_fails(full_name, 1, "CUDAExecutionProvider is not available", hint)
    assert {path.name for path in tmp_path.iterdir()} == {"images.npy", "z.npy"}


@cuda_is_missing
def test_a_fallback_that_is_allowed_says_what_fell_back(vaekit: Run, tiny_bundle: Path) -> None:
    options = ("-m", tiny_bundle, "--provider", "cuda", "--allow-fallback")
    result = vaekit("verify", *options)
    assert result.returncode == 0
    told = result.stderr.splitlines()
    assert [line.split(":")[0] for line in told] == ["encoder", "decoder"]
    assert all("cuda was not used" in line and "vaekit[gpu]" in line for line in told)
    assert result.stdout.splitlines()[-1] == "verify holds on cpu"
    document = json.loads(vaekit("verify", *options, "--json").stdout)
    assert document["provider"] == "cpu"
    assert list(document["placement"]["decoder"]) == [CPU]
    sampled = vaekit("sample", "-n", "1", *options)
    assert sampled.returncode == 0
    told = sampled.stderr.splitlines()
    assert "decoder: cuda was not used" in told[0]
    assert told[1].startswith("decoder: ")
    assert told[1].endswith(" nodes on CPU")
    quiet = vaekit("sample", "-n", "1", *options, "-q")
    assert (quiet.returncode, quiet.stderr) == (0, "")


REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "an unknown provider": (("verify", "--provider", "abacus"), ("'abacus'", "cuda", CPU)),
    "an unknown provider in a benchmark": (("bench", "--provider", "abacus"), ("'abacus'", "cuda")),
    "an option without a value": (("verify", "--provider", "cpu", "--provider-option", "fast"), ("fast", "KEY=VALUE")),
    "an option without a name": (("bench", "--provider", "cpu", "--provider-option", "=1"), ("=1", "KEY=VALUE")),
    "an option of no named provider": (("verify", "--provider-option", "a=1"), ("--provider",)),
    "an option of the CPU": (("verify", "--provider", "cpu", "--provider-option", "a=1"), ("cpu", "--threads")),
    "no threads": (("verify", "--threads", "0"), ("--threads",)),
    "a word too many": (("verify", "more"), ("more", "vaekit verify --help")),
    "batches of none": (("bench", "--batch", "0"), ("--batch",)),
    "no threads in a benchmark": (("bench", "--threads", "0"), ("--threads",)),
    "no time": (("bench", "--seconds", "0"), ("--seconds", "positive")),
    "a time of no number": (("bench", "--seconds", "nan"), ("--seconds", "positive")),
    "an option that doctor has not": (("doctor", "--fix"), ("--fix", "vaekit doctor --help")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_options_end_in_one_line(vaekit: Run, assert_fails: Fails, tiny_bundle: Path, what: str) -> None:
    arguments, words = REFUSED[what]
    result = vaekit(*arguments, env={"VAEKIT_MODEL": str(tiny_bundle), "VAEKIT_PROVIDER": "auto"})
    assert_fails(result, 2, *words)
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)


def test_without_onnxruntime_every_command_says_what_to_install(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, without_onnxruntime: dict[str, str]
) -> None:
    np.save(tmp_path / "z.npy", np.zeros((2, 4), np.float32))
    for command in (("verify",), ("bench",), ("sample",), ("decode", "z.npy")):
        result = vaekit(*command, "-m", tiny_bundle, env=without_onnxruntime)
        assert_fails(result, 1, "no ONNX Runtime is installed", "vaekit[cpu]")
        assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"missing", "z.npy"}


INTERRUPTED_IMPORT = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.{name})
    time.sleep(5)
except BaseException as error:
    raise ImportError("numpy._core.multiarray failed to import") from error
"""


IN_A_CALLBACK = """
import os, signal, sys, time, weakref
from vaekit_cli import main

class Module:
    pass

def command(standalone_mode):
    module = Module()
    reference = weakref.ref(module, lambda gone: (os.kill(os.getpid(), int(sys.argv[1])), time.sleep(0.001)))
    del module  # Python ignores what its callback raises
    time.sleep(20)
    print("survived")

main._app = lambda arguments: command
main.main()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("name", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_is_not_lost_in_a_callback(name: str, code: int, word: str) -> None:
    number = str(int(getattr(signal, name)))
    done = subprocess.run([sys.executable, "-c", IN_A_CALLBACK, number], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"error: {word}\n")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("name", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_while_onnxruntime_is_imported_is_no_failed_import(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, name: str, code: int, word: str
) -> None:
    (tmp_path / "onnxruntime.py").write_text(INTERRUPTED_IMPORT.format(name=name))
    result = vaekit("sample", "-m", tiny_bundle, env={"PYTHONPATH": str(tmp_path)})
    assert_fails(result, code, word)
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)
    assert not (tmp_path / "grid.png").exists()


# bench


def test_bench_tells_machines_what_the_readme_says(vaekit: Run, tiny_bundle: Path) -> None:
    options = ("--batch", "1", "--batch", "3", "--threads", "1", "--seconds", "0.01", "--provider", "cpu")
    result = vaekit("bench", "-m", tiny_bundle, *options, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    document: dict[str, Any] = json.loads(result.stdout)
    assert list(document) == ["provider", "encode", "decode", "best"]
    assert document["provider"] == "cpu"
    assert list(document["best"]) == ["encode", "decode"]
    for graph in ("encode", "decode"):
        rows = document[graph]
        assert [(row["batch"], row["threads"]) for row in rows] == [(1, 1), (3, 1)]
        for row in rows:
            assert list(row) == ["batch", "threads", "images_per_second", "p50_ms", "p95_ms"]
            assert row["images_per_second"] > 0
            assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert document["best"][graph] == max(rows, key=lambda row: row["images_per_second"])


def test_bench_tells_people_the_options_to_use(vaekit: Run, tiny_bundle: Path) -> None:
    options = ("--batch", "2", "--threads", "1", "--seconds", "0.01", "--provider", "cpu")
    result = vaekit("bench", "-m", tiny_bundle, *options)
    assert (result.returncode, result.stderr) == (0, "")
    head, encode, decode, *advice = result.stdout.splitlines()
    assert head.split() == ["batch", "threads", "images/s", "p50", "ms", "p95", "ms"]
    assert [line.split()[:3] for line in (encode, decode)] == [["encode", "2", "1"], ["decode", "2", "1"]]
    assert [line.split()[0] for line in advice] == ["encode", "decode"]
    assert all("--batch-size 2 --threads 1" in line and "images/s on cpu" in line for line in advice)


# doctor


def test_doctor_says_what_runs_and_what_to_install(vaekit: Run) -> None:
    result = vaekit("doctor")
    assert (result.returncode, result.stderr) == (0, "")
    facts, _, providers = result.stdout.partition("\n\n")
    names = {line.split()[0]: line for line in facts.splitlines()}
    assert names["vaekit"].split()[1] == package.__version__
    assert all(name in names for name in ("python", "platform", "processor", "onnxruntime"))
    rows = {line.split()[0]: line for line in providers.splitlines()}
    assert set(PROVIDERS) <= set(rows)
    assert " runs " in rows["cpu"]
    assert "2 of 2 nodes on CPU" in rows["cpu"]
    for name in PROVIDERS:
        if PROVIDERS[name] not in available_providers():
            assert rows[name].endswith(f"not installed  {INSTALL_HINTS[name]}")


def test_doctor_tells_machines_in_one_document(vaekit: Run) -> None:
    result = vaekit("doctor", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["vaekit"] == package.__version__
    assert document["problems"] == []
    assert document["cpus"] >= 1
    found = {provider["name"]: provider for provider in document["providers"]}
    assert found["cpu"]["state"] == "runs"
    assert {provider["state"] for provider in found.values()} <= {"runs", "fails", "missing"}
    assert all(bool(provider["install"]) == (provider["state"] == "missing") for provider in found.values())


def test_doctor_fails_where_nothing_runs(vaekit: Run, assert_fails: Fails, without_onnxruntime: dict[str, str]) -> None:
    result = vaekit("doctor", env=without_onnxruntime)
    assert_fails(result, 1, "no provider works", "vaekit[cpu]")
    assert any(line.startswith("problem") and "vaekit[cpu]" in line for line in result.stdout.splitlines())
    assert len(result.stderr.splitlines()) == 1
    machine = vaekit("doctor", "--json", env=without_onnxruntime)
    assert_fails(machine, 1, "no provider works")
    assert {provider["state"] for provider in json.loads(machine.stdout)["providers"]} == {"missing"}
