"""How many ranks to start, and on which machines: the options of every training verb."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bc2.errors import UsageError
from bc2.ranks import RENDEZVOUS_TIMEOUT_S, place


@dataclass(frozen=True)
class Ranks:
    """How many, and where.

    Attributes:
        nproc: on this machine.
        nnodes: machines, or the fewest and the most: "2:4".
        node_rank: which of them this is; None: as they come.
        rendezvous: HOST:PORT of the first machine; None with one machine.
        max_restarts: how often all ranks are started again after one failed.
        rendezvous_timeout: how long to wait for all ranks, or all machines, to come, seconds.
    """

    nproc: int = 1
    nnodes: str = "1"
    node_rank: int | None = None
    rendezvous: str | None = None
    max_restarts: int = 0
    rendezvous_timeout: int = RENDEZVOUS_TIMEOUT_S

    def __post_init__(self) -> None:
        least, most = self.machines
        if not 1 <= least <= most:
            raise UsageError(f"--nnodes {self.nnodes} is no number of machines", todo="e.g. 2")
        if most > 1 and self.rendezvous is None:
            raise UsageError(
                f"--nnodes {self.nnodes} needs --rendezvous",
                todo="give every machine HOST:PORT of the first one",
            )
        self._check_place(most)
        here = place()
        if self.wanted and here.world > 1:
            raise UsageError(
                f"this is one of {here.world} ranks already ({here.said_by}): it starts no others",
                todo="leave out --nproc and --nnodes under torchrun, deepspeed or srun; "
                + here.alone,
            )

    def _check_place(self, most: int) -> None:
        host, _, port = (self.rendezvous or "localhost:0").rpartition(":")
        if not (host and port.isdecimal() and int(port) < 1 << 16):
            raise UsageError(
                f"--rendezvous {self.rendezvous} is no HOST:PORT", todo="e.g. first-machine:29500"
            )
        if self.node_rank is not None and not 0 <= self.node_rank < most:
            raise UsageError(
                f"--node-rank {self.node_rank} is none of --nnodes {self.nnodes}",
                todo=f"number the machines from 0 to {most - 1}",
            )

    @property
    def machines(self) -> tuple[int, int]:
        """Fewest and most."""
        try:
            sizes = [int(number) for number in self.nnodes.split(":")]
        except ValueError:
            sizes = []
        return (sizes[0], sizes[-1]) if len(sizes) in (1, 2) else (0, 0)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to start."""
        return self.nproc > 1 or self.machines[1] > 1 or self.max_restarts > 0

    @property
    def starts(self) -> int | None:
        """How many this process starts here; None: none, it does the work itself."""
        return self.nproc if self.wanted else None

    @property
    def options(self) -> list[str]:
        """What a person types for it."""
        said: list[tuple[str, Any, Any]] = [
            ("--nproc", self.nproc, 1),
            ("--nnodes", self.nnodes, "1"),
            ("--node-rank", self.node_rank, None),
            ("--rendezvous", self.rendezvous, None),
            ("--max-restarts", self.max_restarts, 0),
            ("--rendezvous-timeout", self.rendezvous_timeout, RENDEZVOUS_TIMEOUT_S),
        ]
        return [word for name, is_, default in said if is_ != default for word in (name, str(is_))]
