"""``POST /v1/chat/completions``: the assistant's next turn in a conversation."""

from __future__ import annotations

import time
from contextlib import ExitStack

from starlette.responses import Response

from bc2.serve.exchange import Exchange
from bc2.serve.protocol.parse import parse
from bc2.serve.protocol.replies import ChatReply
from bc2.serve.protocol.requests import ChatRequest
from bc2.serve.protocol.sampling import sampling_of
from bc2.serve.routes.answering import Answering, fresh_seed, new_id
from bc2.serve.service import Service, check_ids, check_log_probs


async def chat_completions(service: Service, exchange: Exchange) -> Response:
    """Answer a request. Raises: ApiError."""
    asked = parse(ChatRequest, await exchange.body())
    model = service.speaking(asked.model)
    exchange.model = model.name
    check_ids(model, asked.stop_token_ids, "stop_token_ids", any_length=True)
    ids = await service.chat_ids(model, asked.messages)
    if service.config.log_prompts:
        exchange.said += asked.messages
    # The token after a full window can still be chosen.
    room = model.window + 1 - len(ids)
    settings = sampling_of(asked, model.chat_own, model.chat_ends, room, seed=fresh_seed())
    check_log_probs(asked.n * settings.max_new_tokens, asked.top_count, "top_logprobs")
    with ExitStack() as held:
        held.enter_context(service.admitted(model, asked.n, "n"))
        answering = Answering(
            service, exchange, model, asked, [ids], settings=[settings], echoed=(),
            reply=ChatReply(
                asked, model=model.name, id=new_id("chatcmpl"), created=int(time.time()),
                token_text=model.token_bytes, prompt_ids=[ids],
            ),
        )  # fmt: skip
        return await answering.response(held)
