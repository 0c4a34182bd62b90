"""``POST /v1/score``: log-probabilities of texts after contexts."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from bc2.generate.requests import Score, ScoreRequest
from bc2.serve.exchange import Exchange
from bc2.serve.json_response import json_response
from bc2.serve.protocol.api_error import context_too_long
from bc2.serve.protocol.log_probs import chat_log_probs, finite
from bc2.serve.protocol.parse import parse
from bc2.serve.protocol.pieces import Usage
from bc2.serve.protocol.requests import ScoreBody
from bc2.serve.routes.answering import new_id
from bc2.serve.routes.completions import token_log_probs
from bc2.serve.served_models import ServedModel
from bc2.serve.service import Service, check_log_probs
from bc2.serve.ticket import Inbox, Scoring


async def scores(service: Service, exchange: Exchange) -> Response:
    """Answer a request. Raises: ApiError."""
    asked = parse(ScoreBody, await exchange.body())
    model = service.speaking(asked.model)
    exchange.model = model.name
    requests = await _requests(service, model, asked)
    if service.config.log_prompts:
        exchange.said += [list(pair) for pair in asked.pairs]
    exchange.prompt_tokens = sum(len(one.context) + len(one.continuation) for one in requests)
    tokens = sum(len(one.continuation) for one in requests)
    check_log_probs(tokens, asked.top_logprobs, "top_logprobs")
    inbox = Inbox()
    ticket = inbox.ticket(Scoring(requests, asked.top_logprobs))
    with service.admitted(model, len(requests), "continuation"), service.working(model, inbox):
        found = (await exchange.attended(inbox.answers()))[ticket]
    assert isinstance(found, list)
    usage = Usage(exchange.prompt_tokens, 0)

    def reply() -> Response:
        data = [
            _row(at, request, score, model, asked.top_logprobs)
            for at, (request, score) in enumerate(zip(requests, found, strict=True))
        ]
        head = {"id": new_id("score"), "object": "list", "model": model.name}
        return json_response({**head, "data": data, "usage": usage.to_json()})

    return await service.aside(reply, tokens)


async def _requests(service: Service, model: ServedModel, asked: ScoreBody) -> list[ScoreRequest]:
    """Contexts and continuations as ids; a continuation is a text of its own."""
    requests = []
    for at, (context, continuation) in enumerate(asked.pairs):
        param = f"continuation[{at}]"
        before = await service.text_ids(model, context, f"context[{at}]")
        after = await service.continuation_ids(model, continuation, param)
        if len(before) + len(after) - 1 > model.window:
            raise context_too_long(len(before) + len(after), model.window + 1, param)
        requests.append(ScoreRequest(before, after))
    return requests


def _row(
    at: int, request: ScoreRequest, score: Score, model: ServedModel, top: int
) -> dict[str, Any]:
    tokens = zip(request.continuation, token_log_probs(score), strict=True)
    return {
        "index": at,
        "object": "score",
        "score": sum(map(finite, score.log_probs)),
        "is_greedy": score.all_greedy,
        "tokens": chat_log_probs(tokens, model.token_bytes, top),
    }
