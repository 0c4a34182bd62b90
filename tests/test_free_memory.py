"""What memory a process can still take, where control groups limit it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bc2 import free_memory
from bc2.errors import RunFailed
from bc2.free_memory import gpus_available, host_available


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


def test_gpus_are_asked_by_a_process_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here there are none: the process says so, and this one has not tried."""
    with pytest.raises(RunFailed, match="the GPUs do not say how much memory is free: "):
        gpus_available([0])


def test_what_gpus_answer_is_in_the_order_of_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def answer(command: list[str], **_: Any) -> Any:
        asked.append(command[-2:])
        return SimpleNamespace(returncode=0, stdout="50 70\n")

    monkeypatch.setattr(free_memory.subprocess, "run", answer)
    assert gpus_available([2, 0]) == [50, 70]
    assert asked == [["2", "0"]]
