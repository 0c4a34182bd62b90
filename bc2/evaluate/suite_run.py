"""Evaluate a model in a suite: answer what is unanswered, judge, write what is registered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bc2.console import progress
from bc2.evaluate.answer_journal import AnswerJournal
from bc2.evaluate.answering import Answerer
from bc2.evaluate.generation_settings import Generation, generation_of
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.prompts import PromptFile, TaskPrompts
from bc2.evaluate.suite_prompts import SuitePrompts
from bc2.ranks import world_size

if TYPE_CHECKING:
    from bc2.sandbox.run import Sandbox

#: In a work folder: what ranks are told.
JOB = "job.json"


@dataclass
class SuiteRun:
    """One suite, one model, and how it is done."""

    prompts: SuitePrompts
    holder: ModelHolder
    start_ranks: Callable[[Path], None] | None = None
    """Starts ranks that answer what is in a work folder, and waits for them; None: this process
    answers."""
    sandbox: Sandbox | None = None
    """Where programs are run; needed by suites of programs."""
    model_seconds: float = 0.0
    """Spent in the model by this process."""
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def window(self) -> int:
        """Tokens of the model's context."""
        return self.holder.context_length

    def generations(self) -> dict[str, Generation]:
        """How each task's prompts are continued, where they are."""
        settings = self.prompts.settings
        return {
            task.task: generation_of(
                task.generation,
                self.window,
                samples=settings.samples,
                temperature=settings.temperature,
                eos_id=self.holder.tokenizer.eos_id,
            )
            for task in self.prompts.tasks
            if task.kind == "generate"
        }

    def answer(self, work: Path, claims: str) -> None:
        """Answer every unit of `work` that nobody has answered or taken."""
        tasks = self.prompts.tasks
        journal = AnswerJournal(work, claims)
        title = self.prompts.settings.suite
        total = sum(task.samples for task in tasks)
        with progress(title, total / world_size(), "samples") as bar:
            began, done = time.monotonic(), 0

            def advance(samples: int) -> None:
                nonlocal done
                done += samples
                bar(samples, _time_left(began, done, total / world_size()))

            answerer = Answerer(
                self.holder.engine, self.prompts.settings, journal, self.window,
                self.holder.prefix_id, advance,
            )  # fmt: skip
            files = read_ahead(self.prompts, [task for task in tasks if task.kind != "generate"])
            for task, file in files:
                answerer.score(task, file)
            generated = [task for task in tasks if task.kind == "generate"]
            answerer.generate(
                [(task, self.prompts.file(task)) for task in generated], self.generations()
            )
        self.model_seconds += self.holder.engine.stats.forward_s


def _time_left(began: float, done: float, total: float) -> str:
    spent = time.monotonic() - began
    if spent < 1 or not 0 < done < total:
        return ""
    minutes, seconds = divmod(int(spent * (total - done) / done), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"


def read_ahead(
    prompts: SuitePrompts, tasks: Sequence[TaskPrompts]
) -> Iterator[tuple[TaskPrompts, PromptFile]]:
    """The prompts of tasks, built on another thread while the model answers those before."""
    builder = ThreadPoolExecutor(1, thread_name_prefix="prompts")
    try:
        waiting = deque(builder.submit(prompts.file, task) for task in tasks[:_AHEAD])
        for at, task in enumerate(tasks):
            file = waiting.popleft().result()
            if at + _AHEAD < len(tasks):
                waiting.append(builder.submit(prompts.file, tasks[at + _AHEAD]))
            yield task, file
    finally:
        builder.shutdown(cancel_futures=True)


#: Tasks whose prompts are built ahead.
_AHEAD = 3
