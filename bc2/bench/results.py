"""Results of benchmarks: what they hold, and how they are kept and found again."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field, ValidationError

from bc2.console import warn
from bc2.errors import DataError, RefError, nearest
from bc2.files import make_directory, replace_durably
from bc2.recipe import Settings
from bc2.train.speed.mfu import impossible

#: Raised when a field changes its name or its meaning.
VERSION = 2

#: Fields that version 1 named otherwise.
_NAMES_OF_1 = {"tokens_per_step": "batch_tokens"}

#: What is said of an MFU above 100% of a datasheet.
SHEET = "cannot be: the datasheet is of another device"

_Result = TypeVar("_Result", bound=Settings)


class Spread(Settings):
    """A median with the lowest and the highest of what it was taken over."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Self:
        return cls(median=statistics.median(values), low=min(values), high=max(values))


class Memory(Settings):
    """Bytes of memory, of the rank that took most."""

    baseline: int
    """Resident after the imports."""
    peak: int
    """Most resident at once, from building the model to the last step."""
    allocated: int
    """Most that tensors took at once, on a GPU if it has one; on a CPU in one step."""
    reserved: int | None
    """Most that torch's allocator held on a GPU."""
    estimate: dict[str, int] | None = None
    """Only bc2's: what `bc2.train.memory` expects tensors to take, by part and in ``total``."""

    @property
    def taken(self) -> int:
        """What training took: on the GPU if there is one, else on the host above the baseline."""
        return self.peak - self.baseline if self.reserved is None else self.reserved


class Checkpoint(Settings):
    """Checkpoints saved during training: medians, in seconds."""

    wait_s: float
    """How long the loop stood still."""
    save_s: float
    """Until the checkpoint was published."""
    lost_s: float | None = None
    """That wait and the time that steps took longer meanwhile; None in older results."""
    losses_s: list[float] = Field(default_factory=list)
    """The same of each save."""
    bytes: int
    """Written."""
    before_s: list[float]
    """Steps before the saves, and after."""
    during_s: list[float]
    """Steps while they went on."""

    @property
    def lost_share(self) -> float | None:
        """The lost time over that of a step."""
        return None if self.lost_s is None else self.lost_s / statistics.median(self.before_s)


class ContenderResult(Settings):
    """What was measured of one contender, or why nothing was."""

    name: str
    kind: str
    failed: str | None = None
    """Why there are no figures."""
    checkpointing: int = 0
    """Layers in a segment whose activations are recomputed."""
    ranks: int = 1
    """Processes that made its steps together; on a CPU they share the cores."""
    devices: int = 1
    """Devices that they ran on."""
    parallel: dict[str, Any] = Field(default_factory=dict)
    """How ours was laid out over them."""
    threads: int | None = None
    warmup_steps: int = 0
    rounds: list[list[float]] = Field(default_factory=list)
    """Seconds of each step, by round."""
    loss: float | None = None
    """The headline metric in the last step, of pretraining nats a token: a sign that it trains."""
    parts: dict[str, float] = Field(default_factory=dict)
    """Mean seconds of each part of a step."""
    parts_step_s: float | None = None
    """Mean seconds of the steps whose parts those are."""
    memory: Memory | None = None
    checkpoint: Checkpoint | None = None
    checkpoint_failed: str | None = None

    @property
    def step_s(self) -> Spread:
        """Seconds of a step: the median over all steps, lowest and highest of the rounds."""
        medians = [statistics.median(seconds) for seconds in self.rounds]
        every = [second for seconds in self.rounds for second in seconds]
        return Spread(median=statistics.median(every), low=min(medians), high=max(medians))


class Ratio(Settings):
    """How many times as fast one contender is as another."""

    ours: str
    peer: str
    rounds: list[float]
    """Round by round; of contenders that ran one after the other, each round of the one against
    each of the other."""
    paired: bool = True
    """Whether the two made each round at the same time of the run."""

    @classmethod
    def between(
        cls, ours: str, peer: str, mine: list[float], theirs: list[float], *, paired: bool
    ) -> Self:
        """From the seconds that each of the two took for the same work, by round."""
        pairs = zip(mine, theirs, strict=True) if paired else product(mine, theirs)
        rounds = [their / my for my, their in pairs]
        return cls(ours=ours, peer=peer, rounds=rounds, paired=paired)

    @property
    def spread(self) -> Spread:
        return Spread.of(self.rounds)


class Peak(Settings):
    """FLOP/s of the device."""

    before: float
    """Of the best large matrix product before the rounds."""
    after: float
    """The same after them."""
    datasheet: float | None
    """Where the device is known."""
    kept: float | None = None
    """The highest that was ever seen on this machine; None in results from before it was kept."""

    @property
    def measured(self) -> float:
        """The largest: the others were disturbed."""
        return max(self.before, self.after, self.kept or 0.0)


class KeptResult(Settings):
    """What every benchmark keeps of a run."""

    version: int
    id: str
    """Recipe's name and time; the name of its file."""
    time: str
    """When it began, ISO 8601, UTC."""
    recipe: dict[str, Any]
    """Resolved, as far as it was used."""
    machine: dict[str, Any]
    settings: dict[str, Any]
    """Of the command."""
    params: int
    """Parameters of the model that training makes."""

    def as_json(self) -> dict[str, Any]:
        """Everything kept, and what is worked out from it."""
        return self.model_dump(mode="json")


