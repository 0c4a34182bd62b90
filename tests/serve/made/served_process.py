"""`bc2 serve` as a process of its own, and what is said to it.

``import served_process`` from any test; `running_server` has one in the test's own process.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warmed
from serve_load.http_client import Reply, ask


@dataclass
class Served:
    """A running server."""

    url: str
    models: list[str]
    pid: int

    def ask(self, path: str, body: Any = None, **headers: str) -> Reply:
        return asyncio.run(ask(self.url, path, body, headers=headers))

    def metric(self, name: str, *labels: str) -> float:
        """The sum of a metric over its labels; of those alone that have `labels`, if given."""
        lines = self.ask("/metrics").body.decode().splitlines()
        return sum(
            float(line.split()[-1])
            for line in lines
            if re.split("[{ ]", line)[0] == name and all(label in line for label in labels)
        )

    def wait(self, holds: Callable[[], bool], seconds: float) -> float:
        """Seconds until something holds."""
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < seconds, "it never came to hold"
            time.sleep(0.005)
        return time.monotonic() - began


@contextmanager
def serve_process(home: Path, *args: object, code: int = 0, **environment: str) -> Iterator[Served]:
    """Serve models of a home; at the end it is told to stop, and does with `code`."""
    command = [sys.executable, "-m", "bc2", "serve", *map(str, args), "--port", "0", "--json"]
    with tempfile.TemporaryFile("w+") as told:
        process = warmed.Popen(
            command, stdout=subprocess.PIPE, stderr=told, text=True,
            env={**os.environ, "BC2_HOME": str(home), **environment},
        )  # fmt: skip
        try:
            line = process.stdout.readline()
            told.seek(0)
            assert line, told.read()
            found = json.loads(line)
            yield Served(found["url"], found["models"], process.pid)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            told.seek(0)
            said = told.read()
            assert process.returncode == code, said
            assert "Traceback" not in said, said
        finally:
            process.kill()
            process.communicate()
