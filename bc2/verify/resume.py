"""`bc2 verify resume`: a run that is killed, or goes on elsewhere, is the run that was not.

Made of short runs of the user's own recipe: its shape, data, batches and precision, with
another length and other intervals. One goes straight on. One is killed and started again,
and must be the first to the bit. One is continued from layout to layout, each taking the
checkpoint that another wrote, and back on the first: it must read the same samples and find
the same losses but for rounding.
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
from bc2.model.model_config import ModelConfig
from bc2.recipe import Recipe
from bc2.registry import Artifact, Registry
from bc2.train.device import pick_device, pick_precision
from bc2.train.optimizer_config import checkpoint_bytes
from bc2.train.pretrain_config import PretrainConfig
from bc2.train.rank_layout import RankLayout
from bc2.train.run import Run
from bc2.verify.attempts import Kill, disturb, finish
from bc2.verify.certificate import Certificate
from bc2.verify.compare import TOLERANCES, Comparison, bits, near
from bc2.verify.scratch import Scratch, ScratchHome, scratch, write_recipe


@dataclass(frozen=True)
class ResumeRequest:
    """What is to be verified.

    Attributes:
        tokens: the recipe's token shards, and their tokenizer.
        steps: of each run.
        kills: of the run that is killed.
        seed: draws the moments of the kills.
        others: layouts to go on with.
    """

    recipe: Recipe
    tokens: Artifact
    tokenizer: Artifact
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
        """Times that the run goes on elsewhere, the way back included."""
        return len(self.others) + 1 if self.others else 0

    @property
    def every(self) -> int:
        """Steps between checkpoints."""
        return max(1, self.steps // (self.legs + 1 if self.legs else 4))

    @property
    def training(self) -> PretrainConfig:
        return self.recipe.get(PretrainConfig)

    @property
    def device(self) -> torch.device:
        return pick_device(self.training.device)

    @property
    def precision(self) -> str:
        return pick_precision(self.training.precision, self.device)

    def replaced(self) -> dict[str, Any]:
        """Settings of [pretrain] that are not the recipe's."""
        recipe = self.training
        return {
            "tokens": self.tokens.digest,
            "length": f"{self.steps} steps",
            "schedule": {**recipe.schedule.model_dump(), "warmup": f"{self.steps // 4} steps"},
            "checkpoint_every": f"{self.every} steps",
            "eval_every": f"{max(1, self.steps // 2)} steps",
            "eval_tokens": min(recipe.eval_tokens, 8 * recipe.sequence_length),
            "sample_prompts": min(recipe.sample_prompts, 1),
            "sample_tokens": min(recipe.sample_tokens, 8),
            "log_every": 1,
            "track": [],
        }


def verify_resume(asked: ResumeRequest, registry: Registry) -> Certificate:
    """Make the runs and compare them.

    Raises:
        Bc2Error: what a run failed with.
        ResourceError: there is no room for their checkpoints.
    """
    inputs = [asked.tokens, asked.tokenizer]
    with scratch(registry, inputs) as room, _steps_of(asked) as step:
        _check_room(asked, room.path)
        trial = _Trial(asked, room)
        step("straight")
        straight = trial.straight()
        step("killed")
        found = [trial.killed(straight)]
        found += trial.elsewhere(straight, step)
        return Certificate.now(_about(trial.asked), found)


@contextmanager
def _steps_of(asked: ResumeRequest) -> Iterator[Any]:
    total = 2 + asked.legs

    with progress("verifying", total, "runs") as bar:

        def step(detail: str) -> None:
            note(f"verifying: {detail}")
            bar(1, detail)

        yield step


def _check_room(asked: ResumeRequest, folder: Path) -> None:
    """Every boundary of the straight run is kept, and what is being continued from."""
    each = checkpoint_bytes(asked.recipe.get(ModelConfig), asked.training.optimizer)
    needed = each * (asked.legs + 6)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"the checkpoints of the tried runs need {needed / 1e9:,.1f} GB and "
            f"{free / 1e9:,.1f} GB are free",
            where=str(folder),
            todo="make room, or set BC2_HOME to a larger disk",
        )


