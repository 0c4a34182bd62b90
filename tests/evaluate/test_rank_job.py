"""Ranks answer together what one process answers alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest

from bc2.errors import DataError
from bc2.evaluate.answer_journal import Answered, AnswerJournal, units_of
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.rank_job import RankJob, answer_as_rank, start_ranks
from bc2.evaluate.suite_prompts import SuitePrompts
from bc2.evaluate.suite_run import SuiteRun
from bc2.generate.engine_config import EngineConfig
from bc2.model.transformer import Transformer
from bc2.registry import Registry
from bc2.tokenizer.tokenizer import Tokenizer


def answers(prompts: SuitePrompts, work: Path) -> dict[Any, Answered]:
    journal = AnswerJournal(work, "reading")
    return {
        (unit.name, doc): one
        for task in prompts.tasks
        for unit in units_of(task)
        for doc, one in journal.read(unit).items()
    }


@pytest.mark.parametrize("suite", ["jecqa", "gsm8k"])
def test_several_ranks_give_the_answers_of_one(
    make_prompts: Any, holder: ModelHolder, registry: Registry, releases: Path, tmp_path: Path,
    suite: str,
) -> None:  # fmt: skip
    prompts = make_prompts(suite)
    SuiteRun(prompts, holder).answer_all(tmp_path / "one")
    work = tmp_path / "several"
    work.mkdir()

    def launch(folder: Path) -> None:
        answer_as_rank(registry, folder)
        answer_as_rank(registry, folder)  # finds nothing left

    def start(*told: Any) -> None:
        start_ranks(holder, releases, prompts.kept_in, launch, *told)

    SuiteRun(prompts, holder, start).answer_all(work)
    assert answers(prompts, work) == answers(prompts, tmp_path / "one") != {}


def test_ranks_answer_chats(
    make_prompts: Any, made_model: Transformer, made_tokenizer: Tokenizer, registry: Registry,
    releases: Path, tmp_path: Path,
) -> None:  # fmt: skip
    layout = {"chat.json": b'{"layout": "baichuan"}'}
    artifact = made_checkpoints.register(
        registry.home, "talks", made_model, tokenizer=made_tokenizer.model, files=layout
    )
    holder = ModelHolder.on(artifact, "cpu", "fp32", EngineConfig(cache_bytes=1 << 22))
    holder.use_layout()
    plain = make_prompts("jecqa", limit=2, apply_chat_template=True)
    prompts = replace(plain, chat=holder.chat)
    SuiteRun(prompts, holder).answer_all(tmp_path / "one")
    SuiteRun(make_prompts("jecqa", limit=2), holder).answer_all(tmp_path / "plain")
    work = tmp_path / "several"
    work.mkdir()

    def start(*told: Any) -> None:
        launch = partial(answer_as_rank, registry)
        start_ranks(holder, releases, prompts.kept_in, launch, *told)

    SuiteRun(prompts, holder, start).answer_all(work)
    found = answers(prompts, work)
    assert found == answers(prompts, tmp_path / "one") != answers(prompts, tmp_path / "plain")
    holder.close()


def test_a_rank_leaves_texts_for_the_others(
    make_prompts: Any, holder: ModelHolder, registry: Registry, releases: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The first one begins before the others, and takes what it needs before its first step."""
    prompts = make_prompts("bbh", limit=2)
    kept_in = prompts.kept_in
    start_ranks(holder, releases, kept_in, lambda work: None, prompts.settings, tmp_path, "claims")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bc2.evaluate.answer_journal._write_all", stopped)
    with pytest.raises(KeyboardInterrupt):
        answer_as_rank(registry, tmp_path)
    assert sum(task.samples for task in prompts.tasks) == 2 * 27
    assert len(list((tmp_path / "claims").iterdir())) == 27 // 3


def test_a_job_says_all_that_a_rank_must_know(
    make_prompts: Any, holder: ModelHolder, releases: Path, tmp_path: Path
) -> None:
    prompts = make_prompts("jecqa", limit=1, seed=9)
    started: list[Path] = []
    start_ranks(
        holder, releases, prompts.kept_in, started.append, prompts.settings, tmp_path, "claims-1"
    )
    assert started == [tmp_path]
    job = RankJob.model_validate_json((tmp_path / "job.json").read_bytes())
    assert job == RankJob(
        settings=prompts.settings, folder=releases, kept_in=prompts.kept_in,
        checkpoint=holder.artifact.digest, device="cpu", engine=holder.config, claims="claims-1",
    )  # fmt: skip


def test_files_that_change_meanwhile(
    make_prompts: Any, holder: ModelHolder, registry: Registry, releases: Path, tmp_path: Path
) -> None:
    prompts = make_prompts("jecqa")
    changed = prompts.settings.model_copy(update={"data": "0" * 64})
    kept_in = prompts.kept_in
    start_ranks(holder, releases, kept_in, lambda work: None, changed, tmp_path, "claims")
    with pytest.raises(DataError, match="the files of jecqa changed while they were read"):
        answer_as_rank(registry, tmp_path)
    assert not (tmp_path / "answers").exists()


@pytest.mark.parametrize("damaged", [b"", b"{", b"{}", b"\xff", b'{"settings": 1}'])
def test_a_damaged_job(registry: Registry, tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "job.json").write_bytes(damaged)
    with pytest.raises(DataError, match="not the job of an evaluation") as info:
        answer_as_rank(registry, tmp_path)
    assert info.value.where == str(tmp_path / "job.json")
