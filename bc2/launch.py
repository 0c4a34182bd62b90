"""Start the ranks of a run on this machine, and be the one voice of what becomes of them.

torch's elastic agent starts one process a rank, stops them all when one fails, and starts
them again as often as it may: each start goes on from the last checkpoint. Under torchrun,
the deepspeed launcher or srun none of this runs: there every rank is started by them.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bc2.console import note
from bc2.errors import Bc2Error, Interrupted, RunFailed, UsageError
from bc2.files import make_directory
from bc2.ranks import LAUNCHED, LOST, STEPS, RankFailed, threads_of_each, world_size
from bc2.restarts import Restarts

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

#: How soon a launcher answers another one.
ANSWER = timedelta(seconds=3)

#: How long ranks may take to save after a signal, seconds.
SHUTDOWN_S = 300


@dataclass(frozen=True)
class Ranks:
    """How many, and where.

    Attributes:
        nproc: on this machine.
        nnodes: machines, or the fewest and the most: "2:4".
        node_rank: which of them this is; None: as they come.
        rendezvous: HOST:PORT of the first machine; None with one machine.
        max_restarts: how often all ranks are started again after one failed.
    """

    nproc: int = 1
    nnodes: str = "1"
    node_rank: int | None = None
    rendezvous: str | None = None
    max_restarts: int = 0

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
        if self.wanted and world_size() > 1:
            raise UsageError(
                f"this is one of {world_size()} ranks already: it starts no others",
                todo="leave out --nproc and --nnodes under torchrun, deepspeed or srun",
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
    def options(self) -> list[str]:
        """What a person types for it."""
        said: list[tuple[str, Any, Any]] = [
            ("--nproc", self.nproc, 1),
            ("--nnodes", self.nnodes, "1"),
            ("--node-rank", self.node_rank, None),
            ("--rendezvous", self.rendezvous, None),
            ("--max-restarts", self.max_restarts, 0),
        ]
        return [word for name, is_, default in said if is_ != default for word in (name, str(is_))]


def launch(ranks: Ranks, arguments: list[str], scratch: Path) -> None:
    """Run ``bc2 ARGUMENTS`` as every rank, until all are done.

    Args:
        scratch: where the ranks' last words are kept while they run.

    Raises:
        Bc2Error: what the first rank that failed failed with, with its exit code.
        Interrupted: a signal came; the ranks have saved.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher import api

    _check_port(ranks)
    # What became of the ranks is said here, once.
    logging.disable(logging.CRITICAL)
    make_directory(scratch)
    folder = Path(tempfile.mkdtemp(prefix="launch-", dir=scratch))
    command = [sys.executable, "-m", "bc2", *arguments]
    restarts = Restarts(ranks.max_restarts, folder / "steps")
    _prepare_environment(ranks, restarts)
    # torch makes its agent by this name, and asks nobody whether to start ranks again.
    made: Any = functools.partial(_judging_agent(), restarts)
    api.LocalElasticAgent = made  # type: ignore[attr-defined]
    try:
        api.elastic_launch(_config(ranks, folder), command[0])(*command[1:])
    except ChildFailedError as error:
        _explain(error, restarts)
    except SignalException as error:
        raise _stopped(folder, signal.Signals(error.sigval)) from None
    except (OSError, RuntimeError, RendezvousError) as error:
        _refuse(ranks, error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _judging_agent() -> type:
    """torch's agent, but for whether ranks that failed are started again."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    class JudgingAgent(LocalElasticAgent):
        def __init__(self, restarts: Restarts, *given: Any, **named: Any):
            super().__init__(*given, **named)
            self._restarts = restarts

        def _monitor_workers(self, worker_group: Any) -> Any:
            found = super()._monitor_workers(worker_group)
            if found.is_failed() and found.failures:
                self._judge(found.failures)
            return found

        def _judge(self, failures: dict[int, ProcessFailure]) -> None:
            rank, failure = _cause(failures)
            lasting = _message(failure.error_file_data).get("lasting")
            pause = self._restarts.again(lasting=lasting is True)
            self._remaining_restarts = 0 if pause is None else 1
            if pause is not None:
                often = f"restart {self._restarts.made} of {self._restarts.most}"
                note(f"{_headline(rank, failure)}; starting all ranks again ({often})")
                time.sleep(pause)

    return JudgingAgent


def _prepare_environment(ranks: Ranks, restarts: Restarts) -> None:
    os.environ[LAUNCHED] = shlex.join(ranks.options)
    os.environ[STEPS] = str(restarts.steps)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_S))
    # Else torch keeps one store over all starts, and a rank that is started again may find the
    # address of one that is dead.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_of_each(ranks.nproc)))


def _config(ranks: Ranks, folder: Path) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    least, most = ranks.machines
    settings: dict[str, Any] = {"timeout": 600}
    if _known_host(ranks) is not None:
        settings["is_host"] = _known_host(ranks)
    return LaunchConfig(
        min_nodes=least,
        max_nodes=most,
        nproc_per_node=ranks.nproc,
        run_id=ranks.rendezvous or folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint=ranks.rendezvous or "localhost:0",
        rdzv_configs=settings,
        max_restarts=ranks.max_restarts,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )


def _known_host(ranks: Ranks) -> bool | None:
    """Whether the ranks meet on this machine; None: its address will tell."""
    if ranks.node_rank is not None:
        return ranks.node_rank == 0
    return True if ranks.machines[1] == 1 else None


def _check_port(ranks: Ranks) -> None:
    """A port that something else listens at would keep the ranks waiting for minutes.

    Raises:
        RunFailed: it is in use, or there is no such machine.
    """
    if ranks.rendezvous is None:
        return
    host, _, number = ranks.rendezvous.rpartition(":")
    host, port = host.strip("[]"), int(number)
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise _elsewhere(ranks, f"there is no machine {host!r}", "name the first one") from None
    other = "give all machines another port, or stop what listens there"
    if not _known_host(ranks):
        if is_foreign(host, port):
            what = f"what listens at port {port} of {host} is no launcher of bc2"
            raise _elsewhere(ranks, what, other)
        return
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _elsewhere(ranks, f"port {port} is in use on this machine", other) from None


def _elsewhere(ranks: Ranks, what: str, todo: str) -> RunFailed:
    return RunFailed(what, where=f"--rendezvous {ranks.rendezvous}", todo=todo)


def is_foreign(host: str, port: int) -> bool:
    """Whether something listens there that is not the store of another launcher.

    Where nothing listens, the launcher of the first machine may still come.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    answered = threading.Event()

    def greet() -> None:
        with suppress(RuntimeError, ValueError):
            TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=ANSWER)
            answered.set()

    try:
        socket.create_connection((host, port), timeout=ANSWER.seconds).close()
    except OSError:
        return False
    with _unheard():
        # In a thread: with what never answers torch waits without end.
        greeting = threading.Thread(target=greet, daemon=True)
        greeting.start()
        greeting.join(2 * ANSWER.seconds)
    return not answered.is_set()


