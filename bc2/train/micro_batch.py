"""``micro_batch = "auto"``: the largest micro-batch that fits, found without running out.

On a GPU it is tried for real, in a process that may run out of memory. On a CPU running out
means that the system kills processes, so only small ones are tried there, and the estimate
says how much more the larger ones take.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from bc2.console import note, warn
from bc2.errors import ResourceError
from bc2.files import replace_durably
from bc2.model.config import ModelConfig
from bc2.train.child import Child, ChildFailed
from bc2.train.config import PretrainConfig
from bc2.train.device import pick_precision
from bc2.train.memory.available import device_available
from bc2.train.memory.estimate import estimate
from bc2.train.trial import TrialSpec

#: Share of the free memory that is left alone: documents of other lengths fragment it.
MARGIN = 0.07

#: In a run's folder: what "auto" came to in its last attempt.
CHOSEN = "micro_batch.json"

#: The most rows that are tried on a CPU, and the share of the free memory that they may be
#: estimated at: an estimate is not wrong by a factor of four.
_MOST_TRIED = 8
_SAFE = 0.25


@dataclass(frozen=True)
class Choice:
    """What "auto" came to."""

    rows: int
    """Sequences of a micro-batch."""
    needed: int
    """Bytes that it is expected to take on the device (on a GPU: that it took)."""
    available: int
    """Bytes that were free."""
    again: bool
    """It is what an earlier attempt chose, and was not searched for anew."""

    def __str__(self) -> str:
        why = (
            "what the earlier attempt chose, and it still fits"
            if self.again
            else "the largest that fits"
        )
        return (
            f'micro_batch = "auto" is {self.rows}, {why}: it takes {_gb(self.needed)} of '
            f"{_gb(self.available)} free, of which {MARGIN:.0%} are left alone"
        )


def settle_micro_batch(
    model: ModelConfig, training: PretrainConfig, folder: Path, *, anew: bool = False
) -> PretrainConfig:
    """The settings of a run with "auto" resolved, remembered in its folder and said on stderr.

    Args:
        folder: the run's.
        anew: do not look at what an earlier attempt chose.

    Raises:
        ResourceError: not even one row fits.
    """
    if training.micro_batch != "auto":
        return training
    path = folder / CHOSEN
    earlier = None if anew else _read(path, training)
    choice = choose_micro_batch(model, training, earlier=earlier)
    note(str(choice))
    replace_durably(path, json.dumps({"micro_batch": choice.rows}).encode())
    return training.model_copy(update={"micro_batch": choice.rows})


def _read(path: Path, training: PretrainConfig) -> int | None:
    if not path.exists():
        return None
    try:
        rows = json.loads(path.read_bytes())["micro_batch"]
    except (ValueError, TypeError, KeyError):
        rows = None
    if isinstance(rows, int) and rows > 0 and training.batch_rows % rows == 0:
        return rows
    warn(f"{path} names no micro-batch of this run; searching for one anew")
    return None


def choose_micro_batch(
    model: ModelConfig,
    training: PretrainConfig,
    *,
    earlier: int | None = None,
    available: int | None = None,
) -> Choice:
    """The largest divisor of the batch's rows that fits.

    Args:
        training: device and precision resolved.
        earlier: what an earlier attempt of the same run chose: taken again if it still fits,
            since another micro-batch rounds sums differently.
        available: bytes free on the device; looked up if None.

    Raises:
        ResourceError: not even one row fits.
    """
    rows = training.batch_rows
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    device = torch.device(training.device)
    free = device_available(device) if available is None else available
    note(f'micro_batch = "auto": trying what fits in {_gb(free)} of free memory')
    spec = TrialSpec(model=model, training=training, margin=MARGIN)
    with Child("bc2.train.trial", spec.model_dump_json()) as trial:
        try:
            needs = (_tried if device.type == "cuda" else _expected)(spec, trial, divisors, free)
        except ChildFailed as error:
            raise _too_small(spec, free, str(error)) from None
        allowed = _allowed(free)
        if earlier is not None and needs(earlier) <= allowed:
            return Choice(earlier, needs(earlier), free, again=True)
        found = _largest(divisors, lambda n: needs(n) <= allowed)
        if found is None:
            raise _too_small(spec, free, f"one row takes {_gb(needs(1))}")
        return Choice(found, needs(found), free, again=False)


def _allowed(free: int) -> int:
    return int(free * (1 - MARGIN))


#: Bytes that micro-batches of so many rows need; more than are free if they do not fit.
Needs = Callable[[int], int]


def _largest(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The last candidate that fits, of ones that fit up to a point; None if none does."""
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if fits(candidates[middle]):
            low = middle + 1
        else:
            high = middle
    return candidates[low - 1] if low else None


def _tried(spec: TrialSpec, trial: Child, divisors: Sequence[int], free: int) -> Needs:
    """What each size really took on a GPU."""
    trial.begin()

    @cache
    def needs(rows: int) -> int:
        answer = trial.ask("fits", rows=rows)
        return int(answer["bytes"]) if answer["fits"] else free + 1

    return needs


def _expected(spec: TrialSpec, trial: Child, divisors: Sequence[int], free: int) -> Needs:
    """What one row took on a CPU, and for more the growth of the estimate, corrected."""
    estimates = {rows: _estimate(spec, rows) for rows in divisors}
    # A save copies weights and moments while training goes on.
    snapshot = 12 * spec.model.num_params()
    if estimates[1] + snapshot > _allowed(free):
        return lambda rows: estimates[rows] + snapshot
    trial.begin()
    one = int(trial.ask("fits", rows=1)["bytes"])
    safe = [n for n in divisors if n <= _MOST_TRIED and estimates[n] <= free * _SAFE]
    growth = 1.0
    if len(safe) > 1:
        grown = int(trial.ask("fits", rows=safe[-1])["bytes"]) - one
        growth = max(1.0, grown / (estimates[safe[-1]] - estimates[1]))
    return lambda rows: int(one + growth * (estimates[rows] - estimates[1])) + snapshot


def _estimate(spec: TrialSpec, rows: int) -> int:
    training = spec.training
    device = torch.device(training.device)
    return estimate(
        spec.model,
        rows,
        training.sequence_length,
        pick_precision(training.precision, device),
        training.segment_layers,
        device=device.type,
        accumulated=rows < training.batch_rows,
    ).total


def _too_small(spec: TrialSpec, free: int, why: str) -> ResourceError:
    return ResourceError(
        f"not even micro-batches of one row of {spec.training.sequence_length} tokens fit in "
        f"{_gb(free)} of free memory: {why}; the estimate is {_gb(_estimate(spec, 1))} without "
        "a checkpoint's copy",
        where="pretrain.micro_batch",
        todo="set pretrain.activation_checkpointing = 1, shorten pretrain.sequence_length, or "
        "train a smaller model",
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
