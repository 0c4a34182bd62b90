"""Peaks of memory, against tensors of known size."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch

from bc2.train.peak import allocated_peak, device_peak, forget_peak, host_peak

MB = 1 << 20


def test_allocated_peak_counts_what_is_there_at_once() -> None:
    lasting = torch.ones(5 * MB, dtype=torch.uint8)

    def act() -> None:
        first = torch.ones(30 * MB, dtype=torch.uint8)
        second = torch.ones(20 * MB, dtype=torch.uint8)
        del first
        third = torch.ones(25 * MB, dtype=torch.uint8)
        del second, third

    # a view is no second copy
    peak = allocated_peak(act, [lasting, lasting[:7]])
    assert peak == pytest.approx(55 * MB, rel=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="looks in /proc")
def test_the_hosts_peak_can_be_forgotten() -> None:
    before = forget_peak()
    # Mapped by hand: an engine of another test may have told the allocator to keep what is freed.
    with mmap.mmap(-1, 64 * MB) as big:
        for _ in range(64):
            big.write(bytes(range(256)) * (MB // 256))
        assert host_peak() - before > 60 * MB
    forget_peak()
    assert host_peak() - before < 60 * MB


def test_a_cpu_has_no_peak_of_a_gpu() -> None:
    assert device_peak(torch.device("cpu")) is None
