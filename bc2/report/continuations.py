"""What a model made of prompts, as JSON data and for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bc2.console import table

if TYPE_CHECKING:
    from bc2.generate.requests import Continuation, Generated, Request, TokenLogProb
    from bc2.tokenizer.tokenizer import Tokenizer


def text_of(made: Continuation) -> str:
    """The text of a continuation, with U+FFFD for bytes that are not UTF-8."""
    return (made.data or b"").decode("utf-8", "replace")


def answer_row(answer: Generated, tokenizer: Tokenizer) -> dict[str, Any]:
    """The answer to a `PromptRequest` as JSON data.

    Its fields are those of the first continuation; where there are several, all are in
    `continuations`.
    """
    rows = [_row(made, tokenizer) for made in answer.continuations]
    row = {"index": answer.index, "prompt": _prompt_of(answer), **rows[0]}
    return {**row, "continuations": rows} if len(rows) > 1 else row


def shown_answer(answer: Generated, tokenizer: Tokenizer) -> list[Any]:
    """The answer to a `PromptRequest` for people: texts and tables, one below the other."""
    prompt = shown_prompt(answer.request)
    shown: list[Any] = []
    every = answer.continuations
    for number, made in enumerate(every, 1):
        if len(every) > 1:
            tokens = f"{len(made.ids)} {'token' if len(made.ids) == 1 else 'tokens'}"
            how = f"{tokens}, {finish_reason(made, tokenizer.eos_id)}"
            shown.append(f"[prompt {answer.index}, {number} of {len(every)}: {how}]")
        shown += [prompt + text_of(made), *log_prob_tables(made, tokenizer)]
    return shown


def _prompt_of(answer: Generated) -> str:
    from bc2.generate.prompts import PromptRequest

    assert isinstance(answer.request, PromptRequest)
    return answer.request.text


def shown_prompt(request: Request) -> str:
    """A prompt as people see it before what is made of it."""
    from bc2.generate.prompts import PromptRequest

    assert isinstance(request, PromptRequest)
    return request.text + request.between


def finish_reason(made: Continuation, eos_id: int) -> str:
    """Why it ended: eos, stop_id, stop or length."""
    return "eos" if made.stop_id == eos_id else made.finish_reason


def log_prob_tables(made: Continuation, tokenizer: Tokenizer) -> list[Any]:
    """A table of the tokens' log-probabilities; none where they were not asked for."""
    if made.log_probs is None:
        return []
    tokens = list(zip(made.ids, made.log_probs, strict=True))
    if made.stop_id is not None and made.end_log_prob is not None:
        tokens.append((made.stop_id, made.end_log_prob))
    alternatives = any(number.top for _, number in tokens)
    columns = ("token", "id", "log p", "drawn", *(("likeliest",) if alternatives else ()))
    rows = [
        (
            _visible(token, tokenizer),
            str(token),
            f"{number.raw:.4f}",
            f"{number.drawn:.4f}",
            *((_likeliest(number, tokenizer),) if alternatives else ()),
        )
        for token, number in tokens
    ]
    return [table(columns, rows)] if rows else []


def _likeliest(number: TokenLogProb, tokenizer: Tokenizer) -> str:
    return "  ".join(f"{_visible(token, tokenizer)} {value:.2f}" for token, value in number.top)


def _visible(token: int, tokenizer: Tokenizer) -> str:
    """A piece on one line: control characters as JSON writes them."""
    return json.dumps(tokenizer.shown_piece(token), ensure_ascii=False)[1:-1]


def _row(made: Continuation, tokenizer: Tokenizer) -> dict[str, Any]:
    row: dict[str, Any] = {
        "text": text_of(made),
        "tokens": len(made.ids),
        "finish_reason": finish_reason(made, tokenizer.eos_id),
    }
    if made.log_probs is not None:
        pairs = zip(made.ids, made.log_probs, strict=True)
        row["log_probs"] = [_log_prob(token, number, tokenizer) for token, number in pairs]
        row["end_log_prob"] = None
        if made.stop_id is not None and made.end_log_prob is not None:
            row["end_log_prob"] = _log_prob(made.stop_id, made.end_log_prob, tokenizer)
    return row


def _log_prob(token: int, number: TokenLogProb, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "id": token,
        "piece": tokenizer.shown_piece(token),
        "raw": number.raw,
        "drawn": number.drawn,
        "top": [
            {"id": other, "piece": tokenizer.shown_piece(other), "raw": value}
            for other, value in number.top
        ],
    }
