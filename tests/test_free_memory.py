"""What memory a process can still take, where control groups limit it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from bc2.free_memory import host_available


def test_the_limit_of_a_control_group_counts(tmp_path: Path) -> None:
    """Version 2: the tightest group on the way up, without the cache that can be given back."""
    write(tmp_path / "a", "memory.max", "1000000", "memory.current", "700000", "inactive_file")
    write(tmp_path / "a" / "b", "memory.max", "max", "memory.current", "5", "inactive_file")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/a/b\n")
    assert host_available(tmp_path, membership) == 1_000_000 - 700_000 + 40_000


def test_the_limit_of_a_control_group_of_version_1_counts(tmp_path: Path) -> None:
    names = ("memory.limit_in_bytes", "500000", "memory.usage_in_bytes", "100000")
    write(tmp_path / "memory" / "a", *names, "total_inactive_file")
    membership = tmp_path / "cgroup"
    membership.write_text("5:cpu:/a\n4:memory:/a\n")
    assert host_available(tmp_path, membership) == 440_000


def write(folder: Path, limit: str, most: str, usage: str, used: str, cache: str) -> None:
    folder.mkdir(parents=True)
    (folder / limit).write_text(most + "\n")
    (folder / usage).write_text(used + "\n")
    (folder / "memory.stat").write_text(f"anon 5\n{cache} 40000\n")


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    available = psutil.virtual_memory().available
    assert host_available(tmp_path, tmp_path / "none") == pytest.approx(available, rel=0.1)
