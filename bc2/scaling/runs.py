"""Finished runs of the registry as points, if they can be points of one law."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bc2.console import note, warn
from bc2.errors import DataError, RefError, nearest
from bc2.model.model_config import ModelConfig
from bc2.registry import Artifact, Registry
from bc2.registry.lineage import parent_of_kind
from bc2.scaling.ladder import read_ladder
from bc2.scaling.ladder_data import expected
from bc2.scaling.points import Conventions, FlopsConvention, ParamsConvention, Points
from bc2.train.duration import Duration
from bc2.train.logs.log_rows import METRICS, read_rows

#: A run diverged if its last held-out loss is this much above its lowest, in nats a token.
_RISE = 0.1

#: Shares of warm-up that differ by more are other schedules.
_WARMUP = 0.1

#: The ladder that a person without one is offered, and the share of the peak that its small
#: runs reach, their start and evaluation included (docs/benchmarks.md).
_OFFERED, _OFFERED_MFU = "ladder-cpu", 0.25


@dataclass(frozen=True)
class FinishedRun:
    """What a finished checkpoint says of the run that ended in it."""

    artifact: Artifact
    model: ModelConfig
    pretrain: dict[str, Any]
    """[pretrain] as recorded."""
    tokens: int
    """Read by the end."""
    loss: float
    """Held-out, nats a token."""
    heldout: tuple[Any, ...]
    """Which held-out tokens were read: count and digest, as far as they are recorded."""

    @classmethod
    def of(cls, artifact: Artifact) -> FinishedRun:
        """Raises: DataError if the run is no point: unfinished, diverged, not measured."""
        _refuse_unfinished(artifact)
        _refuse_continued(artifact)
        manifest = artifact.manifest
        facts, recipe = manifest.facts, manifest.recipe
        if "heldout_loss" not in facts or artifact.position is None:
            raise DataError(
                f"{artifact.title} has no held-out loss",
                where=str(artifact.path),
                todo="train it with pretrain.eval_tokens above 0, on a corpus with "
                "heldout_fraction above 0",
            )
        _refuse_diverged(artifact, float(facts["heldout_loss"]))
        return cls(
            artifact,
            ModelConfig.model_validate_json(json.dumps(recipe["model"]), strict=True),
            recipe["pretrain"],
            artifact.position.tokens,
            float(facts["heldout_loss"]),
            (facts.get("heldout_tokens"), facts.get("heldout_sha256")),
        )

    def params(self, how: ParamsConvention) -> int:
        if how == "total":
            return self.model.num_params()
        return self.model.num_params_non_embedding()

    def flops(self, how: FlopsConvention, params: ParamsConvention) -> int:
        if how == "6ND":
            return 6 * self.params(params) * self.tokens
        return self.tokens * self.model.flops_per_token(self.pretrain["sequence_length"])

    @property
    def schedule(self) -> tuple[float, float]:
        """The lowest learning rate over the highest; the share of the run that warms up."""
        schedule = self.pretrain["schedule"]
        warmup = Duration.parse(schedule["warmup"], may_be_zero=True)
        batch = self.pretrain["batch_tokens"]
        steps = warmup.steps(batch_tokens=batch, epoch_tokens=0)
        return schedule["min_ratio"], steps * batch / self.tokens

    @property
    def schedule_shape(self) -> str:
        """Runs of an earlier bc2, which had the cosine alone, have recorded none."""
        return str(self.pretrain["schedule"].get("shape", "cosine"))

    @property
    def twin(self) -> str:
        """The same for runs that differ in their seed alone."""
        schedule = {**self.pretrain["schedule"], "shape": self.schedule_shape}
        settings = {**self.pretrain, "seed": None, "schedule": schedule}
        return json.dumps([self.model.model_dump(), settings], sort_keys=True, default=str)


def _refuse_unfinished(artifact: Artifact) -> None:
    if artifact.finished:
        return
    raise DataError(
        f"{artifact.title} is not the end of its run: under a cosine an intermediate loss is not "
        "that of a shorter run",
        where=str(artifact.path),
        todo="finish the run, or leave it out",
    )


def _refuse_continued(artifact: Artifact) -> None:
    pretrain = artifact.manifest.recipe.get("pretrain")
    if pretrain is None:
        what = f"{artifact.title} is not of pretraining"
        raise DataError(what, where=str(artifact.path), todo="leave it out")
    if pretrain.get("init") is None:
        return
    raise DataError(
        f"{artifact.title} began with the weights of another run (pretrain.init): its loss is not "
        "that of its own tokens",
        where=str(artifact.path),
        todo="leave it out",
    )


def _refuse_diverged(artifact: Artifact, last: float) -> None:
    rows = read_rows(artifact.file(METRICS))
    lowest = min((row["heldout_loss"] for row in rows if row["event"] == "eval"), default=last)
    if not np.isfinite(last) or last > lowest + _RISE:
        raise DataError(
            f"{artifact.title} diverged: its held-out loss was {lowest:.3f} and ended at "
            f"{last:.3f}",
            where=str(artifact.path),
            todo="leave it out, or train it again with a lower learning rate",
        )


def select_runs(registry: Registry, named: Sequence[str]) -> list[Artifact]:
    """The checkpoints that ``--runs`` means: names, refs, or tags that several runs have.

    None named: the members of the newest ladder, which is then said.

    Raises:
        RefError: there is nothing of that name, or no ladder.
    """
    if not named:
        return _newest_ladder(registry)
    found: list[Artifact] = []
    for name in named:
        tagged = _tagged(registry, name)
        found += tagged or [_resolve(registry, name)]
    return found


def _tagged(registry: Registry, tag: str) -> list[Artifact]:
    """Finished and unfinished checkpoints with a tag, in the order of their names."""
    found = [one for one in registry.list("checkpoint") if tag in one.tags]
    return sorted(found, key=lambda one: one.name)


def _resolve(registry: Registry, name: str) -> Artifact:
    try:
        return registry.resolve(name, "checkpoint")
    except RefError as error:
        tags = {tag for one in registry.list("checkpoint") for tag in one.tags}
        guess = nearest(name, tags)
        if guess:
            error.todo = f"did you mean the tag {guess!r}?"
        raise


def _newest_ladder(registry: Registry) -> list[Artifact]:
    for one in registry.list("checkpoint", finished=True):
        if one.tags and "ladder" in one.manifest.recipe:
            tag = next((tag for tag in one.tags if one.name.startswith(f"{tag}-")), None)
            if tag is not None:
                members = _tagged(registry, tag)
                note(f"taking the newest ladder, {tag}, of {len(members)} runs")
                return members
    raise RefError(
        "there is no ladder here",
        where=str(registry.home),
        todo=f"run one with: bc2 ladder recipes/{_OFFERED}.toml (about {_time_here()} here), or "
        "fit a table with: bc2 fit-scaling-law --points FILE.csv",
    )


def _time_here() -> str:
    """How long the offered ladder takes on this machine."""
    ladder = read_ladder(_OFFERED)
    seconds = expected(ladder, ladder.members, 1, _OFFERED_MFU).left_s()
    return f"{max(1, round(seconds / 60))} min"


@dataclass(frozen=True)
class LadderPoints:
    """Points of runs, and what they have in common."""

    points: Points
    runs: tuple[FinishedRun, ...]
    seed_noise: float | None
    """Standard deviation of log loss between runs that differ in their seed alone."""


def points_of_runs(
    registry: Registry,
    artifacts: Sequence[Artifact],
    params: ParamsConvention = "non-embedding",
    flops: FlopsConvention = "6ND",
    *,
    mix: bool = False,
) -> LadderPoints:
    """Points of finished runs.

    Args:
        mix: warn of runs that cannot be compared, instead of refusing them.

    Raises:
        DataError: one is unfinished, diverged or there twice, or they differ in tokenizer,
            corpus, held-out tokens or schedule.
    """
    _refuse_twice(artifacts)
    runs = tuple(FinishedRun.of(artifact) for artifact in artifacts)
    for problem in _differences(registry, runs):
        if not mix:
            todo = "leave runs out with --runs, or insist with --mix"
            raise DataError(f"the runs cannot be points of one law: {problem}", todo=todo)
        warn(f"mixed in spite of it: {problem}")
    points = Points(
        _names(runs),
        np.array([float(run.params(params)) for run in runs]),
        np.array([float(run.tokens) for run in runs]),
        np.array([float(run.flops(flops, params)) for run in runs]),
        np.array([run.loss for run in runs]),
        Conventions("nats", params, flops),
    )
    return LadderPoints(points, runs, _seed_noise(runs))


def _names(runs: Sequence[FinishedRun]) -> tuple[str, ...]:
    """Names of runs; with the beginning of their digests where two have one name."""
    names = [run.artifact.name for run in runs]
    return tuple(
        name if names.count(name) == 1 else f"{name}-{run.artifact.ref[:8]}"
        for name, run in zip(names, runs, strict=True)
    )


def _refuse_twice(artifacts: Sequence[Artifact]) -> None:
    seen: dict[str, Artifact] = {}
    for one in artifacts:
        if one.key in seen:
            raise DataError(
                f"{one.title} and {seen[one.key].title} are one run", todo="name each run once"
            )
        seen[one.key] = one


def _differences(registry: Registry, runs: Sequence[FinishedRun]) -> Iterator[str]:
    """What keeps runs from being points of one law, each said once."""
    first = runs[0]
    for what, of in _comparisons(registry):
        for run in runs[1:]:
            mine, theirs = of(first), of(run)
            if not _alike(mine, theirs):
                names = f"{first.artifact.name} and {run.artifact.name}"
                yield f"{names} have another {what}"
                break


def _comparisons(registry: Registry) -> list[tuple[str, Callable[[FinishedRun], Any]]]:
    def tokens(run: FinishedRun) -> Artifact:
        return parent_of_kind(registry, run.artifact, "tokens")

    def tokenizer(run: FinishedRun) -> str:
        return parent_of_kind(registry, run.artifact, "tokenizer").digest

    def corpus(run: FinishedRun) -> str:
        return parent_of_kind(registry, tokens(run), "corpus").digest

    return [
        ("tokenizer", tokenizer),
        ("corpus", corpus),
        ("set of token shards", lambda run: tokens(run).digest),
        ("sequence length", lambda run: run.pretrain["sequence_length"]),
        ("held-out set", lambda run: run.heldout),
        ("schedule", lambda run: run.schedule),
        ("shape of the schedule", lambda run: run.schedule_shape),
    ]


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], float):
        (low, warmup), (other_low, other_warmup) = one, other
        return bool(low == other_low and abs(warmup - other_warmup) <= _WARMUP)
    if isinstance(one, tuple):
        # Runs of an earlier bc2 have no digest of their held-out tokens.
        return all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _seed_noise(runs: Sequence[FinishedRun]) -> float | None:
    twins: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        twins[run.twin].append(float(np.log(run.loss)))
    groups = [np.array(losses) for losses in twins.values() if len(losses) > 1]
    if not groups:
        return None
    squares = sum(float(np.sum((group - group.mean()) ** 2)) for group in groups)
    return float(np.sqrt(squares / sum(len(group) - 1 for group in groups)))
