"""What became of the ranks of a run, said once, in terms of `bc2.errors`."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bc2.errors import Bc2Error, Interrupted, RunFailed
from bc2.launch.rank_options import Ranks
from bc2.launch.restarts import Restarts
from bc2.ranks import LOST, RankFailed

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure


def stop_error(folder: Path, signum: signal.Signals, todo: str | None = None) -> Bc2Error:
    """The error of ranks that a signal stopped.

    Args:
        todo: what to do if none of them said it; None: what goes on with a run.
    """
    newest = sorted(folder.rglob("error.json"), key=lambda path: -path.stat().st_mtime)
    words = [error_of(json.loads(path.read_bytes())).get("message") for path in newest]
    said = [word for word in words if word]
    # Which step they stopped at and saved; or why they could not save.
    saved = [one for one in said if "go on with:" in one]
    own = [one for one in said if LOST not in one]
    if saved or own:
        return RankFailed((saved or own)[0], 128 + signum)
    again = "run the same command again: it goes on from the last checkpoint, if there is one"
    return Interrupted("stopped", signum=signum, todo=todo or again)


def raise_cause(error: ChildFailedError, restarts: Restarts, todo: str | None = None) -> NoReturn:
    """Raise the error of the first rank that failed: the others only followed.

    Args:
        todo: what to do if it said nothing; None: what goes on with a run.
    """
    rank, failure = first_failure(error.failures)
    said, refused = _message(failure), restarts.refused
    if said:
        said += f"\n  not started again: {refused}" if refused else ""
        raise RankFailed(said, failure.exitcode) from None
    again = "run the same again: it goes on from the last checkpoint"
    if not restarts.most:
        again += "; --max-restarts does so by itself"
    raise RunFailed(
        f"{headline(rank, failure)}, and all were stopped"
        + (f"; not started again: {refused}" if refused else ""),
        todo=todo or again,
    ) from None


def first_failure(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that failed first, and how."""
    return min(failures.items(), key=lambda item: _order(item[1]))


def headline(rank: int, failure: ProcessFailure) -> str:
    """How a rank ended, in one line."""
    said = _message(failure)
    if said:
        return f"rank {rank}: {said.splitlines()[0].removeprefix('error: ')}"
    if failure.exitcode < 0:
        return f"rank {rank} was killed by {signal.Signals(-failure.exitcode).name}"
    return f"rank {rank} ended with exit code {failure.exitcode}"


def _order(failure: ProcessFailure) -> tuple[int, float]:
    """Sorts causes before consequences, and then by time."""
    said = _message(failure)
    stopped = failure.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    follows = stopped or (said is not None and LOST in said.partition("\n")[0])
    # The agent knows whole seconds.
    path = Path(failure.error_file)
    return int(follows), path.stat().st_mtime if path.exists() else float(failure.timestamp)


def _message(failure: ProcessFailure) -> str | None:
    return error_of(failure.error_file_data).get("message")


def error_of(data: Any) -> dict[str, Any]:
    """What `report_error` wrote; empty if torch wrote the file."""
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


def raise_apart(ranks: Ranks, error: Exception) -> NoReturn:
    """Raise what it means that the ranks did not meet."""
    if type(error).__name__ in _APART:
        what, todo = _APART[type(error).__name__]
    else:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        what = f"the ranks could not be started: {first}"
        todo = "look whether the port of --rendezvous is free and can be reached"
    where = f"--rendezvous {ranks.rendezvous}" if ranks.rendezvous else None
    raise RunFailed(what, where=where, todo=todo) from error
