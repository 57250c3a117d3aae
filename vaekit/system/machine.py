"""What this process may use of the machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """Processors this process may use: its affinity, and under a container its CPU quota, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus(_CGROUP)
    return max(1, min(allowed, math.ceil(quota))) if quota is not None else allowed


def is_first_process() -> bool:
    """Whether this is the first, or the only one, of the processes that ``torchrun`` or its like started together."""
    return os.environ.get("RANK", "0") == "0"


def available_memory() -> int:
    """Bytes of memory that can still be taken: what the machine has free, and under a container what its limit leaves.

    Where the system does not say (not Linux), four gigabytes are assumed.
    """
    free = _meminfo_available()
    left = _cgroup_memory_left(_CGROUP)
    return min(free, left) if left is not None else free


def processor_flags() -> frozenset[str]:
    """The instruction sets of this processor as Linux names them (``avx2``, ``avx512_vnni``, ``asimddp`` …).

    Empty where the system does not say.
    """
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def processor_name() -> str:
    """The processor's own name, or its kind where the system does not say."""
    import platform

    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def has_fast_int8(flags: frozenset[str]) -> bool:
    """Whether the processor multiplies 8-bit integers into 32-bit sums (VNNI, or ARM's dot product)."""
    return bool(flags & {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "asimddp", "i8mm"})


def _meminfo_available() -> int:
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 * 2**30


def _cgroup_cpus(root: Path) -> float | None:
    """The quota of version 2 (cpu.max) or version 1 (cpu.cfs_*), in processors; None without one."""
    quota, _, period = _read(root / "cpu.max").strip().partition(" ")
    if not period:
        quota = _read(root / "cpu/cpu.cfs_quota_us").strip()
        period = _read(root / "cpu/cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit():
        return None
    return int(quota) / int(period)


def _cgroup_memory_left(root: Path) -> int | None:
    """What the limit of version 2 or 1 leaves, in bytes; None without one.

    Linux counts the pages of files that were read as used, but takes the inactive ones back when memory is asked for.
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
    """A number of a file of ``name number`` lines; 0 where it is not there."""
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
