"""What a container may use of its machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_kv.host import available_cpus, available_memory, cgroup_memory, cgroup_quota


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_quota_of_a_cgroup(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cgroup_quota(tmp_path) == quota


def test_there_is_at_least_one_cpu() -> None:
    assert available_cpus() >= 1


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 600\ninactive_file 50\n"}, 350),
        ({"memory.max": "1000\n", "memory.current": "1100\n", "memory.stat": "inactive_file 0\n"}, 0),
        ({"memory.max": "max\n", "memory.current": "700\n", "memory.stat": "inactive_file 50\n"}, None),
        (
            {
                "memory/memory.limit_in_bytes": "1000\n",
                "memory/memory.usage_in_bytes": "400\n",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
            },
            700,
        ),
        ({"memory.max": "1000\n"}, None),
        ({"memory.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_memory_of_a_cgroup(files: dict[str, str], room: int | None, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cgroup_memory(tmp_path) == room


def test_some_memory_is_free() -> None:
    assert 2**20 < available_memory() < 2**50
