from __future__ import annotations

import re
from pathlib import Path

import pytest

from bc2.sandbox.syscalls import ALLOWED, MACHINES, seccomp_filter

HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}


@pytest.mark.parametrize("name", MACHINES)
def test_numbers_are_those_of_the_kernels_headers(name: str) -> None:
    path = next((Path(p) for p in HEADERS[name] if Path(p).exists()), None)
    if path is None:
        pytest.skip(f"no headers of Linux for {name} here")
    pattern = r"#define __NR(?:3264)?_(\w+) (\d+)"
    known = {m[0]: int(m[1]) for m in re.findall(pattern, path.read_text())}
    known.setdefault("newfstatat", known.get("fstatat", -1))
    number = MACHINES[name].number
    assert {call: known[call] for call in number} == number


def test_every_allowed_call_is_one_of_a_machine() -> None:
    assert set(ALLOWED) <= {name for machine in MACHINES.values() for name in machine.number}


@pytest.mark.parametrize("name", MACHINES)
def test_jumps_stay_within_the_filter(name: str) -> None:
    steps = seccomp_filter(MACHINES[name], 2)
    assert len(steps) % 8 == 0
    assert len(steps) // 8 <= 4096
    for index in range(0, len(steps), 8):
        code = steps[index] | steps[index + 1] << 8
        if code == 0x15:
            assert index // 8 + 1 + max(steps[index + 2], steps[index + 3]) < len(steps) // 8
    assert steps[-8:] == bytes([0x06, 0, 0, 0, 1, 0, 5, 0])  # EPERM for all others
