"""Bundles from strangers in processes of their own. tests/bundles/make_hostile_graphs.py made the graphs."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

import vaekit
from vaekit.errors import BundleError, ProviderError, UsageError
from vaekit.ort.confined import ConfinedSession, EndedError, Limits

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

GRAPHS = Path(__file__).parent / "graphs"
Z = np.zeros((3, 4), np.float32)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are confined on Linux only")


@pytest.fixture
def with_decoder(copied_bundle: Path) -> Callable[[str], Path]:
    """Return a function that puts one of the graphs into a bundle."""

    def put(name: str) -> Path:
        data = (GRAPHS / f"{name}.onnx").read_bytes()
        (copied_bundle / "decoder.onnx").write_bytes(data)
        manifest = copied_bundle / "manifest.json"
        document = json.loads(manifest.read_text())
        document["graphs"]["decoder"]["sha256"] = hashlib.sha256(data).hexdigest()
        if name == "future":
            document["graphs"]["decoder"]["opset"] = 99
        manifest.write_text(json.dumps(document))
        return copied_bundle

    return put


def process_of(vae: vaekit.VAE) -> int:
    """Return the number of the process of an untrusted decoder."""
    return int(vae.graph("decoder").session._process.pid)


def is_running(process: int) -> bool:
    """Return whether there is such a process, and not only what is left of it until its parent asks."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def limit_of(process: int, name: str) -> str:
    """Return a hard limit of a process, in Linux's words."""
    lines = Path(f"/proc/{process}/limits").read_text().splitlines()
    (line,) = [line.removeprefix(name) for line in lines if line.startswith(name)]
    return line.split()[1]


@pytest.mark.parametrize("name", ["tiny", "deterministic", "flow", "labels", "free", "map"])
def test_results_are_the_same(bundles: Path, name: str) -> None:
    ours, confined = (
        vaekit.load(bundles / name, provider="cpu", threads=1, batch_size=2, untrusted=untrusted)
        for untrusted in (False, True)
    )
    images = ours.sample(3, seed=1)
    np.testing.assert_array_equal(confined.sample(3, seed=1), images)
    for one, other in zip(confined.encode(images), ours.encode(images), strict=True):
        np.testing.assert_array_equal(one, other)
    assert confined.verify().passed
    assert confined.graph("decoder").placement == ours.graph("decoder").placement


def test_the_limits_hold_in_the_process(tiny_bundle: Path) -> None:
    vae = vaekit.load(tiny_bundle, untrusted=True, memory_limit=1.5)
    process = process_of(vae)
    assert process != os.getpid()
    for name in ("Max open files", "Max file size", "Max core file size"):
        assert limit_of(process, name) == "0", name
    assert 1.5e9 < int(limit_of(process, "Max address space")) < 3.5e9
    assert "NoNewPrivs:\t1" in Path(f"/proc/{process}/status").read_text()


def test_a_graph_without_end_is_ended(with_decoder: Callable[[str], Path]) -> None:
    vae = vaekit.load(with_decoder("endless"), untrusted=True, time_limit=1.0)
    process = process_of(vae)
    with pytest.raises(ProviderError, match="the decoder failed on cpu: it took longer than 1 seconds"):
        vae.decode(Z)
    assert not is_running(process)
    with pytest.raises(ProviderError, match="failed on cpu"):
        vae.decode(Z)
    assert vae.encode(np.zeros((1, 1, 8, 8)))[0].shape == (1, 4)  # the encoder has a process of its own


def test_a_graph_that_takes_too_much_memory_is_stopped(with_decoder: Callable[[str], Path]) -> None:
    vae = vaekit.load(with_decoder("greedy"), untrusted=True, memory_limit=1)
    with pytest.raises(ProviderError, match=r"it may take 1 GB of memory"):
        vae.decode(Z)


@pytest.mark.parametrize("untrusted", [False, True])
@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("wrong", BundleError, r"returned an array of shape \(3, 1, 1, 4\), but the manifest declares \(3, 1, 8, 8\)"),
        ("flat", BundleError, r"returned an array of shape \(12,\), but the manifest declares \(3, 1, 8, 8\)"),
        ("nan", ProviderError, "the decoder returned NaN or infinity on cpu"),
        ("future", BundleError, "cannot load this graph: .*99"),
    ],
)
def test_what_misbehaves_otherwise_is_named(
    with_decoder: Callable[[str], Path], name: str, kind: type[Exception], words: str, untrusted: bool
) -> None:
    vae = vaekit.load(with_decoder(name), provider="cpu", untrusted=untrusted)
    with pytest.raises(kind, match=words):
        vae.decode(Z)


def test_a_process_that_dies_is_named(tiny_bundle: Path) -> None:
    vae = vaekit.load(tiny_bundle, untrusted=True)
    os.kill(process_of(vae), signal.SIGKILL)
    with pytest.raises(ProviderError, match="its process was ended by SIGKILL"):
        vae.decode(Z)


