"""What is told of requests: counts for `/metrics`, and lines on stderr where they are asked for."""

from __future__ import annotations

import json
import traceback

from bc2.console import note, printable, warn
from bc2.serve.exchange import Exchange
from bc2.serve.metrics import Metrics
from bc2.serve.serve_config import ServeConfig

#: In place of a status: the client hung up.
GONE = "gone"


class RequestLog:
    """Counts requests, and writes of each what the configuration says."""

    def __init__(self, config: ServeConfig, metrics: Metrics):
        self._config = config
        self._metrics = metrics

    def ended(self, exchange: Exchange, route: str, status: int) -> None:
        """A request is over.

        Args:
            status: 0: the client hung up.
        """
        said = str(status or GONE)
        self._metrics.requests.labels(exchange.model, route, said).inc()
        self._metrics.whole.labels(route).observe(exchange.seconds)
        if not status:
            self._metrics.cancelled.inc()
        if self._config.log_requests or self._config.log_prompts:
            self._write(exchange, route, said)

    def _write(self, exchange: Exchange, route: str, status: str) -> None:
        told = f"{exchange.request.method} {route} {status} in {exchange.seconds:.3f} s"
        if exchange.model:
            told += (
                f", {exchange.model}: {exchange.prompt_tokens} tokens read, "
                f"{exchange.new_tokens} new"
            )
        note(printable(told))
        if self._config.log_prompts and exchange.said:
            note(printable(f"  {json.dumps(exchange.said, ensure_ascii=False)}"))

    def defect(self, error: Exception) -> None:
        """A failure that nobody expected, with where it was; a traceback holds no prompt."""
        where = traceback.extract_tb(error.__traceback__)[-1:]
        place = f" at {where[0].filename}:{where[0].lineno}" if where else ""
        warn(f"a request failed: {type(error).__name__}{place}; this is a defect of bc2")
