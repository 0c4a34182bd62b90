"""The allocator's setting, in processes of its own: it cannot be taken back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from bc2.train import allocator

GLIBC = platform.libc_ver()[0] == "glibc"

#: One tensor of 40 MB after another, each freed before the next: above the 32 MB that glibc
#: may come to keep by itself. What is cut off beside an aligned block is kept apart, seven of a
#: size, so the first freed blocks are a little too small for the next: they are not counted.
PROGRAM = """
import os, resource, torch
from bc2.train.allocator import keep_freed_memory
print(int("LEAVE" not in os.environ and keep_freed_memory()))
def fill(times):
    for _ in range(times):
        torch.ones(10_000_000)
fill(20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill(10)
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


#: For a GPU, whether there is one or not: settings are read before it is looked for.
CUDA_PROGRAM = """
import os, torch
from bc2.train.allocator import use_expandable_segments
done = use_expandable_segments(torch.device(os.environ["DEVICE"]))
print(int(done), torch._C._accelerator_getAllocatorSettings() or "-")
print(os.environ.get("PYTORCH_ALLOC_CONF", "-"))
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DEVICE": "cuda:1"}, ["1", "expandable_segments:True", "expandable_segments:True"]),
        ({"DEVICE": "cpu"}, ["0", "-", "-"]),
        (
            {"DEVICE": "cuda", "PYTORCH_ALLOC_CONF": "max_split_size_mb:64"},
            ["0", "max_split_size_mb:64", "max_split_size_mb:64"],
        ),
        (
            {"DEVICE": "cuda", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
            ["0", "max_split_size_mb:64", "-"],
        ),
    ],
)
def test_cuda_memory_grows_unless_the_user_chose(
    environment: dict[str, str], expected: list[str]
) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in allocator.CUDA_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", CUDA_PROGRAM], text=True, capture_output=True, check=True,
        env={**kept, **environment},
    )  # fmt: skip
    assert done.stdout.split() == expected