def test_an_answer_that_came_too_late_is_not_taken_for_the_next(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaekit.ort import confined

    def interrupted(stream: object) -> None:
        raise KeyboardInterrupt

    vae = vaekit.load(tiny_bundle, untrusted=True)
    vae.decode(Z)
    with monkeypatch.context() as patched:
        patched.setattr(confined, "_read_head", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vae.decode(Z)
    with pytest.raises(ProviderError, match="its process was ended by SIGKILL"):
        vae.decode(Z + 1)


def test_processes_end_with_their_session(tiny_bundle: Path) -> None:
    vae = vaekit.load(tiny_bundle, untrusted=True)
    process = process_of(vae)
    assert is_running(process)
    del vae
    gc.collect()
    assert not is_running(process)


def test_a_thread_that_opens_a_graph_may_end(tiny_bundle: Path) -> None:
    vae = vaekit.load(tiny_bundle, untrusted=True)
    opener = Thread(target=lambda: vae.graph("decoder"))
    opener.start()
    opener.join()
    time.sleep(0.2)
    assert vae.decode(Z).shape == (3, 1, 8, 8)


def test_threads_take_turns(tiny_bundle: Path) -> None:
    vae = vaekit.load(tiny_bundle, untrusted=True)
    codes = np.random.default_rng(0).standard_normal((8, 5, 4)).astype(np.float32)
    found: dict[int, Any] = {}
    workers = [Thread(target=lambda k=k: found.update({k: vae.decode(codes[k])})) for k in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k in range(8):
        np.testing.assert_array_equal(found[k], vae.decode(codes[k]))


def test_a_graph_without_end_ends_after_its_parent(with_decoder: Callable[[str], Path], tmp_path: Path) -> None:
    code = f"import vaekit, numpy; vae = vaekit.load({str(with_decoder('endless'))!r}, untrusted=True)\n"
    code += "print(vae.graph('decoder').session._process.pid, flush=True); vae.decode(numpy.zeros((1, 4)))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        assert is_running(process)
        parent.send_signal(signal.SIGKILL)
    while is_running(process):  # it looks for its parent now and then
        time.sleep(0.1)


ANSWERS = {
    "nothing": b"",
    "no length": b"abc",
    "more than is allowed": (1 << 40).to_bytes(8, "little"),
    "no JSON": (4).to_bytes(8, "little") + b"{{{{",
    "no object": (2).to_bytes(8, "little") + b"[]",
    "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "no placement": (2).to_bytes(8, "little") + b"{}",
    "a placement of nothing": (18).to_bytes(8, "little") + b'{"placement": "x"}',
    "too many numbers": (36).to_bytes(8, "little") + b'{"placement":{},"shapes":[[1e9,1e9]]}'[:36],
    "a negative size": (35).to_bytes(8, "little") + b'{"placement":{},"shapes":[[-1, -4]]}'[:35],
    "numbers that do not come": (32).to_bytes(8, "little") + b'{"placement":{},"shapes":[[64]]}',
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_a_process_answers_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str) -> None:
    (tmp_path / "answer").write_bytes(ANSWERS[answer])
    impostor = tmp_path / "python"
    impostor.write_text(f"#!/bin/sh\ncat {tmp_path / 'answer'}\n")
    impostor.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(impostor))
    with pytest.raises(EndedError, match="its process"):
        ConfinedSession("decoder", b"", 1, False, Limits())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"untrusted": True, "provider": "cuda"}, "CPU only, not on cuda"),
        ({"untrusted": True, "memory_limit": 0}, "positive numbers"),
        ({"untrusted": True, "time_limit": float("nan")}, "positive numbers"),
        ({"memory_limit": 1}, "for untrusted bundles"),
    ],
)
def test_wrong_limits_are_named(tiny_bundle: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        vaekit.load(tiny_bundle, **options).decode(Z)


def test_other_systems_are_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UsageError, match="Linux"):
        vaekit.load(tiny_bundle, untrusted=True)


def test_the_command_line(vaekit: Run, assert_fails: Fails, with_decoder: Callable[[str], Path]) -> None:
    trusted, confined = (
        vaekit("sample", "-m", "demo", "-n", "4"),
        vaekit("sample", "-m", "demo", "-n", "4", "--untrusted"),
    )
    assert trusted.returncode == confined.returncode == 0, confined.stderr
    assert "sample -m demo --untrusted -n 4" in confined.stderr
    assert vaekit("verify", "-m", "demo", "--untrusted", "--memory-limit", "2", "--time-limit", "30").returncode == 0
    endless = with_decoder("endless")
    failed = vaekit("sample", "-m", endless, "-n", "4", "-o", "x.png", "--untrusted", "--time-limit", "1")
    assert_fails(failed, 1, "it took longer than 1 seconds")
    assert not Path("x.png").exists()
    assert_fails(vaekit("sample", "-m", "demo", "--time-limit", "1"), 2, "untrusted")
