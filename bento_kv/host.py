"""CPUs, memory and processor of the machine that this process runs on, as a container's limits leave them."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, cut by the cgroup's quota (v2 and v1), at least 1.

    A container with a quota of 2 CPUs on a host of 64 gets 2; threads beyond a quota only wait for each other.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(_CGROUP)
    return max(1, min(count, int(quota)) if quota is not None else count)


def cgroup_quota(root: Path) -> float | None:
    """CPUs that a cgroup's quota allows, or None if it has none. Source: Linux Documentation/admin-guide/cgroup-v2."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has available, cut by the cgroup's limit (v2 and v1)."""
    free = int(psutil.virtual_memory().available)
    room = cgroup_memory(_CGROUP)
    return free if room is None else min(free, room)


def cgroup_memory(root: Path) -> int | None:
    """Bytes up to a cgroup's memory limit, or None if it has none.

    Pages of files that nobody has used lately count as used there and are given up when memory is short. Sources: Linux
    Documentation/admin-guide/cgroup-v2 and cgroup-v1/memory.
    """
    folder, limit, usage, inactive = root, "memory.max", "memory.current", "inactive_file"
    if not (root / limit).is_file():
        folder, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        inactive = "total_inactive_file"
    try:
        allowed = (folder / limit).read_text().strip()
        if allowed == "max":
            return None
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(allowed) - used + int(stat[inactive]))
    except (OSError, ValueError, KeyError):
        return None


def processor() -> dict[str, str]:
    """What computed numbers may depend on: system, machine, processor, instruction sets."""
    facts = {"system": platform.system(), "machine": platform.machine(), "processor": platform.processor()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        facts["processor"] = fields.get("model name", facts["processor"])
        flags = [f for f in fields.get("flags", "").split() if f.startswith(("avx", "amx", "sse4_2", "fma"))]
        facts["instruction_sets"] = " ".join(flags)
    return facts
