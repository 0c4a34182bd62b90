"""One suite made ready for a tokenizer: its rows, lm-eval's tasks when needed, its prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.console import note
from bc2.evaluate.eval_settings import EvalSettings
from bc2.evaluate.prompt_store import PromptStore
from bc2.evaluate.prompts import Prompt, PromptFile, TaskPrompts
from bc2.files import sha256_json
from bc2.harness.release import Release, open_release
from bc2.harness.suites import Suite
from bc2.tokenizer.chat_file import chat_bytes

if TYPE_CHECKING:
    from bc2.evaluate.encoding import PromptEncoder
    from bc2.harness.load import LoadedSuite
    from bc2.harness.questions import ChatForm
    from bc2.tokenizer.chat import Chat
    from bc2.tokenizer.tokenizer import Tokenizer

#: Raised when the same rows, shots, seed and tokenizer would give other stored prompts.
PROMPTS_VERSION = 2


@dataclass(frozen=True)
class SuiteRows:
    """A suite and the rows that it is evaluated on."""

    suite: Suite
    release: Release | None
    """None: lm-eval reads its own data."""

    @classmethod
    def open(cls, suite: Suite, folder: Path | None, *, say: bool = True) -> SuiteRows:
        """Read the rows, and say in what they are not the known ones.

        Raises:
            DataError: there are none, or some are wrong; nothing slow was done before.
        """
        if suite.source is None:
            return cls(suite, None)
        release = open_release(suite.source, folder)
        for difference in release.differences if say else ():
            note(f"{suite.name}: {difference}")
        return cls(suite, release)

    def digest(self, shots: int | None) -> str:
        """Of the rows; where lm-eval reads its own data, of what it was given for so many shots."""
        if self.release is not None:
            return self.release.digest
        from bc2.harness.hub_rows import rows_digest

        return rows_digest(self.load(shots, 0))

    def load(self, shots: int | None, seed: int) -> LoadedSuite:
        """lm-eval's tasks with these rows."""
        from bc2.harness.load import load_suite

        datasets = self.release.datasets if self.release is not None else None
        return load_suite(self.suite, datasets, shots=shots, seed=seed)


@dataclass(frozen=True)
class SuitePrompts:
    """The prompts of a suite for a tokenizer."""

    rows: SuiteRows
    settings: EvalSettings
    tokenizer: Tokenizer
    kept_in: Path
    """Where prompts of all suites and tokenizers are stored."""
    chat: Chat | None = None
    """The layout that prompts are chats in, where the settings say so."""

    @cached_property
    def loaded(self) -> LoadedSuite:
        """lm-eval's tasks; loaded when they are needed."""
        return self.rows.load(self.settings.shots, self.settings.seed)

    @cached_property
    def store(self) -> PromptStore:
        """Where the prompts are kept for all models with this tokenizer."""
        kept = self.settings.model_dump(
            include={"suite", "shots", "seed", "data", "harness", "prompts_version"}
        )
        if self.chat is not None:
            layout = hashlib.sha256(chat_bytes(self.chat)).hexdigest()
            kept |= {"layout": layout, "multiturn": self.settings.fewshot_as_multiturn}
        return PromptStore(self.kept_in / sha256_json({**kept, "tokenizer": self.tokenizer.digest}))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What is recorded of each task: kind, samples, generation, repeats, hash and version."""
        facts = self.store.facts()
        if facts is None:
            facts = _facts_of(self.loaded)
            self.store.record(facts)
        return facts

    @cached_property
    def tasks(self) -> list[TaskPrompts]:
        """The tasks with the samples that are asked, in lm-eval's order."""
        limit = self.settings.limit
        return [
            TaskPrompts(
                name,
                task["kind"],
                task["samples"] if limit is None else min(limit, task["samples"]),
                task["generation"],
                task["repeats"],
            )
            for name, task in self.facts["tasks"].items()
        ]

    def file(self, prompts: TaskPrompts) -> PromptFile:
        """The prompts of a task; built if they are not stored."""
        return self.store.obtain(prompts, lambda: self._build(prompts))

    def _build(self, prompts: TaskPrompts) -> Iterator[Prompt]:
        from bc2.evaluate.prompt_builder import build_prompts

        encoder, chat = self._encoder()
        task = self.loaded.tasks[prompts.task]
        return build_prompts(task, encoder, prompts.samples, self.settings.seed, chat)

    def _encoder(self) -> tuple[PromptEncoder, ChatForm | None]:
        """What encodes prompts, and how they become chats if they do."""
        from bc2.evaluate.chat_encoding import ChatPromptEncoder
        from bc2.evaluate.encoding import PromptEncoder, prefix_id
        from bc2.harness.questions import ChatForm

        first = prefix_id(self.tokenizer)
        if self.chat is None:
            return PromptEncoder(self.tokenizer, prefix_id=first), None
        encoder = ChatPromptEncoder(self.chat, prefix_id=first)
        return encoder, ChatForm(encoder.template, self.settings.fewshot_as_multiturn)


def _facts_of(loaded: LoadedSuite) -> dict[str, Any]:
    from bc2.evaluate.prompt_builder import kind_of
    from bc2.harness.task_hash import task_hash

    return {
        "tasks": {
            name: {
                "kind": kind_of(task),
                "samples": len(task.eval_docs),
                "generation": task.config.generation_kwargs or {},
                "repeats": task.config.repeats,
                "hash": task_hash(task),
                "version": task.VERSION,
            }
            for name, task in loaded.tasks.items()
        }
    }