class BenchResult(KeptResult):
    """One run of `bc2 bench`."""

    version: int = VERSION
    batch_tokens: int
    """Tokens of an optimizer step that go through the models."""
    flops_per_token: int
    """Model FLOPs of all models, by PaLM's convention."""
    peak: Peak
    contenders: list[ContenderResult]
    ratios: list[Ratio]

    def tokens_per_s(self, found: ContenderResult) -> Spread:
        step = found.step_s
        tokens = self.batch_tokens
        return Spread(median=tokens / step.median, low=tokens / step.high, high=tokens / step.low)

    @property
    def peak_flops(self) -> float:
        """The measured peak, or what a single step reached if that is more: no MFU is above 1."""
        steps = [
            self.batch_tokens * self.flops_per_token / seconds / found.devices
            for found in self.contenders
            for block in found.rounds
            for seconds in block
        ]
        return max([self.peak.measured, *steps])

    def mfu(self, found: ContenderResult, peak: float) -> float:
        return self.tokens_per_s(found).median * self.flops_per_token / peak / found.devices

    def best_peer(self) -> str | None:
        """The fastest way of the peer, None if none ran."""
        ran = [found for found in self.contenders if found.kind == "hf" and not found.failed]
        return min(ran, key=lambda found: found.step_s.median).name if ran else None

    def as_json(self) -> dict[str, Any]:
        """Everything kept, and what is worked out from it."""
        derived = [self._derived(found) for found in self.contenders]
        kept = self.model_dump(mode="json")
        kept["contenders"] = [
            {**fields, **more} for fields, more in zip(kept["contenders"], derived, strict=True)
        ]
        kept["ratios"] = [
            {**ratio.model_dump(), **ratio.spread.model_dump()} for ratio in self.ratios
        ]
        kept["peak"]["measured"] = self.peak_flops
        kept["best_peer"] = self.best_peer()
        return kept

    def _derived(self, found: ContenderResult) -> dict[str, Any]:
        if found.failed:
            return {}
        speed = self.tokens_per_s(found)
        sheet = self.peak.datasheet
        over_sheet = self.mfu(found, sheet) if sheet else None
        return {
            "step_s": found.step_s.model_dump(),
            "tokens_per_s": speed.model_dump(),
            "flops": speed.median * self.flops_per_token,
            "mfu_measured": self.mfu(found, self.peak_flops),
            "mfu_datasheet": over_sheet,
            "mfu_note": SHEET if impossible(over_sheet) else None,
        }


def new_id(name: str, folder: Path) -> tuple[str, str]:
    """An id that no kept result has, and the time that is in it."""
    now = datetime.now(UTC)
    stem = f"{name.replace('/', '-')}-{now:%Y%m%dT%H%M%S}"
    taken = {path.stem for path in folder.glob(f"{stem}*.json")} if folder.is_dir() else set()
    numbers = (stem if n == 1 else f"{stem}-{n}" for n in range(1, len(taken) + 2))
    return next(each for each in numbers if each not in taken), now.isoformat(timespec="seconds")


def keep_result(result: KeptResult, folder: Path) -> Path:
    """Write a result to the folder of kept ones, durably."""
    make_directory(folder)
    path = folder / f"{result.id}.json"
    replace_durably(path, result.model_dump_json(indent=1).encode())
    return path


def read_result(path: Path) -> BenchResult:
    """Read a kept result.

    Raises:
        DataError: no such file, or not a result of this version of bc2.
    """
    values = read_values(path)
    if values.get("version") == 1:
        values = {_NAMES_OF_1.get(name, name): value for name, value in values.items()}
        values["version"] = VERSION
    return checked(BenchResult, values, VERSION, path)


def read_values(path: Path) -> dict[str, Any]:
    """The object in a file of a kept result. Raises: DataError, as `read_result`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"this is no benchmark result: {error}", where=str(path)) from None
    if not isinstance(values, dict):
        raise DataError("this is no benchmark result: not an object", where=str(path))
    return values


def checked(cls: type[_Result], values: dict[str, Any], version: int, path: Path) -> _Result:
    """The result of a benchmark that has these values. Raises: DataError, as `read_result`."""
    if values.get("version") != version:
        raise DataError(
            f"this result has version {values.get('version')}, not {version}",
            where=str(path),
            todo="measure again",
        )
    try:
        return cls.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"this is no benchmark result: {place}: {first['msg']}", where=str(path)
        ) from None


def read_kept_results(folder: Path) -> list[BenchResult]:
    """Every kept result, oldest first; one that cannot be read is left out with a warning."""
    return sorted(read_kept(folder, read_result), key=lambda result: result.time)


def read_kept(folder: Path, read: Callable[[Path], _Result]) -> list[_Result]:
    """What `read` makes of each file of a folder; one that it cannot read is warned of."""
    results = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            results.append(read(path))
        except DataError as error:
            warn(str(error))
    return results


def find_result(ref: str, folder: Path) -> BenchResult:
    """A result by path, id or the beginning of an id.

    Raises:
        RefError: none answers to it, or several do.
    """
    return read_result(kept_path(ref, folder, "bc2 bench --list"))


def kept_path(ref: str, folder: Path, listing: str) -> Path:
    """The file of a kept result. Raises: RefError, as `find_result`.

    Args:
        listing: the command that shows the results of the folder.
    """
    if ref.endswith(".json"):
        return Path(ref)
    ids = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    fits = [ref] if ref in ids else [each for each in ids if each.startswith(ref)]
    if len(fits) == 1:
        return folder / f"{fits[0]}.json"
    if fits:
        raise RefError(f"several results begin with {ref!r}", todo=f"name one: {', '.join(fits)}")
    guess = nearest(ref, ids)
    raise RefError(
        f"no kept result {ref!r}",
        where=str(folder),
        todo=f"did you mean {guess!r}?" if guess else f"see `{listing}`",
    )
