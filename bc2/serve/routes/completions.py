"""``POST /v1/completions``: continue texts, or say how likely they are (``echo``)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from starlette.responses import Response

from bc2.generate.requests import Score, ScoreRequest, TokenLogProb
from bc2.generate.sampling_config import SamplingConfig
from bc2.serve.exchange import Exchange
from bc2.serve.protocol.parse import parse
from bc2.serve.protocol.pieces import Piece
from bc2.serve.protocol.replies import CompletionReply
from bc2.serve.protocol.requests import CompletionRequest
from bc2.serve.protocol.sampling import sampling_of
from bc2.serve.protocol.texts import TextOrIds
from bc2.serve.routes.answering import Answering, echoed_piece, fresh_seed, new_id
from bc2.serve.served_models import SpeakingModel
from bc2.serve.service import Service, check_ids, check_log_probs
from bc2.serve.ticket import Inbox, Scoring


async def completions(service: Service, exchange: Exchange) -> Response:
    """Answer a request. Raises: ApiError."""
    asked = parse(CompletionRequest, await exchange.body())
    model = service.speaking(asked.model)
    exchange.model = model.name
    check_ids(model, asked.stop_token_ids, "stop_token_ids", any_length=True)
    prompts = [
        await service.text_ids(model, text, _param(asked.prompt, at))
        for at, text in enumerate(asked.prompt)
    ]
    if service.config.log_prompts:
        exchange.said += asked.prompt
    settings = _settings(asked, model, prompts)
    tokens = sum(map(len, prompts)) if asked.echo else 0
    tokens += sum(asked.n * one.max_new_tokens for one in settings or ())
    check_log_probs(tokens, asked.logprobs, "logprobs")
    with ExitStack() as held:
        held.enter_context(service.admitted(model, len(prompts) * asked.n, "prompt"))
        scores = None
        if asked.echo and asked.logprobs is not None:
            scores = await _scores(service, exchange, model, prompts, asked.logprobs)
        answering = Answering(
            service, exchange, model, asked, prompts,
            settings=settings,
            echoed=_echoed(asked, model, prompts, scores) if asked.echo else (),
            reply=CompletionReply(
                asked, model=model.name, id=new_id("cmpl"), created=int(time.time()),
                token_text=model.token_bytes, prompt_ids=prompts,
            ),
        )  # fmt: skip
        return await answering.response(held)


def _param(prompts: Sequence[TextOrIds], at: int) -> str:
    return "prompt" if len(prompts) == 1 else f"prompt[{at}]"


def _settings(
    asked: CompletionRequest, model: SpeakingModel, prompts: Sequence[list[int]]
) -> list[SamplingConfig] | None:
    """Of the answers to each prompt; None where nothing is to be generated."""
    if not asked.max_tokens:
        return None
    # The token after a full window can still be chosen.
    return [
        sampling_of(asked, model.own, model.ends, model.window + 1 - len(ids), seed=fresh_seed())
        for ids in prompts
    ]


async def _scores(
    service: Service,
    exchange: Exchange,
    model: SpeakingModel,
    prompts: Sequence[list[int]],
    top_k: int,
) -> list[Score | None]:
    """The log-probabilities of prompts after their first tokens; None of one that has no more."""
    inbox = Inbox()
    scored = [ids for ids in prompts if len(ids) > 1]
    found: list[Score] = []
    if scored:
        requests = [ScoreRequest(ids[:1], ids[1:]) for ids in scored]
        ticket = inbox.ticket(Scoring(requests, top_k))
        with service.working(model, inbox):
            answer = (await exchange.attended(inbox.answers()))[ticket]
        assert isinstance(answer, list)
        found = answer
    each = iter(found)
    return [next(each) if len(ids) > 1 else None for ids in prompts]


def _echoed(
    asked: CompletionRequest,
    model: SpeakingModel,
    prompts: Sequence[list[int]],
    scores: Sequence[Score | None] | None,
) -> list[Piece]:
    pieces = []
    for at, (given, ids) in enumerate(zip(asked.prompt, prompts, strict=True)):
        text = given if isinstance(given, str) else model.plain_text(ids)
        numbers = None if scores is None else token_log_probs(scores[at])
        pieces.append(echoed_piece(ids, text, numbers))
    return pieces


def token_log_probs(score: Score | None) -> list[TokenLogProb]:
    """The log-probabilities of a scored text's tokens, as those of generated tokens."""
    if score is None:
        return []
    tops = score.top or [()] * len(score.log_probs)
    return [
        TokenLogProb(number, number, top) for number, top in zip(score.log_probs, tops, strict=True)
    ]
