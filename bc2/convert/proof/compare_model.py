"""What two programs say of the same tokens: log-probabilities, perplexity, greedy continuations.

One runs after the other: what ours said is kept in files. Shapes: T tokens, V rows of the head.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bc2.convert.proof.bounds import Bounds
from bc2.convert.proof.consumer import ComputedModel
from bc2.errors import DataError, RunFailed
from bc2.tokenizer.tokenizer import Tokenizer

Array = npt.NDArray[np.float32]

#: The most numbers that a proof keeps on disk, and the most tokens that it reads.
KEPT, TOKENS = 64 << 20, 4096

#: Tokens of a text that is compared: more than that shows nothing new of positions.
_WINDOW = 1024

#: Tokens of each continuation.
GREEDY = 64

#: Tokens of the prompts that are continued.
_PROMPTS = (1, 8, 24, 64)

#: Numbers that are compared at once.
_AT_ONCE = 4 << 20


@dataclass(frozen=True)
class Questions:
    """Token ids that both are given."""

    windows: tuple[tuple[int, ...], ...]
    prompts: tuple[tuple[int, ...], ...]
    count: int
    """Tokens of a continuation."""

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        context: int,
        vocab_size: int,
        *,
        kept: int = KEPT,
        tokens: int = TOKENS,
    ) -> Questions:
        """As many as there is room for, none longer than the model's window.

        Args:
            kept: numbers of the program's answers.
            tokens: of all texts together.

        Raises:
            DataError: the texts have fewer than two tokens.
        """
        left = max(2, min(tokens, kept // vocab_size))
        longest = min(context, _WINDOW)
        windows = []
        for ids in _filled(texts, tokenizer, longest):
            windows.append(tuple(ids[:left]))
            left -= len(windows[-1])
            if left < 2:
                break
        if not windows:
            raise DataError("the text of the proof has fewer than two tokens", todo="give more")
        count = min(GREEDY, max(1, context // 2))
        room = context - count
        prompts = (
            window[:size]
            for window, size in zip(_around(windows, len(_PROMPTS)), _PROMPTS, strict=True)
        )
        return cls(tuple(windows), tuple(p[: max(1, room)] for p in prompts), count)


def _filled(texts: Sequence[str], tokenizer: Tokenizer, size: int) -> Iterator[list[int]]:
    """Whole texts one after the other, as far as a window goes."""
    held: list[int] = []
    for text in texts:
        held = [*held, *tokenizer.encode_whole(text)]
        if len(held) >= size:
            yield held[:size]
            held = []
    if len(held) > 1:
        yield held


def _around(windows: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    return [windows[n % len(windows)] for n in range(count)]


@dataclass(frozen=True)
class Said:
    """What a program said."""

    log_probs: list[Array]
    """[T, V] of each window."""
    greedy: list[list[int]]
    margins: list[list[float]] = field(default_factory=list)
    """How much likelier each token of a continuation is than the next likely one, in nats."""

    @classmethod
    def by(cls, model: ComputedModel, questions: Questions, *, margins: bool = False) -> Said:
        """Ask it everything.

        Raises:
            RunFailed: it fails, or says what is no number.
        """
        log_probs = [model.log_probs(ids) for ids in questions.windows]
        for ids, found in zip(questions.windows, log_probs, strict=True):
            _check_numbers(model.name, found, len(ids))
        greedy = [model.greedy(ids, questions.count) for ids in questions.prompts]
        held = [
            _margins(model, ids, said)
            for ids, said in zip(questions.prompts, greedy, strict=True)
            if margins
        ]
        return cls(log_probs, greedy, held)


def _check_numbers(name: str, found: Array, tokens: int) -> None:
    if len(found) != tokens:
        raise RunFailed(f"{name} gave {len(found)} rows of numbers for {tokens} tokens")
    if not all(np.isfinite(rows).all() for rows in _blocks(found)):
        raise RunFailed(f"{name} computes what is no number", todo="take an earlier checkpoint")


def _margins(model: ComputedModel, prompt: Sequence[int], said: Sequence[int]) -> list[float]:
    rows = model.log_probs([*prompt, *said])[len(prompt) - 1 : -1]
    two = np.partition(rows, -2, axis=1)[:, -2:]
    margins: list[float] = (two[:, 1] - two[:, 0]).astype(float).tolist()
    return margins


def _blocks(rows: Array) -> Iterator[Array]:
    step = max(1, _AT_ONCE // rows.shape[1])
    for first in range(0, len(rows), step):
        yield np.asarray(rows[first : first + step])


def compare(
    ours: Said,
    theirs: Said,
    questions: Questions,
    bounds: Bounds,
    ends: Collection[int],
    floor: float = -math.inf,
) -> tuple[dict[str, Any], list[str]]:
    """The numbers of a proof, and what is wrong in them.

    Args:
        ends: tokens at which a program may end a continuation.
        floor: the least log-probability that the program can tell.
    """
    widths = {found.shape[1] for found in (*ours.log_probs, *theirs.log_probs)}
    if len(widths) > 1:
        here, there = ours.log_probs[0].shape[1], theirs.log_probs[0].shape[1]
        return {}, [f"its vocabulary has {there:,} rows, and ours {here:,}"]
    largest, place = _largest_difference(ours, theirs, floor)
    one, other = (_perplexity(said, questions) for said in (ours, theirs))
    facts: dict[str, Any] = {
        "tokens": sum(map(len, questions.windows)),
        "largest_difference": largest,
        "difference_bound": bounds.logits,
        "perplexity_here": one,
        "perplexity_there": other,
        "perplexity_bound": bounds.perplexity,
    }
    problems = []
    if bounds.logits is not None and not largest <= bounds.logits:
        window, token, row = place
        problems.append(
            f"log-probabilities differ by {largest:.3g}, and {bounds.logits:g} is the bound (of "
            f"token {row} after {token + 1} tokens of text {window})"
        )
    if not abs(other / one - 1) <= bounds.perplexity:
        problems.append(f"its perplexity is {other:.6g}, and ours {one:.6g}")
    if bounds.logits is not None:
        found, wrong = _greedy(ours, theirs, questions, bounds.logits, ends)
        facts |= found
        problems += wrong
    return facts, problems


def _largest_difference(
    ours: Said, theirs: Said, floor: float
) -> tuple[float, tuple[int, int, int]]:
    """The largest difference, with the window, token and row of the head where it is."""
    largest, place = -1.0, (0, 0, 0)
    for window, pair in enumerate(zip(ours.log_probs, theirs.log_probs, strict=True)):
        first = 0
        for one, other in zip(*map(_blocks, pair), strict=True):
            found = np.abs(np.maximum(one, floor) - np.maximum(other, floor))
            at = int(found.argmax())
            if found.flat[at] > largest:
                token, row = divmod(at, found.shape[1])
                largest, place = float(found.flat[at]), (window, first + token, row)
            first += len(one)
    return largest, place


def _perplexity(said: Said, questions: Questions) -> float:
    total, count = 0.0, 0
    for found, ids in zip(said.log_probs, questions.windows, strict=True):
        labels = np.array(ids[1:])
        total += float(found[np.arange(len(labels)), labels].astype(np.float64).sum())
        count += len(labels)
    return math.exp(-total / count)


def _greedy(
    ours: Said, theirs: Said, questions: Questions, bound: float, ends: Collection[int]
) -> tuple[dict[str, Any], list[str]]:
    """Continuations are the same ones, but where two tokens are as likely within the bound."""
    same, ties = 0, []
    for number, (one, other) in enumerate(zip(ours.greedy, theirs.greedy, strict=True)):
        at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        if at is None and len(other) < len(one) and one[len(other)] not in ends:
            at = len(other)
        if at is None:
            same += len(other)
            continue
        same += at
        margin = ours.margins[number][at]
        said = f"token {at} after a prompt of {len(questions.prompts[number])}"
        if margin > 2 * bound:
            there = other[at] if at < len(other) else "the end"
            return {}, [f"{said} is {there}, and ours {one[at]}, which is {margin:.3g} likelier"]
        ties.append(f"{said}: two are as likely within {margin:.2g}")
    return {"greedy_tokens": same, "near_ties": ties}, []
