"""Answer a suite's prompts with the engine, unit by unit, into the journal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bc2.errors import RunFailed
from bc2.evaluate.answer_journal import Answered, AnswerJournal, Unit, units_of
from bc2.evaluate.eval_settings import EvalSettings
from bc2.evaluate.generation_settings import Generation
from bc2.evaluate.prompts import Prompt, PromptFile, TaskPrompts
from bc2.evaluate.samples import Answer
from bc2.generate.engine import InferenceEngine
from bc2.generate.requests import Generated, Request, Score, ScoreRequest
from bc2.generate.sampling.seeds import prompt_seed

#: Called with a number of samples, and whether they are answered now or were before.
Advance = Callable[[int, bool], None]


@dataclass
class Answerer:
    """Answers prompts of one suite.

    Args:
        prefix_id: the token before a text that has no context.
        window: tokens of the model's context.
        journal: where the answers go.
        advance: told of samples as they are answered, and of those that are found answered.
    """

    engine: InferenceEngine
    settings: EvalSettings
    journal: AnswerJournal
    window: int
    prefix_id: int
    advance: Advance = field(default=lambda samples, now: None)

    def score(self, prompts: TaskPrompts, file: PromptFile) -> None:
        """Score every unit of a task that nobody has answered or taken."""
        for unit in units_of(prompts):
            if self.journal.is_done(unit):
                self.advance(unit.last - unit.first, False)
            elif self.journal.claim(unit):
                self.journal.write(unit, self._scored(unit, file.read(unit.first, unit.last)))
                self.advance(unit.last - unit.first, True)

    def generate(
        self,
        tasks: Iterable[tuple[TaskPrompts, PromptFile]],
        generations: Mapping[str, Generation],
    ) -> None:
        """Continue the prompts of tasks as one stream, so that no batch waits for its slowest.

        Raises:
            RunFailed: the model's logits are not numbers; the sample is named.
        """
        asked: dict[int, _Asked] = {}
        requests = self._requests(tasks, generations, asked)
        try:
            for made in self.engine.generate(requests, in_order=False):
                one = asked.pop(made.index)
                with self.journal.appending(one.unit) as append:
                    append(Answered(one.doc_id, _texts(made, one.cut)))
                self.advance(1, True)
        except RunFailed as error:
            self._name_failing([one.request for one in asked.values()])
            raise error

    def _name_failing(self, requests: Sequence[Request]) -> None:
        """Ask again for halves of what was asked together, and name the sample that fails."""
        while len(requests) > 1:
            half = len(requests) // 2
            fails = self._failure(requests[:half]) is not None
            requests = requests[:half] if fails else requests[half:]
        error = self._failure(requests)
        if error is not None:
            raise RunFailed(error.what, where=requests[0].where, todo=error.todo) from error

    def _failure(self, requests: Sequence[Request]) -> RunFailed | None:
        try:
            for _ in self.engine.generate(requests):
                pass
        except RunFailed as error:
            return error
        return None

    def _requests(
        self,
        tasks: Iterable[tuple[TaskPrompts, PromptFile]],
        generations: Mapping[str, Generation],
        asked: dict[int, _Asked],
    ) -> Iterator[Request]:
        """The requests of all units that nobody has answered or taken, as they are needed.

        Args:
            asked: takes what each request is about, by its number.
        """
        number = 0
        for prompts, file in tasks:
            for unit in units_of(prompts):
                done = self.journal.read(unit)
                self.advance(len(done), False)
                if len(done) == unit.last - unit.first or not self.journal.claim(unit):
                    continue
                for prompt in file.read(unit.first, unit.last):
                    if prompt.doc_id in done:
                        continue
                    one = self._request(unit, prompt, generations[prompts.task])
                    asked[number] = one
                    number += 1
                    yield one.request

    def _request(self, unit: Unit, prompt: Prompt, generation: Generation) -> _Asked:
        ids = list(prompt.contexts[0]) or [self.prefix_id]
        cut = max(0, len(ids) - generation.prompt_tokens)
        where = f"{unit.task}:{prompt.doc_id}"
        seed = prompt_seed(self.settings.seed, _number(where))
        sampling = generation.sampling.model_copy(update={"seed": seed})
        return _Asked(unit, prompt.doc_id, cut, Request(ids[cut:], sampling, where))

    def _scored(self, unit: Unit, prompts: Sequence[Prompt]) -> list[Answered]:
        try:
            return self._scored_together(unit, prompts)
        except RunFailed as error:
            if len(prompts) == 1:
                raise RunFailed(
                    error.what, where=f"{unit.task}:{prompts[0].doc_id}", todo=error.todo
                ) from error
            # Name the sample that failed.
            for prompt in prompts:
                self._scored(unit, [prompt])
            raise

    def _scored_together(self, unit: Unit, prompts: Sequence[Prompt]) -> list[Answered]:
        requests, sizes = [], []
        for prompt in prompts:
            asked = list(self._asked(unit, prompt))
            sizes.append([len(windows) for windows in asked])
            requests += [request for windows in asked for request in windows]
        scores = self.engine.score(requests, cut=True)
        answered = []
        for prompt, windows in zip(prompts, sizes, strict=True):
            totals = [_total([next(scores) for _ in range(size)]) for size in windows]
            # Of a whole text nobody asks whether it is what greedy decoding would write.
            if not prompt.contexts[0]:
                totals = [replace(one, greedy=None) for one in totals]
            answers = tuple(totals)
            answered.append(Answered(prompt.doc_id, answers))
        assert next(scores, None) is None
        return answered

    def _asked(self, unit: Unit, prompt: Prompt) -> Iterator[list[ScoreRequest]]:
        """For each request of a sample the texts to score, one unless it is a whole text."""
        where = f"{unit.task}:{prompt.doc_id}"
        for context, continuation in prompt.asked:
            ids = prompt.contexts[context]
            if ids:
                yield [ScoreRequest(ids, continuation, where)]
            else:
                pairs = disjoint_windows(continuation, self.window, self.prefix_id)
                yield [ScoreRequest(before, part, where) for before, part in pairs]


@dataclass(frozen=True)
class _Asked:
    """A sample whose prompt was submitted."""

    unit: Unit
    doc_id: int
    cut: int
    request: Request


def disjoint_windows(
    ids: Sequence[int], window: int, prefix_id: int
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """A whole text in parts of a window, as in lm-eval.

    Each comes after the one token before it, and the last, which is shorter, after as many as fit.
    """
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        first = start + len(part) - window - 1
        yield ids[first:start] if start else [prefix_id], part


def _total(scores: Sequence[Score]) -> Answer:
    return Answer(
        log_prob=sum(score.total for score in scores),
        greedy=all(score.all_greedy for score in scores),
        cut=sum(score.cut for score in scores),
    )


def _texts(made: Generated, cut: int) -> tuple[Answer, ...]:
    return tuple(
        Answer(
            text=(one.data or b"").decode("utf-8", "replace"),
            cut=cut,
            new_tokens=len(one.ids),
            met_limit=one.finish_reason == "length",
        )
        for one in made.continuations
    )


def _number(where: str) -> int:
    """A number of a sample that does not depend on what else is asked; never 0."""
    return int.from_bytes(hashlib.sha256(where.encode()).digest()[:6], "little") + 1
