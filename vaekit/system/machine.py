"""The processors and memory that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """Return the number of processors that this process may use.

    This is its affinity, limited by a container's CPU quota, rounded up.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus(_CGROUP)
    return max(1, min(allowed, math.ceil(quota))) if quota is not None else allowed


def is_first_process() -> bool:
    """Return whether this is the first process of a distributed training.

    A process that was not started by ``torchrun`` or a similar launcher is the first, too.
    """
    return os.environ.get("RANK", "0") == "0"


def available_memory() -> int:
    """Return the bytes of memory that this process can still allocate.

    A container's limit counts. Four gigabytes are assumed on systems other than Linux, which do not say.
    """
    free = _meminfo_available()
    left = _cgroup_memory_left(_CGROUP)
    return min(free, left) if left is not None else free


def processor_flags() -> frozenset[str]:
    """Return the processor's instruction sets by Linux's names, such as ``avx512_vnni``.

    Empty on other systems.
    """
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def processor_name() -> str:
    """Return the processor's model name, or its architecture if unknown."""
    import platform

    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def has_fast_int8(flags: frozenset[str]) -> bool:
    """Return whether the processor has VNNI or ARM's dot product.

    These instructions multiply 8-bit integers and add the products in 32 bits.
    """
    return bool(flags & {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "asimddp", "i8mm"})


def _meminfo_available() -> int:
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 * 2**30


def _cgroup_cpus(root: Path) -> float | None:
    """Return the cgroup's CPU quota in processors; None without a quota.

    Both versions are read: cpu.max of version 2, cpu.cfs_* of version 1.
    """
    quota, _, period = _read(root / "cpu.max").strip().partition(" ")
    if not period:
        quota = _read(root / "cpu/cpu.cfs_quota_us").strip()
        period = _read(root / "cpu/cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit():
        return None
    return int(quota) / int(period)


def _cgroup_memory_left(root: Path) -> int | None:
    """Return the bytes left under the cgroup's memory limit; None without a limit.

    Linux counts cached file pages as used memory, but frees the inactive ones on demand. These count as free.
    """
    for limit_name, used_name, statistics, cache_name in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        limit, used = _read(root / limit_name).strip(), _read(root / used_name).strip()
        if limit.isdigit() and used.isdigit():
            in_use = max(0, int(used) - _statistic(root / statistics, cache_name))
            return max(0, int(limit) - in_use)
    return None


def _statistic(path: Path, name: str) -> int:
    """Return a number from a file of ``name number`` lines; 0 if it is missing."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
