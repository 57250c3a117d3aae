from __future__ import annotations

import os
from pathlib import Path

import pytest

from vaekit.system import machine
from vaekit.system.machine import available_memory, usable_cpus

GIB = 2**30


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate an empty control group on a machine with 16 processors and 8 GiB free."""
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_meminfo_available", lambda: 8 * GIB)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text + "\n")


V1_CPU = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
V1_MEMORY = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")

V2_FULL = {"memory.max": str(4 * GIB), "memory.current": str(4 * GIB)}


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        pytest.param({}, 16, id="no control group"),
        pytest.param({"cpu.max": "max 100000"}, 16, id="no limit"),
        pytest.param({"cpu.max": "200000 100000"}, 2, id="two"),
        pytest.param({"cpu.max": "250000 100000"}, 3, id="two and a half"),
        pytest.param({"cpu.max": "10000 100000"}, 1, id="a tenth"),
        pytest.param({"cpu.max": "6400000 100000"}, 16, id="more than there are"),
        pytest.param({"cpu.max": ""}, 16, id="an empty file"),
        pytest.param(dict(zip(V1_CPU, ("400000", "100000"), strict=True)), 4, id="version 1"),
        pytest.param(dict(zip(V1_CPU, ("-1", "100000"), strict=True)), 16, id="version 1 without limit"),
    ],
)
def test_processors_are_those_of_the_quota(cgroup: Path, files: dict[str, str], cpus: int) -> None:
    write(cgroup, files)
    assert usable_cpus() == cpus


def test_processors_are_those_of_the_affinity(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert usable_cpus() == 2
    write(cgroup, {"cpu.max": "100000 100000"})
    assert usable_cpus() == 1


def test_processors_are_counted_where_there_is_no_affinity(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == 1


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        pytest.param({}, 8 * GIB, id="no control group"),
        pytest.param({"memory.max": "max", "memory.current": "5"}, 8 * GIB, id="no limit"),
        pytest.param({"memory.max": str(4 * GIB), "memory.current": str(GIB)}, 3 * GIB, id="three left"),
        pytest.param({"memory.max": str(GIB), "memory.current": str(2 * GIB)}, 0, id="none left"),
        pytest.param({"memory.max": str(64 * GIB), "memory.current": "0"}, 8 * GIB, id="more than there is"),
        pytest.param({"memory.max": str(GIB)}, 8 * GIB, id="a file missing"),
        pytest.param(dict(zip(V1_MEMORY, (str(2 * GIB), str(GIB)), strict=True)), GIB, id="version 1"),
        pytest.param(
            V2_FULL | {"memory.stat": f"anon 5\nfile {3 * GIB}\ninactive_file {2 * GIB}\nactive_file {GIB}"},
            2 * GIB,
            id="full of files that were read",
        ),
        pytest.param(V2_FULL | {"memory.stat": f"inactive_file {9 * GIB}"}, 4 * GIB, id="more files than is used"),
        pytest.param(V2_FULL | {"memory.stat": "inactive_file\n\nrubbish"}, 0, id="damaged statistics"),
        pytest.param(
            dict(zip(V1_MEMORY, (str(2 * GIB), str(2 * GIB)), strict=True))
            | {"memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}"},
            GIB,
            id="version 1, full of files that were read",
        ),
        pytest.param(dict(zip(V1_MEMORY, (str(2**63 - 4096), "9"), strict=True)), 8 * GIB, id="version 1, no limit"),
    ],
)
def test_memory_is_what_the_limit_leaves(cgroup: Path, files: dict[str, str], memory: int) -> None:
    write(cgroup, files)
    assert available_memory() == memory


def test_memory_is_what_linux_says_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    text = "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    3000000 kB\n"
    monkeypatch.setattr(machine, "_read", lambda path: text if path.name == "meminfo" else "")
    assert available_memory() == 3_000_000 * 1024


def test_memory_is_assumed_where_the_system_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_read", lambda path: "")
    assert available_memory() == 4 * GIB


def test_this_machine_has_something() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
    assert available_memory() > 0
