"""`bc2 verify resume`: a run that is killed, or resumed on another layout, trains the same model.

It compares short runs of the user's own recipe, with its shape, data, batches and precision, but
another length and other intervals. One runs straight through. One is killed and started again,
and must equal the first to the bit. One is continued from layout to layout, each resuming from
a checkpoint that another wrote, and at last on the first layout again: it must read the same
samples and find the same losses except for rounding.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bc2.bench.machine import machine_facts
from bc2.console import note, progress
from bc2.errors import ResourceError, UsageError
from bc2.files import sha256_json
from bc2.pipeline.stage import Inputs
from bc2.registry import Artifact, Registry
from bc2.train.device import pick_device, pick_precision
from bc2.train.rank_layout import RankLayout
from bc2.train.run import Run
from bc2.train.run_config import RunConfig
from bc2.train.training_settings import TrainingSettings
from bc2.verify.attempts import Kill, TriedRun, train_to_end, train_with_kills
from bc2.verify.certificate import Certificate
from bc2.verify.compare import TOLERANCES, Comparison, compare_bits, compare_losses
from bc2.verify.scratch import Scratch, ScratchHome, scratch, write_recipe


@dataclass(frozen=True)
class ResumeRequest:
    """What is to be verified.

    Attributes:
        inputs: what the recipe trains on.
        steps: of each run.
        kills: of the run that is killed.
        seed: draws the moments of the kills.
        others: layouts to continue on.
    """

    settings: TrainingSettings
    inputs: Inputs
    base: RankLayout
    others: Sequence[RankLayout] = ()
    steps: int = 12
    kills: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < max(4, self.legs + 1):
            raise UsageError(
                f"--steps {self.steps} is too few",
                todo=f"at least {max(4, self.legs + 1)}: a checkpoint goes from layout to layout",
            )

    @property
    def legs(self) -> int:
        """How often the run changes its layout, the way back included."""
        return len(self.others) + 1 if self.others else 0

    @property
    def every(self) -> int:
        """Steps between checkpoints."""
        return max(1, self.steps // (self.legs + 1 if self.legs else 4))

    @property
    def training(self) -> RunConfig:
        return self.settings.training

    @property
    def device(self) -> torch.device:
        return pick_device(self.training.device)

    @property
    def precision(self) -> str:
        return pick_precision(self.training.precision, self.device)

    def replaced(self) -> dict[str, Any]:
        """The settings of the algorithm's section that replace the recipe's."""
        recipe, algorithm = self.training, self.settings.algorithm
        warmup = f"{self.steps // 4} steps" if recipe.schedule.warmup_length.amount else "0 steps"
        return {
            **self.named_inputs(),
            "length": f"{self.steps} steps",
            "schedule": {**recipe.schedule.model_dump(), "warmup": warmup},
            "checkpoint_every": f"{self.every} steps",
            "eval_every": f"{max(1, self.steps // 2)} steps",
            **algorithm.shortened(recipe, self.steps),
            "log_every": 1,
            "track": [],
        }

    def named_inputs(self) -> dict[str, Any]:
        """The settings that name the inputs, as digests: nothing is made or looked for anew."""
        named: dict[str, Any] = {}
        for needed in self.settings.algorithm.all_inputs:
            digests = [artifact.digest for artifact in self.inputs.by_name.get(needed.key, ())]
            if digests:
                named[needed.key] = digests if needed.many else digests[0]
        return named


def verify_resume(request: ResumeRequest, registry: Registry) -> Certificate:
    """Make the runs and compare them.

    Raises:
        Bc2Error: what a run failed with.
        ResourceError: there is no room for their checkpoints.
    """
    parents = request.settings.algorithm.parents(request.inputs, registry)
    with scratch(registry, list(parents)) as room, _steps_of(request) as step:
        _check_room(request, room.path)
        runs = _Runs(request, room)
        step("straight")
        straight = runs.straight()
        step("killed")
        found = [runs.killed(straight)]
        found += runs.on_other_layouts(straight, step)
        return Certificate.now(_subject(runs.request, parents), found)


@contextmanager
def _steps_of(request: ResumeRequest) -> Iterator[Any]:
    total = 2 + request.legs

    with progress("verifying", total, "runs") as bar:

        def step(detail: str) -> None:
            note(f"verifying: {detail}")
            bar(1, detail)

        yield step


def _check_room(request: ResumeRequest, folder: Path) -> None:
    """There must be room for every checkpoint of the straight run, and for those of a leg."""
    each = request.settings.checkpoint_bytes
    needed = each * (request.legs + 6)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"the checkpoints of the tried runs need {needed / 1e9:,.1f} GB and "
            f"{free / 1e9:,.1f} GB are free",
            where=str(folder),
            todo="make room, or set BC2_HOME to a larger disk",
        )


class _Runs:
    """The runs of one verification."""

    def __init__(self, request: ResumeRequest, room: Scratch):
        self.request = request
        self.room = room
        self.verb = request.settings.algorithm.name

    def straight(self) -> ScratchHome:
        """The undisturbed run. What micro_batch = "auto" came to here, all others take."""
        home = self.room.home("straight")
        train_to_end(self._tried(self.request.base, home, keep=0))
        (row,) = home.timing("start")
        base = replace(self.request.base, micro_batch=row["micro_batch"])
        self.request = replace(self.request, base=base)
        return home

    def killed(self, straight: ScratchHome) -> Comparison:
        """The run that is killed and resumed, compared to the bit."""
        request, home = self.request, self.room.home("killed")
        kills = train_with_kills(
            self._tried(request.base, home, keep=2),
            kills=request.kills,
            steps=request.steps,
            rng=random.Random(request.seed),
        )
        difference, figures = compare_bits(_end(straight), _end(home))
        figures["kills"] = [asdict(kill) for kill in kills]
        shutil.rmtree(home.path)
        return Comparison(_kills_text(kills), str(request.base), "bits", difference, figures)

    def on_other_layouts(self, straight: ScratchHome, step: Any) -> list[Comparison]:
        """The run that changes its layout, each time from the checkpoint of the leg before."""
        if not self.request.others:
            return []
        found, before, own = [], straight, self.request.base
        for number, layout in enumerate([*self.request.others, own], 1):
            step(str(layout))
            since = number * self.request.every
            home = self.room.home(f"leg{number}", before.checkpoint(since))
            train_to_end(self._tried(layout, home, keep=0))
            found.append(self._compare_leg(straight, home, layout, since))
            if before is not straight:
                shutil.rmtree(before.path)
            before = home
        return found

    def _compare_leg(
        self, straight: ScratchHome, home: ScratchHome, layout: RankLayout, since: int
    ) -> Comparison:
        tolerance = TOLERANCES[self.request.precision]
        difference, figures = compare_losses(
            _end(straight), _end(home), straight.measures, since, tolerance
        )
        figures["layout"] = layout.as_json()
        back = " again" if layout == self.request.base else ""
        what = f"continued from step {since}{back}"
        return Comparison(what, str(layout), f"{tolerance:g} relative", difference, figures)

    def _tried(self, layout: RankLayout, home: ScratchHome, keep: int) -> TriedRun:
        return TriedRun(self.verb, self._recipe(layout, keep), home, layout.ranks)

    def _recipe(self, layout: RankLayout, keep: int) -> Path:
        """The recipe as a file, without the sections of inputs that are registered already."""
        settings = self.request.settings
        micro = layout.micro_batch or settings.training.micro_batch
        training = settings.training.model_dump(mode="json")
        training |= {**self.request.replaced(), "keep_checkpoints": keep, "micro_batch": micro}
        path = self.room.path / f"recipe-{layout.ranks}-{keep}.toml"
        sections = {
            "model": settings.model.model_dump(mode="json"),
            "parallel": layout.parallel.model_dump(mode="json"),
            self.verb: training,
        }
        write_recipe(path, settings.name, sections)
        return path


def _end(home: ScratchHome) -> Artifact:
    """The finished checkpoint of a tried run, read through."""
    artifact = home.end()
    home.registry.verify(artifact)
    return artifact


def _kills_text(kills: list[Kill]) -> str:
    saving = sum(kill.saving for kill in kills)
    times = f"{len(kills)} time{'s' if len(kills) > 1 else ''}"
    return f"killed {times} ({saving} while saving) and resumed"


def _subject(request: ResumeRequest, parents: Sequence[Artifact]) -> dict[str, Any]:
    """What was verified, and on which machine; without names of hosts and paths."""
    model, recipe = request.settings.model, request.settings.recipe
    return {
        "algorithm": request.settings.algorithm.name,
        "recipe": {"name": recipe.name, "digest": sha256_json(recipe.resolved())},
        "overrides": list(recipe.overrides.values()),
        "inputs": _named(request.inputs, parents),
        "model": {**model.model_dump(mode="json"), "parameters": model.num_params()},
        "run": {
            "steps": request.steps,
            "batch_tokens": request.training.step_tokens,
            "sequence_length": request.training.sequence_length,
            "precision": request.precision,
            "kills": request.kills,
            "seed": request.seed,
            "replaced": request.replaced(),
        },
        "layout": request.base.as_json(),
        "machine": machine_facts(request.device),
    }


def _named(inputs: Inputs, parents: Sequence[Artifact]) -> dict[str, str | list[str]]:
    """Digests of all that the runs descend from: inputs by name, what belongs to them by kind.

    Of an input that is several artifacts a list.
    """
    named: dict[str, str | list[str]] = {}
    for name, found in inputs.by_name.items():
        digests: list[str] = [artifact.digest for artifact in found]
        if digests:
            named[name] = digests if len(digests) > 1 else digests[0]
    given = inputs.all()
    return named | {str(one.kind): one.digest for one in parents if one not in given}


def finished_checkpoint(request: ResumeRequest, registry: Registry) -> Artifact | None:
    """The recipe's own finished model, if there is one."""
    run = Run.of_inputs(request.settings, request.inputs, registry, {})
    return run.finished(registry)
