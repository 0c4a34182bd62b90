"""``POST /v1/rewards``: what a reward model says of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from starlette.responses import Response

from bc2.align.reward.score_reader import ReadAnswer, Unfit, answer_marked
from bc2.serve.exchange import Exchange
from bc2.serve.json_response import json_response
from bc2.serve.protocol.api_error import ApiError, bad_value, score_not_finite
from bc2.serve.protocol.messages import Messages
from bc2.serve.protocol.parse import parse
from bc2.serve.protocol.pieces import Usage
from bc2.serve.protocol.requests import RewardsBody
from bc2.serve.routes.answering import new_id
from bc2.serve.served_models import ServedRewardModel
from bc2.serve.service import Service, check_length
from bc2.serve.ticket import Inbox, Rewarding


async def rewards(service: Service, exchange: Exchange) -> Response:
    """Answer a request. Raises: ApiError."""
    asked = parse(RewardsBody, await exchange.body())
    model = service.reward_model(asked.model)
    exchange.model = model.name
    several = len(asked.messages) > 1
    answers = [
        await _read(service, model, one, f"messages[{at}]" if several else "messages")
        for at, one in enumerate(asked.messages)
    ]
    if service.config.log_prompts:
        exchange.said += asked.messages
    exchange.prompt_tokens = sum(len(one.sample.tokens) for one in answers)
    inbox = Inbox()
    ticket = inbox.ticket(Rewarding([one.sample for one in answers]))
    with service.admitted(model, len(answers), "messages"), service.working(model, inbox):
        scores = cast(list[float], (await exchange.attended(inbox.answers()))[ticket])
    if not all(map(math.isfinite, scores)):
        raise score_not_finite(model.name)
    return json_response(
        {
            "id": new_id("reward"),
            "object": "list",
            "model": model.name,
            "data": _rows(model, scores, answers),
            "usage": Usage(exchange.prompt_tokens, 0).to_json(),
        }
    )


async def _read(
    service: Service, model: ServedRewardModel, messages: Messages, param: str
) -> ReadAnswer:
    """A conversation as the model reads it. Raises: ApiError if it is unfit."""

    def read() -> ReadAnswer | Unfit:
        for number, message in enumerate(messages):
            check_length(model, message["content"], f"{param}[{number}].content")
        return model.reader.read(answer_marked(messages))

    size = sum(len(one["content"]) for one in messages)
    found = await service.encoded(read, size, param)
    if isinstance(found, Unfit):
        raise _unfit(found, param)
    return found


def _unfit(found: Unfit, param: str) -> ApiError:
    code = "context_length_exceeded" if found.code == "too_long" else "invalid_value"
    return bad_value(param, f"the answer cannot be scored: {found.why}", code)


def _rows(
    model: ServedRewardModel, scores: Sequence[float], answers: Sequence[ReadAnswer]
) -> list[dict[str, Any]]:
    return [
        {
            "index": at,
            "object": "reward",
            "score": score,
            "standard_score": None if model.scale is None else model.scale(score),
            "tokens": answer.tokens,
        }
        for at, (score, answer) in enumerate(zip(scores, answers, strict=True))
    ]
