"""Evaluate a checkpoint in suites: each is found in the registry, or evaluated and registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bc2.errors import RunFailed
from bc2.evaluate.eval_settings import EvalSettings
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.suite_prompts import PROMPTS_VERSION, SuitePrompts, SuiteRows
from bc2.evaluate.suite_run import SuiteRun
from bc2.harness.versions import harness_version
from bc2.pipeline.session import Session
from bc2.registry import Artifact

if TYPE_CHECKING:
    from bc2.sandbox.run import Sandbox
    from bc2.train.precision import Precision


@dataclass(frozen=True)
class EvalRequest:
    """What a person asked for, of every suite alike."""

    shots: int | None = None
    """None: each suite's own."""
    limit: int | None = None
    seed: int = 1234
    samples: int = 1
    temperature: float = 0.0
    precision: Precision = "fp32"

    def settings(self, rows: SuiteRows) -> EvalSettings:
        """The settings of one suite."""
        return EvalSettings(
            suite=rows.suite.name,
            shots=self.shots if self.shots is not None else rows.suite.shots,
            limit=self.limit,
            seed=self.seed,
            samples=self.samples,
            temperature=self.temperature,
            precision=self.precision,
            data=rows.digest,
            harness=harness_version(),
            prompts_version=PROMPTS_VERSION,
        )


@dataclass(frozen=True)
class SuiteScores:
    """The scores of one suite."""

    artifact: Artifact
    made: bool
    """Evaluated now, and not found."""
    run: SuiteRun


@dataclass
class Evaluation:
    """One model and the suites that it is evaluated in."""

    session: Session
    holder: ModelHolder
    request: EvalRequest
    start_ranks: Callable[[Path], None] | None = None
    sandbox: Sandbox | None = None
    failed: list[RunFailed] = field(default_factory=list)
    """Suites that came to no score."""

    def evaluate(self, suites: Sequence[SuiteRows]) -> Iterator[SuiteScores]:
        """The scores of each suite that comes to any, in order.

        A suite without scores does not keep the others from being evaluated: see `failed`.
        """
        for rows in suites:
            try:
                yield self._scores(rows)
            except RunFailed as error:
                self.failed.append(error)

    def _scores(self, rows: SuiteRows) -> SuiteScores:
        settings = self.request.settings(rows)
        prompts = SuitePrompts(rows, settings, self.holder.tokenizer)
        run = SuiteRun(prompts, self.holder, self.start_ranks, self.sandbox)
        checkpoint = self.holder.artifact
        artifact = self.session.obtain_recorded(
            "scores", f"{checkpoint.name}-{settings.suite}", settings,
            {"checkpoint": [checkpoint]}, options=run,
        )  # fmt: skip
        return SuiteScores(artifact, artifact in self.session.built, run)
