"""What the ranks of an evaluation are told, and what each of them does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from bc2.errors import DataError
from bc2.evaluate.answer_journal import AnswerJournal
from bc2.evaluate.eval_settings import EvalSettings
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.suite_prompts import SuitePrompts, SuiteRows
from bc2.evaluate.suite_run import SuiteRun
from bc2.evaluate.text_run import TextEvalSettings, TextFiles, TextRun
from bc2.files import replace_durably
from bc2.generate.engine_config import EngineConfig
from bc2.harness.suites import suite_of
from bc2.ranks import world_size
from bc2.registry import Registry

_FILE = "job.json"


class RankJob(BaseModel, frozen=True):
    """Written into the work folder that the ranks share."""

    settings: EvalSettings | TextEvalSettings
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
    kept_in: Path,
    launch: Callable[[Path], None],
    settings: EvalSettings | TextEvalSettings,
    work: Path,
    claims: str,
) -> None:
    """Write the job of ranks into their work folder, and run them to their end."""
    job = RankJob(
        settings=settings, folder=folder, kept_in=kept_in, checkpoint=holder.artifact.digest,
        device=holder.wanted_device, engine=holder.config, claims=claims,
    )  # fmt: skip
    replace_durably(work / _FILE, job.model_dump_json().encode())
    launch(work)


def answer_as_rank(registry: Registry, work: Path) -> None:
    """Answer, as one of several ranks, what is unanswered in a work folder.

    Raises:
        DataError: the job is damaged, or the benchmark's files have changed since the ranks were
            started.
    """
    job = _read_job(work / _FILE)
    artifact = registry.get(job.checkpoint)
    holder = ModelHolder.on(artifact, job.device, job.settings.precision, job.engine)
    try:
        if isinstance(job.settings, TextEvalSettings):
            files = TextFiles.open(job.folder)
            _check_rest(files.digest, job.settings)
            TextRun(files, job.settings, holder).measure(AnswerJournal(work, job.claims))
        else:
            rows = SuiteRows.open(suite_of(job.settings.suite), job.folder, say=False)
            _check_rest(rows.digest(job.settings.shots), job.settings)
            if job.settings.apply_chat_template:
                holder.use_layout()
            prompts = SuitePrompts(rows, job.settings, holder.tokenizer, job.kept_in, holder.chat)
            holder.config = _fair(holder.config, prompts)
            SuiteRun(prompts, holder).answer(AnswerJournal(work, job.claims))
    finally:
        holder.close()


def _check_rest(digest: str, settings: EvalSettings | TextEvalSettings) -> None:
    if digest != settings.data:
        raise DataError(
            f"the files of {settings.suite} changed while they were read",
            todo="run it again when the files rest",
        )


def _fair(engine: EngineConfig, prompts: SuitePrompts) -> EngineConfig:
    """An engine that holds no more texts than a rank's share, so that all ranks have some.

    It takes as many again as it runs, which wait.
    """
    texts = sum(task.samples for task in prompts.tasks if task.kind == "generate")
    share = max(1, -(-texts // (2 * world_size())))
    return engine.model_copy(update={"max_running": min(engine.max_running, share)})


def _read_job(path: Path) -> RankJob:
    try:
        return RankJob.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"not the job of an evaluation: {error.errors()[0]['msg'].lower()}",
            where=str(path),
            todo="run the evaluation again, which writes it",
        ) from error
