"""Start the ranks of a run on this machine, and report what becomes of them once.

torch's elastic agent starts one process a rank, stops them all when one fails, and starts
them again as often as it may: each start goes on from the last checkpoint. Under torchrun,
the deepspeed launcher or srun none of this runs: there every rank is started by them.
"""

from __future__ import annotations

import functools
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.console import note
from bc2.files import make_directory
from bc2.launch.failures import (
    error_of,
    first_failure,
    headline,
    raise_apart,
    raise_cause,
    stop_error,
)
from bc2.launch.rank_options import Ranks
from bc2.launch.rendezvous_port import check_port, known_host
from bc2.launch.restarts import Restarts
from bc2.process import signals
from bc2.process.signals import LAUNCHED
from bc2.ranks import LAUNCHER, STEPS, threads_of_each

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

#: How long ranks may take to save after a signal, seconds.
SHUTDOWN_S = 300


def launch(
    ranks: Ranks,
    arguments: list[str],
    scratch: Path,
    *,
    silent: bool = False,
    todo: str | None = None,
) -> None:
    """Run ``bc2 ARGUMENTS`` as every rank, until all are done.

    Args:
        scratch: where the ranks write their errors and the steps made.
        silent: drop what they print on stdout: the caller prints the result.
        todo: what to do where ranks end without a word; None: what goes on with a run.

    Raises:
        Bc2Error: what the first rank that failed failed with, with its exit code.
        Interrupted: a signal came; the ranks have saved.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher import api

    _say_waiting(ranks)
    check_port(ranks)
    # torch would log every failure as well; `bc2.launch.failures` says it once.
    logging.disable(logging.CRITICAL)
    make_directory(scratch)
    folder = Path(tempfile.mkdtemp(prefix="launch-", dir=scratch))
    # -P: no rank imports what lies in the working directory, as this process does not.
    command = [sys.executable, "-P", "-m", "bc2", *arguments]
    restarts = Restarts(ranks.max_restarts, folder / "steps")
    _prepare_environment(ranks, restarts)
    # torch has no hook that decides on a restart: its agent class is replaced by name.
    made: Any = functools.partial(_judging_agent(), restarts)
    api.LocalElasticAgent = made  # type: ignore[attr-defined]
    try:
        # The agent sends the signal on to the ranks and waits for them.
        with signals.raising(lambda signum: SignalException("", signal.Signals(signum))):
            api.elastic_launch(_config(ranks, folder, silent), command[0])(*command[1:])
    except ChildFailedError as error:
        raise_cause(error, restarts, todo)
    except SignalException as error:
        raise stop_error(folder, signal.Signals(error.sigval), todo) from None
    except (OSError, RuntimeError, RendezvousError) as error:
        raise_apart(ranks, error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _say_waiting(ranks: Ranks) -> None:
    least, most = ranks.machines
    if most > 1:
        many = f"{least}" if least == most else f"{least} to {most}"
        note(
            f"waiting for the launchers of {many} machines at {ranks.rendezvous}, "
            f"up to {ranks.rendezvous_timeout} s"
        )


def _judging_agent() -> type:
    """torch's agent, with a decision of our own on whether to restart failed ranks.

    Ranks begin with signals blocked, until they follow them: one that comes before waits.
    """
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    class JudgingAgent(LocalElasticAgent):
        def __init__(self, restarts: Restarts, *given: Any, **named: Any):
            super().__init__(*given, **named)
            self._restarts = restarts

        def _start_workers(self, worker_group: Any) -> Any:
            with signals.shielded():
                started = super()._start_workers(worker_group)
                if signals.armed():
                    signals.install()  # torch sets handlers of its own, whatever was ignored
            return started

        def _monitor_workers(self, worker_group: Any) -> Any:
            found = super()._monitor_workers(worker_group)
            if found.is_failed() and found.failures:
                self._judge(found.failures)
            return found

        def _judge(self, failures: dict[int, ProcessFailure]) -> None:
            rank, failure = first_failure(failures)
            lasting = error_of(failure.error_file_data).get("lasting")
            pause = self._restarts.again(lasting=lasting is True)
            self._remaining_restarts = 0 if pause is None else 1
            if pause is not None:
                often = f"restart {self._restarts.made} of {self._restarts.most}"
                note(f"{headline(rank, failure)}; starting all ranks again ({often})")
                time.sleep(pause)

    return JudgingAgent


def _prepare_environment(ranks: Ranks, restarts: Restarts) -> None:
    os.environ[LAUNCHED] = shlex.join(ranks.options)
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ[signals.IGNORED] = signals.ignored()
    os.environ[STEPS] = str(restarts.steps)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_S))
    # With a store that is shared over restarts a rank may find the address of a dead one.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_of_each(ranks.nproc)))


def _config(ranks: Ranks, folder: Path, silent: bool) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    least, most = ranks.machines
    ignored = signals.ignored().split()
    settings: dict[str, Any] = {"join_timeout": ranks.rendezvous_timeout}
    if known_host(ranks) is not None:
        settings["is_host"] = known_host(ranks)
    return LaunchConfig(
        min_nodes=least,
        max_nodes=most,
        nproc_per_node=ranks.nproc,
        run_id=ranks.rendezvous or folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint=ranks.rendezvous or "localhost:0",
        rdzv_configs=settings,
        max_restarts=ranks.max_restarts,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder), redirects=Std.OUT if silent else Std.NONE),
        # Of one that is ignored torch must set no handler, not even until `install`: a thread that
        # does not block it would take it.
        signals_to_handle=",".join(
            signum.name for signum in signals.SIGNALS if str(int(signum)) not in ignored
        ),
    )
