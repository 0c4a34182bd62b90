"""The worker processes of a contender, seen from their parent."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Iterator
from typing import Any

from bc2 import ENVIRONMENT, KEEP_ENVIRONMENT
from bc2.bench.spec import Spec
from bc2.ranks import threads_of_each
from bc2.train.worker_process import Answer, WorkerFailed, WorkerProcess

#: Seconds that ranks may take to answer after one of them has failed.
GRACE_S = 5.0

#: Who is named in the error of a rank that only lost another one.
_BROKEN = ("gloo", "NCCL")


class Workers:
    """The processes of one contender, one for each rank; see `bc2.bench.worker`."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self._ranks = [
            WorkerProcess("bc2.bench.worker", spec.model_dump_json(), environment)
            for environment in _environments(spec)
        ]

    def begin(self) -> None:
        """Wait until every rank is ready. Raises: WorkerFailed if one cannot be."""
        for rank in self._ranks:
            rank.send_first()
        self._receive()

    def ask(self, do: str, **arguments: Any) -> Answer:
        """Call a method on every rank; the first rank's answer.

        Raises:
            WorkerFailed: it raised on a rank, or one died.
        """
        return self.ask_each(do, **arguments)[0]

    def ask_each(self, do: str, **arguments: Any) -> list[Answer]:
        """Call a method on every rank; all answers, in the order of ranks."""
        # All get the request before one is waited for: they wait for each other.
        for rank in self._ranks:
            rank.send(do, **arguments)
        return self._receive()

    def close(self) -> None:
        """End the processes and wait for them."""
        for rank in self._ranks:
            rank.close()

    def _receive(self) -> list[Answer]:
        answers: dict[int, Answer] = {}
        failures: list[WorkerFailed] = []
        waiting = dict(enumerate(self._ranks))
        # NCCL does not notice that a rank is gone: the others would wait for half an hour.
        while waiting and (spoke := _speaking(waiting, GRACE_S if failures else None)):
            for rank in spoke:
                try:
                    answers[rank] = waiting.pop(rank).receive()
                except WorkerFailed as error:
                    failures.append(error)
        if failures:
            # The others only lost a rank: the one that failed first says why.
            raise min(failures, key=lambda error: any(name in str(error) for name in _BROKEN))
        return [answers[rank] for rank in sorted(answers)]


def _speaking(waiting: dict[int, WorkerProcess], limit_s: float | None) -> list[int]:
    """The ranks that have an answer, or have died; none after so many seconds."""
    with selectors.DefaultSelector() as selector:
        for rank, process in waiting.items():
            selector.register(process, selectors.EVENT_READ, rank)
        return [key.data for key, _ in selector.select(limit_s)]


def _environments(spec: Spec) -> Iterator[dict[str, str]]:
    """The environment of each rank, with the variables that torch's launchers set."""
    shared = worker_environment(tuned=spec.tuned)
    if spec.ranks == 1:
        yield shared
        return
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
    shared.setdefault("OMP_NUM_THREADS", str(threads_of_each(spec.ranks)))
    for rank in range(spec.ranks):
        number = str(rank)
        yield {
            **shared, "RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": str(spec.ranks),
            "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        }  # fmt: skip


def worker_environment(*, tuned: bool) -> dict[str, str]:
    """The environment of a worker.

    Args:
        tuned: with bc2's own settings; else without those that bc2 made for this process, and
            with the variable that stops bc2 from making them.
    """
    if tuned:
        return dict(os.environ)
    kept = {name: value for name, value in os.environ.items() if ENVIRONMENT.get(name) != value}
    return {**kept, KEEP_ENVIRONMENT: "1"}
