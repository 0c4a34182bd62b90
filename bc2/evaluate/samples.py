"""What a model answered to one question of a benchmark, and how the answer was judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the model answered to one request of a sample."""

    log_prob: float | None = None
    """Of the continuation, nats; None if the request is a generation."""
    greedy: bool | None = None
    """Whether greedy decoding would have given the continuation."""
    text: str | None = None
    """What was generated; None if the request is a scoring."""
    cut: int = 0
    """Tokens cut from the left of the prompt."""
    new_tokens: int = 0
    """Tokens that were generated."""
    met_limit: bool = False
    """Whether generation ended at the length limit."""


@dataclass(frozen=True)
class Sample:
    """One question of a benchmark with all answers to it."""

    suite: str
    task: str
    """lm-eval's task, as a rule one subject of the suite."""
    doc_id: int
    doc: Mapping[str, Any]
    """The row."""
    prompt: str | None
    """Of the first request; None if prompts are not kept."""
    prompt_digest: str
    """Hex SHA-256 of the prompt's UTF-8."""
    target: Any
    answers: tuple[Answer, ...]
    """One a request, in the order of the requests; the repeats of one stand together."""
    filtered: Mapping[str, list[Any]]
    """Filter name -> filtered responses, one a request, as lm-eval."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Filter name -> metric -> value, as lm-eval's process_results."""
