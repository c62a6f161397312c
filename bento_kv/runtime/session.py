"""An ONNX Runtime session as the decoder is proven and served with: the same settings in both."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from bento_kv.errors import DecoderError, IntegrityError, first_line

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
    room = cgroup_memory(_CGROUP)
    free = free_memory(Path("/proc/meminfo"))
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


def free_memory(meminfo: Path) -> int:
    """Bytes that can be had without swapping, by Linux's own estimate; all physical memory where there is none."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def open_session(
    model: Path,
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    reduce_range: bool = False,
) -> ort.InferenceSession:
    """Load a graph for serving.

    Args:
        model: the ONNX file; external data stands beside it.
        threads: of one step; `available_cpus()` unless set.
        providers: execution providers in order of preference; the CPU's unless set.
        reduce_range: its int8 weights keep to `quantization.REDUCED_RANGE`.

    Raises:
        DecoderError: a provider is not in the installed runtime, or the runtime refuses the graph.
        IntegrityError: the external data is missing or shorter than the graph says.
    """
    wanted = list(providers or ["CPUExecutionProvider"])
    missing = [name for name in wanted if name not in ort.get_available_providers()]
    if missing:
        raise DecoderError(
            f"execution provider {missing[0]} is not in the installed onnxruntime "
            f"({', '.join(ort.get_available_providers())}); install the package that has it"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # an error is raised, and need not be printed besides
    # Threads spin within a run, which small steps gain from, and rest between runs, so that an idle server is idle.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Without VNNI instructions, products of uint8 and int8 saturate in 16 bits, unless the range of weights is reduced. Asked
    # to be precise there, the runtime takes a kernel that does not, in prompts about a third slower, for which it converts
    # all weights when it opens the graph; where there are such instructions, nothing changes.
    options.add_session_config_entry("session.x64quantprecision", "0" if reduce_range else "1")
    try:
        session = ort.InferenceSession(str(model), options, providers=wanted)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = first_line(error)
        if "external" in reason.lower() or "out of bounds" in reason.lower():
            raise IntegrityError(f"{model}: its weights file is missing or damaged: {reason}") from error
        raise DecoderError(f"onnxruntime {ort.__version__} does not load {model}: {reason}") from error
    _release_freed_memory()
    return session


def _release_freed_memory() -> None:
    """Give back what loading a graph took and freed, weights in other forms above all: glibc would keep it."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
