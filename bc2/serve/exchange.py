"""One request of a client, from its body to the end of its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from bc2.serve.protocol.api_error import (
    body_too_large,
    body_too_slow,
    encoded_body,
    out_of_time,
)
from bc2.serve.serve_config import ServeConfig

T = TypeVar("T")

#: A body of up to so many times what is taken is read to its end, and not kept: a client that is
#: still sending when the connection is closed does not see why.
_READ_OUT = 16


class ClientGone(Exception):
    """The client has hung up: nobody reads the answer."""


class Exchange:
    """What is known of a request while it is answered.

    Attributes:
        started: monotonic seconds.
        model: the name of the model that answers; "" before it is known.
        prompt_tokens, new_tokens: of prompts and answers, for the log.
        said: the prompts and answers, where they are to be logged.
    """

    def __init__(self, request: Request, config: ServeConfig):
        self.request = request
        self.config = config
        self.started = time.monotonic()
        self.model = ""
        self.prompt_tokens = 0
        self.new_tokens = 0
        self.said: list[Any] = []

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started

    async def body(self) -> bytes:
        """All bytes of the request.

        Raises:
            ApiError: there are too many of them, they do not come in time, or are compressed.
            ClientGone: the client hung up.
        """
        most, headers = self.config.max_body, self.request.headers
        length = headers.get("content-length", "")
        declared = int(length[:20]) if length.isdecimal() else 0
        if declared > _READ_OUT * most or (declared > most and "expect" in headers):
            raise body_too_large(most)
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self.config.body_seconds):
                async for part in self.request.stream():
                    size += len(part)
                    if size > _READ_OUT * most:
                        break
                    if size <= most:
                        body += part
        except TimeoutError:
            if size <= most:
                raise body_too_slow(self.config.body_seconds) from None
        except ClientDisconnect:
            raise ClientGone from None
        if size > most:
            raise body_too_large(most)
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise encoded_body(encoding)
        return bytes(body)

    async def attended(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work for as long as there is a client and time.

        Raises:
            ApiError: the time limit is over.
            ClientGone: the client hung up.
            Exception: what the work raises.
        """
        left = self.started + self.config.time_limit - time.monotonic()
        task = asyncio.create_task(work)
        gone = asyncio.create_task(_gone(self.request.receive))
        try:
            done, _ = await asyncio.wait(
                (task, gone), timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            gone.cancel()
            if not task.done():
                task.cancel()
            await asyncio.wait((task, gone))
        if task in done:
            return task.result()
        if gone in done:
            raise ClientGone
        raise out_of_time(self.config.time_limit)


async def _gone(receive: Receive) -> None:
    """Wait until the client hangs up; it may have sent all there is to send."""
    while (await receive())["type"] != "http.disconnect":
        pass
