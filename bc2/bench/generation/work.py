"""The work: prompts with lengths of answers, and questions to score. The same for all.

Lengths decide about speed, and a model with random weights has nothing to say anyway. So ids of
a tokenizer that are outside of the model's vocabulary are folded into it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from bc2.bench.generation.sources import Subject, read_mmlu, read_prompts
from bc2.errors import UsageError
from bc2.recipe import Settings

#: Tokens of a random prompt, and of an answer: the least and the most.
PROMPT_TOKENS = (10, 200)
ANSWER_TOKENS = (16, 512)

#: Examples before a question, and the choices that are scored after it.
SHOTS = 5
CHOICES = 4

#: Tokens of random examples, all of a subject together, and of a random question.
RANDOM_SHOTS = 1500
RANDOM_QUESTION = 100

Encode = Callable[[str], list[int]]


class ScoredQuestion(Settings):
    """A question and the choices whose log-probabilities are wanted after it."""

    context: list[int]
    choices: list[list[int]]


class Work(Settings):
    """What all contenders do."""

    prompts: list[list[int]]
    answers: list[int]
    """Tokens to add to each prompt."""
    questions: list[ScoredQuestion]
    shots: int
    """Examples before each question."""

    @property
    def pairs(self) -> list[tuple[list[int], int]]:
        """Each prompt with the tokens to add to it."""
        return list(zip(self.prompts, self.answers, strict=True))

    def facts(self) -> dict[str, int]:
        """Sizes that results are compared by."""
        return {
            "requests": len(self.prompts),
            "prompt_tokens": sum(map(len, self.prompts)),
            "answer_tokens": sum(self.answers),
            "score_requests": sum(len(question.choices) for question in self.questions),
            "score_tokens": sum(
                len(question.context) + len(choice)
                for question in self.questions
                for choice in question.choices
            ),
            "shots": self.shots,
        }


def make_work(
    *, vocab_size: int, context_length: int, requests: int, seed: int, prompts: Path | None,
    mmlu: Path | None, subjects: int, questions: int, encode: Encode | None,
) -> Work:  # fmt: skip
    """Read or draw the work.

    Args:
        prompts: see `read_prompts`; None draws random ids.
        mmlu: see `read_mmlu`; None draws random ids.
        encode: of a tokenizer; None takes bytes for ids.

    Raises:
        DataError: a file is not as it should be.
        UsageError: the work does not fit into the model's context.
    """
    draw = random.Random(seed)

    def ids(text: str) -> list[int]:
        return [i % vocab_size for i in (encode(text) if encode else text.encode())]

    if prompts is None:
        asked = [_drawn(draw, vocab_size, draw.randint(*PROMPT_TOKENS)) for _ in range(requests)]
    else:
        asked = [ids(text) for text in read_prompts(prompts, requests)]
    answers = [draw.randint(*ANSWER_TOKENS) for _ in asked]
    longest = max(len(ids) + new for ids, new in zip(asked, answers, strict=True))
    if longest > context_length:
        raise UsageError(
            f"a prompt with its answer has {longest} tokens, and the model reads {context_length}",
            todo="raise model.context_length, or give shorter prompts",
        )
    if mmlu is None:
        scored, shots = _random_questions(draw, vocab_size, context_length, subjects, questions)
    else:
        scored, shots = _real_questions(read_mmlu(mmlu, subjects, questions), ids, context_length)
    return Work(prompts=asked, answers=answers, questions=scored, shots=shots)


def _drawn(draw: random.Random, vocab_size: int, count: int) -> list[int]:
    return [draw.randrange(vocab_size) for _ in range(count)]


def _random_questions(
    draw: random.Random, vocab_size: int, context_length: int, subjects: int, questions: int
) -> tuple[list[ScoredQuestion], int]:
    found = []
    shots = min(RANDOM_SHOTS, context_length - RANDOM_QUESTION - 1)
    if shots <= 0:
        raise UsageError(
            f"no question fits into a context of {context_length} tokens",
            todo=f"raise model.context_length above {RANDOM_QUESTION}",
        )
    for _ in range(subjects):
        prefix = _drawn(draw, vocab_size, shots)
        for _ in range(questions):
            choices = [[i] for i in _drawn(draw, vocab_size, CHOICES)]
            context = prefix + _drawn(draw, vocab_size, RANDOM_QUESTION)
            found.append(ScoredQuestion(context=context, choices=choices))
    return found, SHOTS


def _real_questions(
    subjects: Sequence[Subject], ids: Encode, context_length: int
) -> tuple[list[ScoredQuestion], int]:
    """With as many examples as fit before every question, five at most."""
    for shots in range(SHOTS, -1, -1):
        contexts = [
            ids(subject.header + "".join(subject.examples[:shots]) + question)
            for subject in subjects
            for question in subject.questions
        ]
        if max(map(len, contexts)) < context_length:
            # Letters alone: the last of the ids, whatever a tokenizer puts before them.
            choices = [ids(f" {letter}")[-1:] for letter in "ABCD"]
            found = [ScoredQuestion(context=each, choices=choices) for each in contexts]
            return found, shots
    raise UsageError(
        f"the questions do not fit into a context of {context_length} tokens",
        todo="raise model.context_length, or give --tokenizer",
    )
