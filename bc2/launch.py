"""Start the ranks of a run on this machine, and be the one voice of what becomes of them.

torch's elastic agent starts one process a rank, stops them all when one fails, and starts
them again as often as it may: each start goes on from the last checkpoint. Under torchrun,
the deepspeed launcher or srun none of this runs: there every rank is started by them.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bc2.errors import Bc2Error, Interrupted, RunFailed, UsageError
from bc2.files import make_directory
from bc2.ranks import LAUNCHED, LOST, RankFailed, threads_of_each, world_size

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

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
        if self.wanted and world_size() > 1:
            raise UsageError(
                f"this is one of {world_size()} ranks already: it starts no others",
                todo="leave out --nproc and --nnodes under torchrun, deepspeed or srun",
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
    from torch.distributed.launcher.api import elastic_launch

    _check_port(ranks)
    # What became of the ranks is said here, once.
    logging.disable(logging.CRITICAL)
    make_directory(scratch)
    folder = Path(tempfile.mkdtemp(prefix="launch-", dir=scratch))
    command = [sys.executable, "-m", "bc2", *arguments]
    _prepare_environment(ranks)
    try:
        elastic_launch(_config(ranks, folder), command[0])(*command[1:])
    except ChildFailedError as error:
        _explain(error)
    except SignalException as error:
        raise _stopped(folder, signal.Signals(error.sigval)) from None
    except (OSError, RuntimeError, RendezvousError) as error:
        _refuse(ranks, error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepare_environment(ranks: Ranks) -> None:
    os.environ[LAUNCHED] = shlex.join(ranks.options)
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
    """A port that something else listens at would keep the ranks waiting for a minute.

    Raises:
        RunFailed: it is in use.
    """
    host, _, port = (ranks.rendezvous or "").rpartition(":")
    if not port.isdigit() or not _known_host(ranks):
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise RunFailed(
                    f"port {port} is in use on this machine",
                    where=f"--rendezvous {ranks.rendezvous}",
                    todo="give all machines another port, or stop what listens there",
                ) from None


def _stopped(folder: Path, signum: signal.Signals) -> Bc2Error:
    """What the ranks said when a signal had stopped them all."""
    newest = sorted(folder.rglob("error.json"), key=lambda path: -path.stat().st_mtime)
    said = [one for path in newest if (one := _message(json.loads(path.read_bytes())))]
    # That they stopped at a step and saved it; or why they could not.
    saved = [one for one in said if "go on with:" in one]
    own = [one for one in said if LOST not in one]
    if saved or own:
        return RankFailed((saved or own)[0], 128 + signum)
    again = "run the same command again: it goes on from the last checkpoint, if there is one"
    return Interrupted("stopped", signum=signum, todo=again)


def _explain(error: ChildFailedError) -> NoReturn:
    """Raise the error of the first rank that failed: the others only followed."""
    rank, failure = min(error.failures.items(), key=lambda item: _order(item[1]))
    said = _word(failure)
    if said:
        raise RankFailed(said, failure.exitcode) from None
    how = f"ended with exit code {failure.exitcode}"
    if failure.exitcode < 0:
        how = f"was killed by {signal.Signals(-failure.exitcode).name}"
    raise RunFailed(
        f"rank {rank} {how}, and all were stopped",
        todo="run the same again: it goes on from the last checkpoint; --max-restarts does so "
        "by itself",
    ) from None


def _order(failure: ProcessFailure) -> tuple[int, float]:
    """Sorts causes before consequences, and then by time."""
    said = _word(failure)
    stopped = failure.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    follows = stopped or (said is not None and LOST in said.partition("\n")[0])
    # The agent knows whole seconds.
    path = Path(failure.error_file)
    return int(follows), path.stat().st_mtime if path.exists() else float(failure.timestamp)


def _word(failure: ProcessFailure) -> str | None:
    return _message(failure.error_file_data)


def _message(data: Any) -> str | None:
    message = data.get("message")
    return message.get("message") if isinstance(message, dict) else None


def _refuse(ranks: Ranks, error: Exception) -> NoReturn:
    """The ranks never came together."""
    raise RunFailed(
        f"the ranks could not be started: {str(error).splitlines()[0]}",
        where=ranks.rendezvous,
        todo="look whether the port of --rendezvous is free and can be reached",
    ) from error
