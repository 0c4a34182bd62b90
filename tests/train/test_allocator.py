"""The allocator's setting, in processes of its own: it cannot be taken back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

GLIBC = platform.libc_ver()[0] == "glibc"

PROGRAM = """
import os, resource, torch
from bc2.train.allocator import keep_freed_memory
print(int("LEAVE" not in os.environ and keep_freed_memory()))
model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(2)))
def steps(count):
    for _ in range(count):
        model(torch.ones(40_000, 256)).square().mean().backward()
        model.zero_grad()
steps(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps(2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], text=True, capture_output=True, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    kept, faults = done.stdout.split()
    return kept == "1", int(faults)


@pytest.mark.skipif(not GLIBC, reason="a setting of glibc")
def test_freed_memory_is_used_again_instead_of_mapped_anew() -> None:
    kept, faults = run()
    left, before = run(LEAVE="1")
    assert kept
    assert not left
    assert faults < before / 4


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_chose_stays(name: str) -> None:
    value = {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}.get(name, "131072")
    kept, _ = run(**{name: value})
    assert not kept
