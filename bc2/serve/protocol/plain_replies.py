"""Replies that are of no stream: scores of texts, and what a tokenizer makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bc2.generate.requests import Score
from bc2.serve.protocol.log_probs import TokenText, finite, shown
from bc2.serve.protocol.pieces import Usage


def scores_reply(
    continuations: Sequence[Sequence[int]],
    scores: Sequence[Score],
    usage: Usage,
    *,
    model: str,
    id: str,
    created: int,
    token_text: TokenText,
) -> dict[str, Any]:
    """The reply to ``/v1/score``.

    Args:
        continuations: their token ids.
        scores: of each.
        model, id, created, token_text: see `bc2.serve.protocol.replies.Reply`.
    """
    each = zip(continuations, scores, strict=True)
    made = [
        {"index": index, **_score(ids, score, token_text)}
        for index, (ids, score) in enumerate(each)
    ]
    head = {"id": id, "object": "score", "created": created, "model": model}
    return {**head, "scores": made, "usage": usage.to_json()}


def _score(ids: Sequence[int], score: Score, token_text: TokenText) -> dict[str, Any]:
    top = [
        [
            {"token": shown(token_text(token)), "token_id": token, "logprob": finite(value)}
            for token, value in likeliest
        ]
        for likeliest in score.top
    ]
    return {
        "log_prob": sum(map(finite, score.log_probs)),
        "greedy": score.all_greedy,
        "tokens": [shown(token_text(token)) for token in ids],
        "token_ids": list(ids),
        "token_logprobs": [finite(value) for value in score.log_probs],
        "token_greedy": list(score.greedy),
        **({"top_logprobs": top} if top else {}),
        "cut": score.cut,
    }


def tokenize_reply(
    ids: Sequence[int], window: int, token_text: TokenText | None = None
) -> dict[str, Any]:
    """The reply to ``/tokenize``, as vLLM has it, which lm-eval reads.

    Args:
        window: the most tokens that the model reads.
        token_text: for a request that asks for the texts of the tokens.
    """
    texts = None if token_text is None else [shown(token_text(token)) for token in ids]
    strings = {} if texts is None else {"token_strs": texts}
    return {"tokens": list(ids), "count": len(ids), "max_model_len": window, **strings}


def detokenize_reply(text: str) -> dict[str, Any]:
    """The reply to ``/detokenize``, as vLLM has it."""
    return {"prompt": text}


def tokenizer_info_reply(
    *, bos: str | None, eos: str | None, window: int, template: str | None
) -> dict[str, Any]:
    """The reply to ``/tokenizer_info``, by which lm-eval knows that it needs no tokenizer.

    Args:
        bos, eos: the pieces of the beginning and the end of a text, if the tokenizer has them.
        window: the most tokens that the model reads.
        template: its chat layout as a Jinja template, if it has one.
    """
    return {
        "bos_token": bos, "eos_token": eos, "pad_token": None, "model_max_length": window,
        "chat_template": template,
    }  # fmt: skip
