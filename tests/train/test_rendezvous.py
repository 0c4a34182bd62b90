"""What is said of a collective that broke."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from bc2.errors import RunFailed
from bc2.parallel.mesh import Group
from bc2.train.rendezvous import explain_lost_rank

PAIR = Group((0, 1), 1)

NCCL = """\
NCCL error in: NCCLUtils.cpp:77, remote process exited, NCCL version 2.27.5
ncclRemoteError: A call failed possibly due to a network error.
Last error:
{}"""


def broken(said: str) -> RuntimeError:
    return dist.DistBackendError(NCCL.format(said))


def test_the_last_error_of_nccl_is_told() -> None:
    with (
        pytest.raises(RunFailed, match=r"^rank 1 lost the other ranks: NCCL: socketProgress"),
        explain_lost_rank(PAIR),
    ):
        raise broken("socketProgress: Connection closed by remote peer")


def test_gloo_says_it_in_its_first_line() -> None:
    said = "[gloo/transport/tcp/pair.cc:1] Connection closed"
    with pytest.raises(RunFailed, match=r"pair\.cc:1. Connection closed"), explain_lost_rank(PAIR):
        raise RuntimeError(f"{said}\nmore")


def test_memory_that_ran_out_in_nccl_is_no_lost_rank() -> None:
    with pytest.raises(dist.DistBackendError), explain_lost_rank(PAIR):
        raise broken("Cuda failure 2 'out of memory'")
