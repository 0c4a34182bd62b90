"""``micro_batch = "auto"``: the largest micro-batch that fits, found without running out.

On a GPU sizes are tried in a process that may run out of memory. On a CPU the system kills
processes when memory runs out, so only small sizes are tried there, and the estimate says how
much more the larger ones take.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from bc2.console import note, warn
from bc2.errors import ResourceError, RunFailed
from bc2.files import replace_durably
from bc2.free_memory import device_available, gpus_available
from bc2.parallel.parallel_config import divisors
from bc2.train.memory.run_memory import estimate_run
from bc2.train.run_config import RunConfig
from bc2.train.training_settings import TrainingSettings
from bc2.train.trial_spec import TrialSpec
from bc2.train.worker_process import WorkerFailed, WorkerProcess

#: Share of the free memory that is left unused: documents of other lengths fragment it.
MARGIN = 0.07

#: In a run's folder: what "auto" came to in its last attempt.
MICRO_BATCH_FILE = "micro_batch.json"

#: The largest micro-batch that is tried on a CPU, and the largest share of the free memory that
#: its estimate may be: an estimate is not wrong by a factor of four.
_MOST_TRIED = 8
_SAFE = 0.25


@dataclass(frozen=True)
class Choice:
    """What "auto" came to."""

    micro_batch: int
    """Sequences of a micro-batch."""
    needed: int
    """Bytes that it is expected to take on the device (on a GPU: that it took)."""
    available: int
    """Bytes that were free."""
    again: bool
    """Whether an earlier attempt chose it, so that it was not searched for again."""

    def __str__(self) -> str:
        why = (
            "what the earlier attempt chose, and it still fits"
            if self.again
            else "the largest that fits"
        )
        return (
            f'micro_batch = "auto" is {self.micro_batch}, {why}: it takes {_gb(self.needed)} of '
            f"{_gb(self.available)} free, of which {MARGIN:.0%} are left alone"
        )


def settle_micro_batch(
    settings: TrainingSettings, folder: Path, *, anew: bool = False
) -> TrainingSettings:
    """The settings of a run with "auto" resolved, which is stored in its folder and printed.

    Args:
        folder: the run's.
        anew: do not look at what an earlier attempt chose.

    Raises:
        ResourceError: not even one sequence fits.
    """
    if settings.training.micro_batch != "auto":
        return settings
    path = folder / MICRO_BATCH_FILE
    earlier = None if anew else _read(path, settings.training)
    choice = choose_micro_batch(settings, earlier=earlier)
    note(str(choice))
    replace_durably(path, json.dumps({"micro_batch": choice.micro_batch}).encode())
    return settings.with_training(micro_batch=choice.micro_batch)


def _read(path: Path, training: RunConfig) -> int | None:
    if not path.exists():
        return None
    try:
        micro_batch = json.loads(path.read_bytes())["micro_batch"]
    except (ValueError, TypeError, KeyError):
        micro_batch = None
    if (
        isinstance(micro_batch, int)
        and micro_batch > 0
        and training.batch_sequences % micro_batch == 0
    ):
        return micro_batch
    warn(f"{path} names no micro-batch of this run; searching for one anew")
    return None


def choose_micro_batch(
    settings: TrainingSettings,
    *,
    earlier: int | None = None,
    available: int | None = None,
) -> Choice:
    """The largest divisor of the batch's sequences that fits.

    Args:
        settings: device and precision resolved.
        earlier: what an earlier attempt of the same run chose: taken again if it still fits,
            since another micro-batch rounds sums differently.
        available: bytes free on the device; looked up if None.

    Raises:
        ResourceError: not even one sequence fits.
        RunFailed: steps failed for another reason than memory.
    """
    training = settings.training
    sequences = training.batch_sequences
    fit = divisors(sequences)
    device = torch.device(training.device)
    free = _free(device) if available is None else available
    note(f'micro_batch = "auto": trying what fits in {_gb(free)} of free memory')
    spec = TrialSpec(
        algorithm=settings.algorithm.name,
        model=settings.model,
        training=training,
        margin=MARGIN,
    )
    with WorkerProcess("bc2.train.micro_batch_trial", spec.model_dump_json()) as trial:
        try:
            needs = (_tried if device.type == "cuda" else _expected)(spec, trial, fit, free)
        except WorkerFailed as error:
            if not error.out_of_memory:
                raise _cannot_try(spec, str(error)) from None
            raise _too_small(spec, free, str(error)) from None
        allowed = _allowed(free)
        if earlier is not None and needs(earlier) <= allowed:
            return Choice(earlier, needs(earlier), free, again=True)
        found = _largest(fit, lambda n: needs(n) <= allowed)
        if found is None:
            raise _too_small(spec, free, f"one sequence takes {_gb(needs(1))}")
        return Choice(found, needs(found), free, again=False)


def _free(device: torch.device) -> int:
    """Bytes free, for a process that begins now."""
    if device.type == "cuda":
        return gpus_available([device.index])[0]
    return device_available(device)


def _allowed(free: int) -> int:
    return int(free * (1 - MARGIN))


#: Bytes that a micro-batch of so many sequences takes; more than are free if it does not fit.
Needs = Callable[[int], int]


def _largest(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The last candidate that fits, where all before it fit too; None if none fits."""
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if fits(candidates[middle]):
            low = middle + 1
        else:
            high = middle
    return candidates[low - 1] if low else None


