"""What the ranks of an evaluation are told, and what each of them does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from bc2.errors import DataError
from bc2.evaluate.answer_journal import AnswerJournal
from bc2.evaluate.eval_settings import EvalSettings
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.suite_prompts import SuitePrompts, SuiteRows
from bc2.evaluate.suite_run import SuiteRun
from bc2.files import replace_durably
from bc2.generate.engine_config import EngineConfig
from bc2.harness.suites import suite_of
from bc2.registry import Registry

_FILE = "job.json"


class RankJob(BaseModel, frozen=True):
    """Written into the work folder that the ranks share."""

    settings: EvalSettings
    folder: Path | None
    """Of the benchmark's files, as it was given."""
    kept_in: Path
    """Where prompts are stored."""
    checkpoint: str
    """Its digest."""
    device: str
    engine: EngineConfig
    claims: str
    """The folder in which they mark what they take."""


def start_ranks(
    holder: ModelHolder,
    folder: Path | None,
    launch: Callable[[Path], None],
    prompts: SuitePrompts,
    work: Path,
    claims: str,
) -> None:
    """Write the job of ranks into their work folder, and run them to their end."""
    job = RankJob(
        settings=prompts.settings, folder=folder, kept_in=prompts.kept_in,
        checkpoint=holder.artifact.digest, device=holder.wanted_device, engine=holder.config,
        claims=claims,
    )  # fmt: skip
    replace_durably(work / _FILE, job.model_dump_json().encode())
    launch(work)


def answer_as_rank(registry: Registry, work: Path) -> None:
    """Answer, as one of several ranks, what is unanswered in a work folder.

    Raises:
        DataError: the benchmark's files have changed since the ranks were started.
    """
    job = RankJob.model_validate(json.loads((work / _FILE).read_bytes()))
    artifact = registry.get(job.checkpoint)
    holder = ModelHolder.on(artifact, job.device, job.settings.precision, job.engine)
    rows = SuiteRows.open(suite_of(job.settings.suite), job.folder, say=False)
    if rows.digest != job.settings.data:
        raise DataError(
            f"the files of {rows.suite.title} changed while they were read",
            todo="run it again when the files rest",
        )
    prompts = SuitePrompts(rows, job.settings, holder.tokenizer, job.kept_in)
    try:
        SuiteRun(prompts, holder).answer(AnswerJournal(work, job.claims))
    finally:
        holder.close()
