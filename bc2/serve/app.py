"""The server as an ASGI application: who may ask what, and what becomes of errors."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bc2.serve.exchange import ClientGone, Exchange
from bc2.serve.json_response import error_response
from bc2.serve.protocol.api_error import ApiError, foreign_origin, shutting_down, wrong_key
from bc2.serve.routes import about, tokens
from bc2.serve.routes.chat_completions import chat_completions
from bc2.serve.routes.completions import completions
from bc2.serve.routes.rewards import rewards
from bc2.serve.routes.scores import scores
from bc2.serve.service import Service

Answer = Callable[[Service, Exchange], Awaitable[Response]]

#: What is asked by whom a key has not been given to yet: a load balancer.
OPEN = "/health"

_POSTS: Mapping[str, Answer] = {
    "/v1/completions": completions,
    "/v1/chat/completions": chat_completions,
    "/v1/score": scores,
    "/v1/rewards": rewards,
    "/tokenize": tokens.tokenize,
    "/detokenize": tokens.detokenize,
}
_GETS: Mapping[str, Answer] = {
    "/v1/models": about.models,
    "/v1/models/{name:path}": about.model,
    "/tokenizer_info": tokens.tokenizer_info,
    "/health": about.health,
    "/metrics": about.metrics,
}


def make_app(service: Service) -> ASGIApp:
    """All routes of a service."""
    routes = [
        Route(path, _Endpoint(service, path, answer), methods=[method])
        for method, table in (("POST", _POSTS), ("GET", _GETS))
        for path, answer in table.items()
    ]
    made = Starlette(routes=routes, exception_handlers={HTTPException: _not_routed})
    # To what address a client came is not known here, so it is sent to no other one.
    made.router.redirect_slashes = False
    app: ASGIApp = made
    if origins := service.config.origins:
        app = CORSMiddleware(
            app, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=("*",)
        )
    return app


async def _not_routed(request: Request, error: Exception) -> Response:
    """A path or method that there is none of."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:100]}"
    known = ", ".join([*_POSTS, *_GETS]).replace("{name:path}", "NAME")
    what = "is not allowed" if error.status_code == 405 else "is not here"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    response = error_response(
        ApiError(error.status_code, f"{where} {what}; there are {known}", code=code)
    )
    response.headers.update(error.headers or {})
    return response


class _Endpoint:
    """One route: an ASGI application of its own, so that nothing is between it and the client."""

    def __init__(self, service: Service, path: str, answer: Answer):
        self._service = service
        self._path = path
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        exchange = Exchange(Request(scope, receive), service.config)
        status = 0

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with service.metrics.running.labels(self._path).track_inprogress():
                response = await self._response(exchange)
                await response(scope, receive, sending)
        except ClientGone:
            status = 0
        except asyncio.CancelledError:
            # The server ends and waits for nobody any more.
            if not status:
                await error_response(shutting_down(1))(scope, receive, sending)
        service.log.ended(exchange, self._path, status)

    async def _response(self, exchange: Exchange) -> Response:
        try:
            self._check(exchange.request)
            return await self._answer(self._service, exchange)
        except ClientGone:
            raise
        except Exception as error:
            return error_response(self._service.told(error))

    def _check(self, request: Request) -> None:
        """Whether this client may ask now. Raises: ApiError."""
        config = self._service.config
        origin = request.headers.get("origin")
        if origin is not None and not {origin, "*"}.intersection(config.origins):
            raise foreign_origin(origin)
        if self._path == OPEN:
            return
        if config.api_keys and not _has_key(request, config.api_keys):
            raise wrong_key()
        if self._service.draining and self._path in _POSTS:
            raise shutting_down(max(1, round(config.grace)))


def _has_key(request: Request, keys: tuple[str, ...]) -> bool:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    # All are compared, so that the time says nothing.
    found = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
    return kind.lower() == "bearer" and any(found)
