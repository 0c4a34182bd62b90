"""A server in a thread of the test's own process, and what is said to it.

``import running_server`` from any test.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bc2.generate.engine_config import EngineConfig
from bc2.registry import Registry
from bc2.serve.serve_config import ServeConfig
from bc2.serve.served_models import (
    ServedModels,
    SpeakingModel,
    named_artifacts,
    open_models,
)
from bc2.serve.server import _Running, bound_socket


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which has exactly OpenAI's fields."""
        found: dict[str, Any] = self.json["error"]
        assert found.keys() == {"message", "type", "param", "code"}
        return found

    @property
    def events(self) -> list[Any]:
        """What a stream said; its last event is that it is done."""
        events = self.body.decode().removesuffix("\n\n").split("\n\n")
        assert all(event.startswith("data: ") for event in events)
        assert events[-1] == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


@dataclass
class Server:
    port: int
    running: Any
    models: ServedModels

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, data, dict(headers or {}))
            got = connection.getresponse()
            named = {name.lower(): value for name, value in got.getheaders()}
            return Reply(got.status, named, got.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.ask("POST", path, body, headers)

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, None, headers)

    def raw(self, path: str, body: Any) -> socket.socket:
        """A connection on which a request was sent, and nothing was read."""
        data = json.dumps(body).encode()
        made = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        made.sendall(head.encode() + data)
        return made

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.split("[{ ]", line)[0] == name)

    def wait(self, holds: Callable[[], bool], seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < until, "it never came to hold"
            time.sleep(0.01)


@contextmanager
def serving(
    home: Path, *refs: str, engine: EngineConfig | None = None, **config: Any
) -> Iterator[Server]:
    """Serve registered models with the limits of `ServeConfig`; at the end nothing is held."""
    cpu, ready = torch.device("cpu"), threading.Event()
    artifacts = named_artifacts(Registry.open(home), refs)
    engine = engine or EngineConfig(cache_bytes=8 << 20, max_running=16)
    with open_models(artifacts, cpu, torch.float32, engine) as models:
        bound = bound_socket("127.0.0.1", 0)
        running = _Running(models, ServeConfig(**config), ready.set)
        thread = threading.Thread(target=lambda: asyncio.run(running.run(bound)))
        thread.start()
        try:
            assert ready.wait(30)
            yield Server(bound.getsockname()[1], running, models)
        finally:
            running.stop(15)
            thread.join(60)
            assert not thread.is_alive(), "the server did not end"
        for model in models:
            if not isinstance(model, SpeakingModel):
                assert not model.lane.busy
                continue
            model.lane.engine.memory.pool.check([])
