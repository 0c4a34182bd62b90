"""bc2's inference engine at the work of each part."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from random import Random
from typing import Any

import torch
from torch import Tensor

from bc2.bench.generation.job import Job
from bc2.bench.generation.models import build_model
from bc2.bench.generation.outcome import Outcome, Pair
from bc2.bench.generation.work import ScoredQuestion
from bc2.generate.cache.paged_attention import PagedStep
from bc2.generate.engine import InferenceEngine
from bc2.generate.requests import Request, ScoreRequest
from bc2.generate.runner import ModelRunner
from bc2.generate.sampling_config import SamplingConfig

#: Prompts that are sampled from together, tokens of each, and tokens that are drawn for it:
#: with prompts this short nearly all steps choose tokens.
SAMPLED, SAMPLED_PROMPT, SAMPLED_TOKENS = 32, 1, 32

#: How tokens are chosen in the part `sampling`.
WAYS: dict[str, dict[str, Any]] = {
    "temperature": {},
    "top-k": {"top_k": 50},
    "top-p": {"top_p": 0.9},
    "top-k, top-p": {"top_k": 50, "top_p": 0.9},
}

#: Tokens of the prompt with siblings, if the model reads twice as many, and of each answer.
FAMILY_PROMPT, FAMILY_TOKENS = 512, 128

Answer = dict[str, Any]


class _Runner(ModelRunner):
    """Can wait for a GPU after each pass: else choosing tokens would, and be counted with it."""

    waits = False

    def next_logits(self, tokens: Tensor, step: PagedStep, rows: Tensor) -> tuple[Tensor, Tensor]:
        found = super().next_logits(tokens, step, rows)
        if self.waits and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return found


class Ours:
    """The engine, with nothing in its cache at the start of each measurement."""

    def __init__(self, job: Job):
        self.model = build_model(job)
        self.runner = _Runner(self.model)
        # No id ends an answer: `stop_ids` is empty everywhere.
        self.engine = InferenceEngine(self.runner, job.engine, eos_id=0)
        self.version = 0

    def decode(self, pairs: Sequence[Pair], size: int) -> Outcome:
        """Continue all prompts greedily; the engine decides how many at once, not `size`."""
        answers: list[list[int]] = [[] for _ in pairs]
        first: dict[int, float] = {}

        def note(index: int, _continuation: int, _token: int) -> None:
            if index not in first:
                first[index] = time.perf_counter()

        self._forget()
        began = time.perf_counter()
        requests = (Request(prompt, _greedy(new)) for prompt, new in pairs)
        for number, made in enumerate(self.engine.generate(requests, in_order=True, on_token=note)):
            answers[number] = made.continuations[0].ids
        seconds = time.perf_counter() - began
        return Outcome(seconds, [first[index] - began for index in range(len(pairs))], answers)

    def settle(self, pairs: Sequence[Pair]) -> Answer:
        """A greedy run, with what the settling of near ties took of it."""
        before = self.counters()
        made = self.decode(pairs, 0)
        return {"seconds": made.seconds, **self._since(before)}

    def score(self, questions: Sequence[ScoredQuestion], share: bool) -> Answer:
        """The log-probabilities of all choices; their sum shows that sharing changes none."""
        self._forget()
        before = self.counters()
        began = time.perf_counter()
        scores = list(self.engine.score(_score_requests(questions), share=share))
        seconds = time.perf_counter() - began
        total = sum(score.total for score in scores)
        facts = {"seconds": seconds, "log_probs": total, "requests": len(scores)}
        return {**facts, **self._since(before)}

    def sampling(self, way: str) -> Answer:
        """Short prompts continued in one of `WAYS`."""
        draw, vocab_size = Random(0), self.model.config.vocab_size
        requests = [
            Request(
                [draw.randrange(vocab_size) for _ in range(SAMPLED_PROMPT)],
                SamplingConfig(max_new_tokens=SAMPLED_TOKENS, stop_ids=(), seed=seed, **WAYS[way]),
            )
            for seed in range(SAMPLED)
        ]
        self.runner.waits = True
        try:
            return self._timed(requests)
        finally:
            self.runner.waits = False

    def family(self, n: int) -> Answer:
        """`n` continuations of one prompt."""
        config = self.model.config
        count = min(FAMILY_PROMPT, config.context_length // 2)
        draw = Random(1)
        prompt = [draw.randrange(config.vocab_size) for _ in range(count)]
        new = min(FAMILY_TOKENS, config.context_length - count)
        settings = SamplingConfig(max_new_tokens=new, n=n, stop_ids=())
        return {"prompt": count, **self._timed([Request(prompt, settings)])}

    def counters(self) -> dict[str, float]:
        """The engine's counters so far."""
        return asdict(self.engine.stats)

    def _timed(self, requests: Sequence[Request]) -> Answer:
        self._forget()
        before = self.counters()
        began = time.perf_counter()
        for _ in self.engine.generate(requests):
            pass
        return {"seconds": time.perf_counter() - began, **self._since(before)}

    def _since(self, before: dict[str, float]) -> dict[str, float]:
        return {name: value - before[name] for name, value in self.counters().items()}

    def _forget(self) -> None:
        """Empty the cache, as after a change of the weights: earlier rounds must not help."""
        self.version += 1
        self.engine.refresh(self.version)


def _greedy(new: int) -> SamplingConfig:
    return SamplingConfig(max_new_tokens=new, stop_ids=(), temperature=0.0)


def _score_requests(questions: Sequence[ScoredQuestion]) -> Iterator[ScoreRequest]:
    for question in questions:
        for choice in question.choices:
            yield ScoreRequest(question.context, choice)