def _tried(spec: TrialSpec, trial: WorkerProcess, divisors: Sequence[int], free: int) -> Needs:
    """Bytes that each size really took on a GPU."""
    trial.begin()

    @cache
    def needs(micro_batch: int) -> int:
        answer = trial.ask("fits", micro_batch=micro_batch)
        return int(answer["bytes"]) if answer["fits"] else free + 1

    return needs


def _expected(spec: TrialSpec, trial: WorkerProcess, divisors: Sequence[int], free: int) -> Needs:
    """Bytes that one sequence took on a CPU, plus the corrected growth of the estimate."""
    estimates = {micro_batch: _estimate(spec, micro_batch) for micro_batch in divisors}
    # A save copies weights and states while training continues.
    snapshot = spec.settings.checkpoint_bytes
    if estimates[1] + snapshot > _allowed(free):
        return lambda micro_batch: estimates[micro_batch] + snapshot
    trial.begin()
    one = int(trial.ask("fits", micro_batch=1)["bytes"])
    safe = [n for n in divisors if n <= _MOST_TRIED and estimates[n] <= free * _SAFE]
    growth = 1.0
    if len(safe) > 1:
        grown = int(trial.ask("fits", micro_batch=safe[-1])["bytes"]) - one
        growth = max(1.0, grown / (estimates[safe[-1]] - estimates[1]))
    return lambda micro_batch: (
        int(one + growth * (estimates[micro_batch] - estimates[1])) + snapshot
    )


def _estimate(spec: TrialSpec, micro_batch: int) -> int:
    training = spec.training.model_copy(update={"micro_batch": micro_batch})
    settings = replace(spec.settings, training=training)
    return estimate_run(settings, 1).total


def _cannot_try(spec: TrialSpec, why: str) -> RunFailed:
    return RunFailed(
        f"no micro-batch could be tried on {spec.training.device}: {why}",
        where=f"{spec.algorithm}.micro_batch",
        todo=f"set {spec.algorithm}.micro_batch to a number, such as 1, to see the failure in "
        "training",
    )


def _too_small(spec: TrialSpec, free: int, why: str) -> ResourceError:
    return ResourceError(
        f"not even micro-batches of one sequence of {spec.training.sequence_length} tokens fit in "
        f"{_gb(free)} of free memory: {why}; the estimate is {_gb(_estimate(spec, 1))} without "
        "a checkpoint's copy",
        where=f"{spec.algorithm}.micro_batch",
        todo=f"set {spec.algorithm}.activation_checkpointing = 1, shorten "
        f"{spec.algorithm}.sequence_length, or train a smaller model",
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