@contextmanager
def _unheard() -> Iterator[None]:
    """Whatever writes to stderr, torch's C++ among it, writes to nobody."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _stopped(folder: Path, signum: signal.Signals) -> Bc2Error:
    """What the ranks said when a signal had stopped them all."""
    newest = sorted(folder.rglob("error.json"), key=lambda path: -path.stat().st_mtime)
    words = [_message(json.loads(path.read_bytes())).get("message") for path in newest]
    said = [word for word in words if word]
    # That they stopped at a step and saved it; or why they could not.
    saved = [one for one in said if "go on with:" in one]
    own = [one for one in said if LOST not in one]
    if saved or own:
        return RankFailed((saved or own)[0], 128 + signum)
    again = "run the same command again: it goes on from the last checkpoint, if there is one"
    return Interrupted("stopped", signum=signum, todo=again)


def _explain(error: ChildFailedError, restarts: Restarts) -> NoReturn:
    """Raise the error of the first rank that failed: the others only followed."""
    rank, failure = _cause(error.failures)
    said, refused = _word(failure), restarts.refused
    if said:
        said += f"\n  not started again: {refused}" if refused else ""
        raise RankFailed(said, failure.exitcode) from None
    todo = "run the same again: it goes on from the last checkpoint"
    raise RunFailed(
        f"{_headline(rank, failure)}, and all were stopped"
        + (f"; not started again: {refused}" if refused else ""),
        todo=todo if restarts.most else f"{todo}; --max-restarts does so by itself",
    ) from None


def _cause(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that failed first, and how."""
    return min(failures.items(), key=lambda item: _order(item[1]))


def _headline(rank: int, failure: ProcessFailure) -> str:
    """How a rank ended, in one line."""
    said = _word(failure)
    if said:
        return f"rank {rank}: {said.splitlines()[0].removeprefix('error: ')}"
    if failure.exitcode < 0:
        return f"rank {rank} was killed by {signal.Signals(-failure.exitcode).name}"
    return f"rank {rank} ended with exit code {failure.exitcode}"


def _order(failure: ProcessFailure) -> tuple[int, float]:
    """Sorts causes before consequences, and then by time."""
    said = _word(failure)
    stopped = failure.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    follows = stopped or (said is not None and LOST in said.partition("\n")[0])
    # The agent knows whole seconds.
    path = Path(failure.error_file)
    return int(follows), path.stat().st_mtime if path.exists() else float(failure.timestamp)


def _word(failure: ProcessFailure) -> str | None:
    return _message(failure.error_file_data).get("message")


def _message(data: Any) -> dict[str, Any]:
    """What `leave_word` wrote; empty if it is torch's."""
    message = data.get("message")
    return message if isinstance(message, dict) else {}


#: What torch raises when machines do not come together, and what it means here.
_APART = {
    "RendezvousClosedError": (
        "another machine has ended the run",
        "see what the launcher there said",
    ),
    "RendezvousTimeoutError": (
        "too few machines have come",
        "start the same command on all of them",
    ),
    "RendezvousConnectionError": (
        "the launcher of the first machine cannot be reached, or is gone",
        "see whether it runs, what it said last, and whether its port can be reached from here",
    ),
}


def _refuse(ranks: Ranks, error: Exception) -> NoReturn:
    """The ranks never came together, or not again."""
    what, todo = _APART.get(
        type(error).__name__,
        (
            f"the ranks could not be started: {str(error).splitlines()[0]}",
            "look whether the port of --rendezvous is free and can be reached",
        ),
    )
    where = f"--rendezvous {ranks.rendezvous}" if ranks.rendezvous else None
    raise RunFailed(what, where=where, todo=todo) from error
