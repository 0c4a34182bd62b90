"""Evaluate a checkpoint in suites: each is found in the registry, or evaluated and registered."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.cache_folder import cache_folder
from bc2.console import note
from bc2.errors import Bc2Error, DataError, RunFailed, UsageError
from bc2.evaluate.eval_settings import EvalSettings
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.rank_job import start_ranks
from bc2.evaluate.suite_prompts import PROMPTS_VERSION, SuitePrompts, SuiteRows
from bc2.evaluate.suite_run import SuiteRun
from bc2.evaluate.text_likelihood import stride_of
from bc2.evaluate.text_run import TextEvalSettings, TextFiles, TextRun
from bc2.harness.versions import harness_version
from bc2.pipeline.session import Session
from bc2.ranks import RankFailed
from bc2.recipe import keying
from bc2.registry import Artifact

if TYPE_CHECKING:
    from bc2.evaluate.judging import Verdicts
    from bc2.sandbox.run import Sandbox
    from bc2.train.precision import Precision


#: Exit codes of errors that are about one suite.
_OF_ONE_SUITE = (RunFailed.exit_code, DataError.exit_code, UsageError.exit_code)


@dataclass(frozen=True)
class EvalRequest:
    """What is asked of every suite alike."""

    shots: int | None = None
    """None: each suite's own."""
    limit: int | None = None
    seed: int = 1234
    samples: int = 1
    temperature: float = 0.0
    precision: Precision = "fp32"
    apply_chat_template: bool = False
    """Whether prompts are chats in the model's layout."""
    fewshot_as_multiturn: bool = True
    """Whether the examples are turns of these chats, lm-eval's default."""

    def settings(self, rows: SuiteRows) -> EvalSettings:
        """The settings of one suite."""
        shots = self.shots if self.shots is not None else rows.suite.shots
        return EvalSettings(
            suite=rows.suite.name,
            shots=shots,
            limit=self.limit,
            seed=self.seed,
            # Nothing is drawn where choices are scored: the same scores have the same key.
            samples=1 if rows.suite.of_choices else self.samples,
            temperature=0.0 if rows.suite.of_choices else self.temperature,
            precision=self.precision,
            data=rows.digest(shots),
            harness=harness_version(rows.suite),
            prompts_version=PROMPTS_VERSION,
            apply_chat_template=self.apply_chat_template,
            fewshot_as_multiturn=self.apply_chat_template and self.fewshot_as_multiturn,
        )


@dataclass
class Evaluation:
    """One model, and how it is evaluated.

    Raises:
        DataError: a chat layout is asked for, and the model has none.
    """

    session: Session
    holder: ModelHolder
    request: EvalRequest
    folder: Path | None = None
    """Of the benchmarks' files, as it was given."""
    launch: Callable[[Path], None] | None = None
    """Starts ranks on a work folder; None: this process answers."""
    sandbox: Sandbox | None = None
    """Where programs are run."""
    failed: list[Bc2Error] = field(default_factory=list)
    """Suites that came to no score."""
    model_seconds: dict[str, float | None] = field(default_factory=dict)
    """By digest of scores that were made now: see `SuiteRun.model_seconds`."""

    def __post_init__(self) -> None:
        if self.request.apply_chat_template:
            self.holder.use_layout()

    def evaluate(self, suites: Sequence[SuiteRows]) -> Iterator[Artifact]:
        """The scores of each suite that comes to any, in order.

        A suite without a score does not keep the others from being evaluated: see `failed`.
        """
        for rows in suites:
            try:
                yield self._scores(rows)
            except (RunFailed, DataError, UsageError, RankFailed) as error:
                if error.exit_code not in _OF_ONE_SUITE:
                    raise  # by a rank, that all was stopped or cannot go on
                self.failed.append(error)

    def measure_text(self, files: TextFiles, stride: int | None) -> Artifact:
        """The likelihood of texts.

        Raises:
            UsageError: the stride is larger than the model's window.
        """
        settings = TextEvalSettings(
            stride=stride_of(stride, self.holder.window),
            limit=self.request.limit,
            precision=self.request.precision,
            data=files.digest,
        )
        run = TextRun(files, settings, self.holder, self._start_ranks())
        return self._obtain(settings, run)

    def _scores(self, rows: SuiteRows) -> Artifact:
        settings = self.request.settings(rows)
        holder = self.holder
        prompts = SuitePrompts(rows, settings, holder.tokenizer, self._kept_in, holder.chat)
        verdicts = self._verdicts if rows.suite.runs_code else None
        run = SuiteRun(prompts, holder, self._start_ranks(), verdicts)
        scores = self._obtain(settings, run)
        self.model_seconds[scores.digest] = run.model_seconds
        return scores

    def _obtain(self, settings: EvalSettings | TextEvalSettings, run: Any) -> Artifact:
        checkpoint = self.holder.artifact
        # A few tasks of lm-eval have parentheses in their names.
        name = f"{checkpoint.name}-{re.sub(r'[^A-Za-z0-9._-]', '-', settings.suite)}"
        self._say_changed(name, settings, run.files.path if isinstance(run, TextRun) else None)
        parents = {checkpoint.kind: [checkpoint]}
        return self.session.obtain_recorded("scores", name, settings, parents, options=run)

    def _start_ranks(self) -> Callable[..., None] | None:
        if self.launch is None:
            return None
        return partial(start_ranks, self.holder, self.folder, self._kept_in, self.launch)

    @property
    def _kept_in(self) -> Path:
        """Where prompts are kept: of the machine, so that all homes share them.

        Of this home for a user without a home directory.
        """
        try:
            return cache_folder() / "prompts"
        except RuntimeError:
            return self.session.registry.home / "cache" / "prompts"

    def _verdicts(self, work: Path) -> Verdicts:
        from bc2.evaluate.code_verdicts import code_verdicts

        assert self.sandbox is not None, "programs need a sandbox"
        return partial(code_verdicts, self.sandbox, work / "verdicts")

    def _say_changed(
        self, name: str, settings: EvalSettings | TextEvalSettings, path: str | None
    ) -> None:
        """Say so if the same was evaluated on other rows, and not yet on these.

        Args:
            path: of one's own texts, of which another path is another text; None: a benchmark.
        """
        wanted = settings.model_dump(mode="json")
        # Settings that there were not yet when others were recorded had their defaults.
        later = {
            name: info.default
            for name, info in type(settings).model_fields.items()
            if keying(info) == "unless default"
        }
        digest = self.holder.artifact.digest
        alike = {}
        for known in self.session.registry.list("scores", name=name):
            recorded = known.manifest.recipe.get("scores", {})
            if path is not None and known.manifest.facts["data"]["origin"] != path:
                continue
            alike_but_rows = {**later, **recorded, "data": settings.data} == wanted
            if known.parents == (digest,) and alike_but_rows:
                alike[recorded["data"]] = known
        if alike and settings.data not in alike:
            other = next(iter(alike.values()))
            note(
                f"the rows of {settings.suite} are not those of {other.title} "
                f"({other.ref}): evaluating anew"
            )
