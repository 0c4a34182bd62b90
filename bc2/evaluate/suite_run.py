"""Answer a suite's prompts: in this process, or in ranks that share a work folder."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bc2.console import note, progress
from bc2.errors import DataError
from bc2.evaluate.answer_journal import AnswerJournal, units_of
from bc2.evaluate.answering import Answerer
from bc2.evaluate.encoding import prefix_id
from bc2.evaluate.eval_settings import EvalSettings
from bc2.evaluate.generation_settings import Generation, generation_of
from bc2.evaluate.judging import Verdicts
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.prompts import PromptFile, TaskPrompts
from bc2.evaluate.suite_prompts import SuitePrompts
from bc2.ranks import world_size

#: Tasks whose prompts are built ahead.
_AHEAD = 3


@dataclass
class SuiteRun:
    """One suite and one model, and how its prompts are answered and judged."""

    prompts: SuitePrompts
    holder: ModelHolder
    start_ranks: Callable[[EvalSettings, Path, str], None] | None = None
    """Starts ranks that answer into a work folder, given the name of their claims, and waits for
    them; None: this process answers."""
    verdicts: Callable[[Path], Verdicts] | None = None
    """How programs are judged, with what was found so far kept in a work folder; needed by suites
    of programs."""
    model_seconds: float | None = None
    """Spent in the model by this process; None if it answered nothing."""

    def answer_all(self, work: Path) -> AnswerJournal:
        """Answer what is unanswered in a work folder."""
        claims = f"claims-{uuid.uuid4().hex}"
        journal = AnswerJournal(work, claims)
        units = [unit for task in self.prompts.tasks for unit in units_of(task)]
        samples = sum(unit.last - unit.first for unit in units)
        done = sum(len(journal.read(unit)) for unit in units)
        if done:
            note(f"going on: {done:,} of {samples:,} samples are answered already")
        if done == samples:
            return journal
        self._say_generation()
        if self.start_ranks is not None:
            self.start_ranks(self.prompts.settings, work, claims)
        else:
            self.answer(journal)
        return journal

    def answer(self, journal: AnswerJournal) -> None:
        """Answer every unit that nobody has answered or taken."""
        total = sum(task.samples for task in self.prompts.tasks) / world_size()
        with progress(self.prompts.settings.suite, total, "samples") as bar:
            clock = _TimeLeft(total)

            def advance(samples: int, now: bool) -> None:
                # What was answered before every rank finds.
                share = samples if now else samples / world_size()
                bar(share, clock.after(share, now=now))

            answerer = Answerer(
                self.holder.engine,
                self.prompts.settings,
                journal,
                self.holder.window,
                prefix_id(self.holder.tokenizer),
                advance,
            )
            tasks = self.prompts.tasks
            scored = [task for task in tasks if task.kind != "generate"]
            with closing(read_ahead(self.prompts, scored)) as ready:
                for task, file in ready:
                    answerer.score(task, file)
            generated = [task for task in tasks if task.kind == "generate"]
            with closing(read_ahead(self.prompts, generated)) as ready:
                answerer.generate(ready, self.generations())
        self.model_seconds = self.holder.seconds_since_last()

    def generations(self) -> dict[str, Generation]:
        """By task, how its prompts are continued, where they are."""
        return {
            task.task: self._generation(task)
            for task in self.prompts.tasks
            if task.kind == "generate"
        }

    def _generation(self, task: TaskPrompts) -> Generation:
        settings, defaults, chat = self.prompts.settings, self.holder.defaults, self.prompts.chat
        return generation_of(
            task.generation,
            self.holder.window,
            self.holder.tokenizer,
            samples=max(settings.samples, task.repeats),
            temperature=settings.temperature,
            end_ids=(*(chat.end_ids if chat is not None else ()), *defaults.end_ids),
            repetition_penalty=defaults.repetition_penalty or 1.0,
        )

    def _say_generation(self) -> None:
        """Say of which tasks the answers are shortened to the window."""
        shortened = [
            (task, made) for task, made in self.generations().items()
            if made.sampling.max_new_tokens < made.wanted_tokens
        ]  # fmt: skip
        if shortened:
            task, made = shortened[0]
            more = f" and {len(shortened) - 1} more tasks" if len(shortened) > 1 else ""
            note(
                f"{task}{more} would generate {made.wanted_tokens:,} tokens; the window of "
                f"{self.holder.window:,} leaves {made.sampling.max_new_tokens:,}"
            )

    def check_window(self) -> None:
        """Say how many questions the window does not hold, even without shots.

        Raises:
            DataError: it holds none: then nothing was measured.
        """
        suite, window = self.prompts.settings.suite, self.holder.window
        generations = self.generations()
        sizes: list[int] = []
        long = 0
        for task in self.prompts.tasks:
            made = generations.get(task.task)
            # The last token is predicted and not read; answers that are generated have their room.
            room = window - 1 if made is None else made.prompt_tokens
            heads = self.prompts.file(task).heads()
            own = [tokens for doc_id, _, tokens in heads if doc_id < task.samples]
            long += sum(tokens > room for tokens in own)
            sizes += own
        answers = " beside the answer" if generations else ""
        if long and long == len(sizes):
            raise DataError(
                f"the model's window of {window:,} tokens holds no question of {suite}{answers}: "
                f"the shortest has {min(sizes):,}",
                todo="take a model with a longer context",
            )
        if long:
            note(
                f"{suite}: {long:,} of {len(sizes):,} questions are more than the window of "
                f"{window:,} tokens holds{answers}, and were cut themselves"
            )


class _TimeLeft:
    """Says how long the rest will take at the pace so far."""

    def __init__(self, total: float):
        self._began = time.monotonic()
        self._total = total
        self._done = 0.0

    def after(self, samples: float, *, now: bool) -> str:
        """The time left after so many more samples; "" where it is not known yet.

        Args:
            now: whether they took time; else they were answered before.
        """
        if now:
            self._done += samples
        else:
            self._total -= samples
        spent = time.monotonic() - self._began
        if spent < 1 or not 0 < self._done < self._total:
            return ""
        minutes, seconds = divmod(round(spent * (self._total / self._done - 1)), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"


def read_ahead(
    prompts: SuitePrompts, tasks: Sequence[TaskPrompts]
) -> Generator[tuple[TaskPrompts, PromptFile]]:
    """The prompts of tasks, built on another thread while the model answers those before.

    Close it: what is not built yet never is then.
    """
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