class _Trial:
    """The runs of one verification."""

    def __init__(self, asked: ResumeRequest, room: Scratch):
        self.asked = asked
        self.room = room

    def straight(self) -> ScratchHome:
        """Nothing happens to it. What "auto" came to here is what all the others take."""
        home = self.room.home("straight")
        finish(self._recipe(self.asked.base, keep=0), home, self.asked.base.ranks)
        (row,) = home.timing("start")
        base = replace(self.asked.base, micro_batch=row["micro_batch"])
        self.asked = replace(self.asked, base=base)
        return home

    def killed(self, straight: ScratchHome) -> Comparison:
        """SIGKILL and resume, to the bit."""
        asked, home = self.asked, self.room.home("killed")
        hits = disturb(
            self._recipe(asked.base, keep=2),
            home,
            asked.base.ranks,
            kills=asked.kills,
            steps=asked.steps,
            rng=random.Random(asked.seed),
        )
        difference, figures = bits(_end(straight), _end(home))
        figures["kills"] = [asdict(hit) for hit in hits]
        shutil.rmtree(home.path)
        return Comparison(_told(hits), str(asked.base), "bits", difference, figures)

    def elsewhere(self, straight: ScratchHome, step: Any) -> list[Comparison]:
        """From layout to layout and back, each from what the one before wrote."""
        if not self.asked.others:
            return []
        found, before, own = [], straight, self.asked.base
        for number, layout in enumerate([*self.asked.others, own], 1):
            step(str(layout))
            since = number * self.asked.every
            home = self.room.home(f"leg{number}", before.checkpoint(since))
            finish(self._recipe(layout, keep=0), home, layout.ranks)
            found.append(self._nearly(straight, home, layout, since))
            if before is not straight:
                shutil.rmtree(before.path)
            before = home
        return found

    def _nearly(
        self, straight: ScratchHome, home: ScratchHome, layout: RankLayout, since: int
    ) -> Comparison:
        tolerance = TOLERANCES[self.asked.precision]
        difference, figures = near(_end(straight), _end(home), since, tolerance)
        figures["layout"] = layout.as_json()
        back = " again" if layout == self.asked.base else ""
        what = f"continued from step {since}{back}"
        return Comparison(what, str(layout), f"{tolerance:g} relative", difference, figures)

    def _recipe(self, layout: RankLayout, keep: int) -> Path:
        """As a file without the sections of the inputs, which are there already."""
        recipe = self.asked.recipe
        micro = layout.micro_batch or recipe.get(PretrainConfig).micro_batch
        pretrain = recipe.get(PretrainConfig).model_dump(mode="json")
        pretrain |= {**self.asked.replaced(), "keep_checkpoints": keep, "micro_batch": micro}
        path = self.room.path / f"recipe-{layout.ranks}-{keep}.toml"
        sections = {
            "model": recipe.get(ModelConfig).model_dump(mode="json"),
            "parallel": layout.parallel.model_dump(mode="json"),
            "pretrain": pretrain,
        }
        write_recipe(path, recipe.name, sections)
        return path


def _end(home: ScratchHome) -> Artifact:
    """The finished checkpoint of a tried run, read through."""
    registry = home.registry
    artifact = registry.newest("checkpoint")
    registry.verify(artifact)
    return artifact


def _told(hits: list[Kill]) -> str:
    saving = sum(hit.saving for hit in hits)
    times = f"{len(hits)} time{'s' if len(hits) > 1 else ''}"
    return f"killed {times} ({saving} while saving) and resumed"


def _about(asked: ResumeRequest) -> dict[str, Any]:
    """On what it was shown: no host's name and no path."""
    model, recipe = asked.recipe.get(ModelConfig), asked.recipe
    return {
        "recipe": {"name": recipe.name, "digest": sha256_json(recipe.resolved())},
        "overrides": list(recipe.overrides.values()),
        "inputs": {"tokens": asked.tokens.digest, "tokenizer": asked.tokenizer.digest},
        "model": {**model.model_dump(mode="json"), "parameters": model.num_params()},
        "run": {
            "steps": asked.steps,
            "batch_tokens": asked.training.batch_tokens,
            "sequence_length": asked.training.sequence_length,
            "precision": asked.precision,
            "kills": asked.kills,
            "seed": asked.seed,
            "replaced": asked.replaced(),
        },
        "layout": asked.base.as_json(),
        "machine": machine_facts(asked.device),
    }


def tokenizer_of(registry: Registry, tokens: Artifact) -> Artifact:
    """The tokenizer that token shards were made with."""
    found = [parent for parent in registry.parents(tokens) if parent.kind == "tokenizer"]
    if not found:
        raise UsageError(
            f"{tokens.title} has no tokenizer among its parents", todo="import its tokenizer too"
        )
    return found[0]


def finished_checkpoint(asked: ResumeRequest, registry: Registry) -> Artifact | None:
    """The recipe's own finished model, if there is one."""
    recipe = asked.recipe
    model, config = recipe.get(ModelConfig), recipe.get(PretrainConfig)
    run = Run.resolve(recipe.name, config, model, asked.tokens, asked.tokenizer, {}, [])
    return run.finished(registry)
