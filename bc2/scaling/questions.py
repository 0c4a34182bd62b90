"""Questions to a registered law, and its answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bc2.console import note
from bc2.errors import UsageError
from bc2.files import make_directory, why_not_writable
from bc2.pipeline.reach import check_overrides
from bc2.recipe import Recipe, load
from bc2.registry import Artifact, Registry
from bc2.registry.draft import SHORT
from bc2.scaling.decide import (
    VOCAB_SIZE,
    Allocation,
    Prediction,
    allocate,
    check_budget,
    check_prediction,
    measured_loss,
    predict,
    tokens_of,
    warn_of_other_text,
)
from bc2.scaling.ladder import read_ladder
from bc2.scaling.ladder_config import LadderConfig
from bc2.scaling.law import LAW, Law
from bc2.scaling.law_config import LawSettings
from bc2.scaling.picture import Target, draw_law

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def as_name(text: str) -> str:
    """A file's name as that of an artifact."""
    return _NOT_IN_A_NAME.sub("-", text).strip("-._") or "law"


@dataclass(frozen=True)
class Questions:
    """What a law is asked."""

    predict: str | None = None
    """A recipe."""
    overrides: tuple[str, ...] = ()
    budget: float | None = None
    """FLOPs."""
    vocab_size: int | None = None
    """Of the shape for a budget; None: Baichuan 2's."""
    plan: Callable[[Any], dict[str, Any]] | None = None
    """Recipe -> what it takes on given devices, as `bc2 plan` has it."""

    @property
    def any(self) -> bool:
        return self.predict is not None or self.budget is not None

    @cached_property
    def recipe(self) -> Recipe:
        """What is to be predicted."""
        assert self.predict is not None
        return _target(self.predict, self.overrides)

    @cached_property
    def planned(self) -> dict[str, Any] | None:
        return self.plan(self.recipe) if self.plan else None

    def check(self, settings: LawSettings | None = None) -> None:
        """Find what is wrong with the questions without a fit.

        Args:
            settings: of the law; None: what is wrong whatever the law.

        Raises:
            UsageError, RecipeError: they make no sense, or such a law cannot answer them.
        """
        if self.predict is not None:
            tokens_of(self.recipe)
            _ = self.planned
        if self.vocab_size is not None and self.vocab_size < 1:
            raise UsageError(f"--vocab-size {self.vocab_size} is too small", todo="e.g. 125696")
        if settings is None:
            return
        if self.predict is not None:
            check_prediction(settings)
        if self.budget is not None:
            check_budget(settings, self.budget)


@dataclass(frozen=True)
class Answers:
    """What it answered, with the pictures that show it."""

    prediction: Prediction | None = None
    plan: dict[str, Any] | None = None
    allocation: Allocation | None = None
    pictures: tuple[Path, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "prediction": self.prediction.as_json() if self.prediction else None,
            "plan": self.plan,
            "budget": self.allocation.as_json() if self.allocation else None,
            "pictures": [str(path) for path in self.pictures],
        }


def ask(registry: Registry, artifact: Artifact, questions: Questions) -> Answers:
    """Put the questions to a registered law.

    Raises:
        UsageError, RecipeError: the law cannot answer, or the recipe is wrong.
    """
    if not questions.any:
        return Answers()
    law = Law.load(artifact)
    prediction = allocation = plan = None
    targets = []
    if questions.predict is not None:
        recipe, plan = questions.recipe, questions.planned
        prediction = predict(law, recipe)
        if artifact.parents:
            warn_of_other_text(registry, registry.parents(artifact), recipe)
            prediction = replace(prediction, measured=measured_loss(registry, recipe))
        targets.append(
            Target(prediction.target, prediction.params, prediction.tokens, prediction.flops,
                   prediction.loss, prediction.measured)
        )  # fmt: skip
    if questions.budget is not None:
        allocation = allocate(law, questions.budget, questions.vocab_size or VOCAB_SIZE)
        name = f"budget-{questions.budget:.3g}"
        targets.append(
            Target(name, allocation.params.value, allocation.tokens.value, allocation.flops,
                   allocation.loss)
        )  # fmt: skip
    folder = registry.home / "laws" / f"{artifact.name}-{artifact.digest[:SHORT]}"
    if reason := why_not_writable(folder):
        note(f"no pictures are drawn: {folder} cannot be written ({reason})")
        return Answers(prediction, plan, allocation, ())
    make_directory(folder)
    path = folder / as_name("-".join(target.name for target in targets))
    return Answers(prediction, plan, allocation, tuple(draw_law(law, path, targets)))


def _target(source: str, overrides: Sequence[str]) -> Recipe:
    """What is predicted: the recipe's run; of a ladder its extrapolation."""
    recipe = load(source, overrides)
    if not recipe.has(LadderConfig):
        check_overrides(recipe, "checkpoint")
        return recipe
    last = read_ladder(source, overrides).extrapolation
    if last is None:
        return recipe
    note(f"{recipe.name} is a ladder: predicting its extrapolation, {last.name}")
    return load(source, last.overrides)


def read_law(artifact: Artifact) -> dict[str, Any]:
    """What ``law.json`` of a registered law says."""
    found: dict[str, Any] = json.loads(artifact.file(LAW).read_text(encoding="utf-8"))
    return found
