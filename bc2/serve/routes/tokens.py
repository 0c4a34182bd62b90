"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``: a model's tokenizer for its clients."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from bc2.serve.exchange import Exchange
from bc2.serve.json_response import json_response
from bc2.serve.protocol.log_probs import shown
from bc2.serve.protocol.parse import parse
from bc2.serve.protocol.requests import DetokenizeBody, TokenizeBody
from bc2.serve.served_models import ServedModel
from bc2.serve.service import Service, check_ids, layout_of


async def tokenize(service: Service, exchange: Exchange) -> Response:
    """The ids of a text or a conversation. Raises: ApiError."""
    asked = parse(TokenizeBody, await exchange.body())
    model = service.tokenizer_model(asked.model)
    exchange.model = model.name
    param = "prompt" if asked.messages is None else "messages"
    ids = await service.encoded(lambda: _ids(model, asked), _size(asked), param)
    found: dict[str, Any] = {"count": len(ids), "max_model_len": model.window, "tokens": ids}
    if asked.return_token_strs:
        found["token_strs"] = [shown(model.token_bytes(token)) for token in ids]
    return json_response(found)


def _size(asked: TokenizeBody) -> int:
    texts = [one["content"] for one in asked.messages or ()]
    return sum(map(len, [*texts, asked.prompt or ""]))


def _ids(model: ServedModel, asked: TokenizeBody) -> list[int]:
    if asked.messages is not None:
        begun = asked.add_generation_prompt is not False
        return layout_of(model).render(asked.messages, generation_prompt=begun).ids
    text, tokenizer = asked.prompt or "", model.tokenizer
    # lm-eval asks so for the id of the end of text. Inside a text its name is text.
    if (control := tokenizer.special_ids.get(text)) is not None:
        return [control]
    whole = asked.add_special_tokens is not False
    return tokenizer.encode_whole(text) if whole else tokenizer.encode(text)


async def detokenize(service: Service, exchange: Exchange) -> Response:
    """The text of ids. Raises: ApiError."""
    asked = parse(DetokenizeBody, await exchange.body())
    model = service.tokenizer_model(asked.model)
    exchange.model = model.name
    check_ids(model, asked.tokens, "tokens", any_length=True)
    text = await service.encoded(
        lambda: model.plain_text(asked.tokens), len(asked.tokens), "tokens"
    )
    return json_response({"prompt": text})


async def tokenizer_info(service: Service, exchange: Exchange) -> Response:
    """What lm-eval detects a remote tokenizer by, and needs of it. Raises: ApiError."""
    model = service.tokenizer_model(exchange.request.query_params.get("model"))
    exchange.model = model.name
    tokenizer = model.tokenizer
    named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    pieces = {name: tokenizer.piece_of(i) if i >= 0 else None for name, i in named.items()}
    return json_response(
        {
            "tokenizer_class": type(tokenizer).__name__,
            **pieces,
            "pad_token": None,
            "vocab_size": model.vocab_size,
            "model_max_length": model.window,
            "add_bos_token": bool(tokenizer.begin_ids),
            "chat_template": None if model.chat is None else model.chat.template,
        }
    )
