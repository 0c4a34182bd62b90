"""Run a service on a socket until a signal ends it, in order and in time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from bc2.console import note, warn
from bc2.errors import Interrupted, RunFailed, UsageError
from bc2.process.signals import SignalReceived, taken
from bc2.serve.app import make_app
from bc2.serve.http_protocol import BoundedHttp
from bc2.serve.protocol.api_error import shutting_down
from bc2.serve.serve_config import ServeConfig
from bc2.serve.served_models import ServedModels
from bc2.serve.service import Service

#: Errors of a system that has no connections left, and seconds between two words about them.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SELDOM_S = 10.0

#: Seconds after the grace in which broken answers are still sent to who reads them.
_LEAVE_S = 5


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound, and does not listen yet.

    Args:
        port: 0: any that is free.

    Raises:
        UsageError: there is no such address here, it may not be taken, or it is in use.
    """
    where = f"{host}:{port}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
    except OSError as error:
        raise UsageError(
            f"no address of this machine: {error.strerror or error}", where=where,
            todo="give --host an address of this machine, such as 127.0.0.1",
        ) from None  # fmt: skip
    try:
        # A port that was served until just now can be taken again at once.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _not_bound(error, where) from None
    return bound


def _not_bound(error: OSError, where: str) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(
            "the port is in use", where=where, todo="give another --port; 0 takes any that is free"
        )
    return UsageError(
        f"the address cannot be taken: {(error.strerror or str(error)).lower()}", where=where,
        todo="give another --host or --port",
    )  # fmt: skip


def url_of(bound: socket.socket) -> str:
    """Where clients find a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    models: ServedModels, config: ServeConfig, bound: socket.socket, ready: Callable[[], None]
) -> None:
    """Answer requests until a signal comes; then take no more, and finish those that run.

    Args:
        ready: called when requests are taken.

    Raises:
        Interrupted: some had not ended when the grace was over.
        RunFailed: the engine's thread has failed.
    """
    running = _Running(models, config, ready)
    try:
        with taken(running.stop), bound:
            asyncio.run(running.run(bound))
    except SignalReceived as stop:
        if running.broken:
            raise Interrupted(
                f"requests that were broken off, as they had not ended within {config.grace:g} "
                f"seconds: {running.broken:,}", signum=stop.signum,
            ) from None  # fmt: skip
        note("stopped; all requests were answered")
    if running.failure is not None:
        raise RunFailed(
            f"the engine has stopped: {type(running.failure).__name__}: {running.failure}"
        ) from running.failure


class _Running:
    """A server from its start to its end."""

    def __init__(self, models: ServedModels, config: ServeConfig, ready: Callable[[], None]):
        self._models = models
        self._config = config
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._service: Service | None = None
        self._server: _Server | None = None
        self._stopping = False
        #: Requests that were not finished.
        self.broken = 0
        self.failure: BaseException | None = None

    async def run(self, bound: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_LoopErrors())
        self._service = Service(self._models, self._config, self._died)
        self._server = _Server(_uvicorn_config(self._service), self._ready)
        if self._stopping:
            self._drain()
        try:
            await self._server.serve([bound])
        finally:
            self._service.close()
            # A step that takes longer than this ends with the process.
            await asyncio.to_thread(self._service.thread.stop, 10.0)

    def stop(self, signum: int) -> None:
        """A signal has come; called in the main thread, at any instruction."""
        self._stopping = True
        if self._loop is not None and self._server is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        """Take no more requests, and give those that run some time."""
        assert self._loop is not None
        assert self._service is not None
        assert self._server is not None
        if running := len(self._server.server_state.tasks):
            note(f"stopping; requests that have {self._config.grace:g} seconds to end: {running:,}")
        self._service.draining = True
        self._server.should_exit = True
        self._loop.call_later(self._config.grace, self._break_off)

    def _break_off(self) -> None:
        assert self._service is not None
        assert self._server is not None
        self.broken = len(self._server.server_state.tasks)
        self._service.thread.fail_all(shutting_down(1))

    def _died(self, error: BaseException) -> None:
        self.failure = error
        if self._server is not None:
            self._server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn's server; signals are bc2's."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._told_ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._told_ready()


class _Errors(logging.Handler):
    """What uvicorn says is wrong with itself, in a line."""

    def emit(self, record: logging.LogRecord) -> None:
        reason = f": {record.exc_info[1]!r}" if record.exc_info and record.exc_info[1] else ""
        warn(f"{record.getMessage()}{reason}")


class _LoopErrors:
    """What the event loop says is wrong, in a line; that nothing is left to connect by, seldom."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _EXHAUSTED:
            reason = f": {type(error).__name__}" if error is not None else ""
            warn(f"{context['message']}{reason}")
        elif loop.time() >= self._next:
            # It is told thousands of times a second.
            self._next = loop.time() + _SELDOM_S
            warn(f"no connection can be taken: {(error.strerror or str(error)).lower()}")


def _uvicorn_config(service: Service) -> uvicorn.Config:
    log = logging.getLogger("uvicorn")
    log.handlers, log.propagate = [_Errors(logging.ERROR)], False
    log.setLevel(logging.ERROR)
    return uvicorn.Config(
        make_app(service),
        http=BoundedHttp,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(service.config.grace) + _LEAVE_S,
    )
