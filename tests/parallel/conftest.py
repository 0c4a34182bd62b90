"""Starts ranks for tests: real processes over gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import warmed

from bc2.parallel.mesh import Group

DRIVER = Path(__file__).with_name("driver.py")

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
def port() -> int:
    """One that nothing listens at."""
    return free_port()


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }


@pytest.fixture(scope="session")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Spread:
    """Train under layouts, one after another, on a number of ranks; losses and norms of each."""

    def run(
        world: int, runs: list[dict[str, Any]], timeout: float = 400, driver: Path = DRIVER
    ) -> list[Curves]:
        port = free_port()
        folder = tmp_path_factory.mktemp("spread")
        command = [sys.executable, str(driver), json.dumps(runs), str(folder)]
        # Into files: a rank whose pipe is full would wait for its reader, and the others for it.
        logs = [(folder / f"{rank}.out", folder / f"{rank}.err") for rank in range(world)]
        with ExitStack() as held:
            ranks = [
                warmed.Popen(
                    command,
                    env=rank_environment(rank, world, port),
                    stdout=held.enter_context(out.open("w")),
                    stderr=held.enter_context(err.open("w")),
                )
                for rank, (out, err) in enumerate(logs)
            ]
            try:
                for rank in ranks:
                    rank.wait(timeout=timeout)
            finally:
                for rank in ranks:
                    rank.kill()
                    rank.wait()
        failed = [err for rank, (_, err) in zip(ranks, logs, strict=True) if rank.returncode]
        assert not failed, failed[0].read_text()[-3000:]
        said = logs[0][0].read_text()
        lines = [line for line in said.splitlines() if line.startswith("[[")]
        assert len(lines) == len(runs)
        return [json.loads(line) for line in lines]

    return run


class ThreadRank(Group):
    """One rank of several that are threads of this process."""

    def all_gather_object(self, value: Any) -> list[Any]:
        barrier, box = self.handle
        box[self.rank] = value
        barrier.wait(20)
        found = [box[rank] for rank in self.ranks]
        barrier.wait(20)
        return found

    def broadcast_object(self, value: Any) -> Any:
        return self.all_gather_object(value)[0]


OnRanks = Callable[[int, Callable[[Group], Any]], list[Any]]


@pytest.fixture
def on_ranks() -> OnRanks:
    """What a function of a rank returns on each of so many, which are threads."""

    def run(count: int, act: Callable[[Group], Any]) -> list[Any]:
        handle = threading.Barrier(count), dict[int, Any]()
        ranks = [ThreadRank(tuple(range(count)), number, handle) for number in range(count)]
        with ThreadPoolExecutor(count) as pool:
            return [each.result() for each in [pool.submit(act, rank) for rank in ranks]]

    return run


#: How soon two ranks that do not belong together must have ended, seconds, on a busy machine.
SOON_S = 60.0

Pair = Callable[..., list[tuple[int, str]]]


@pytest.fixture
def pair(small: Path) -> Pair:
    """Start `bc2 pretrain small.toml` as two ranks, as another launcher would.

    Args (of what is returned):
        own: more arguments of each rank.
        environment: of rank 1 alone.

    Returns:
        How each ended, and what it said.
    """

    def run(*own: list[str], environment: dict[str, str] | None = None) -> list[tuple[int, str]]:
        port = free_port()
        ranks = [
            warmed.Popen(
                [sys.executable, "-P", "-m", "bc2", "pretrain", "small.toml", *more],
                cwd=small,
                env={**rank_environment(rank, 2, port), **((environment or {}) if rank else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, more in enumerate(own)
        ]
        try:
            said = [rank.communicate(timeout=SOON_S)[1] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        assert not [err for err in said if "Traceback" in err], said
        return [(rank.returncode, err) for rank, err in zip(ranks, said, strict=True)]

    return run
