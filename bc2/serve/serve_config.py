"""The limits of a server, and who may use it. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from bc2.recipe import Settings


class ServeConfig(Settings):
    """How much a server takes on, for how long, and from whom."""

    max_waiting: int = Field(default=256, ge=0)
    """Continuations and texts to score that may wait for each model, beside `max_running`."""

    max_body: int = Field(default=4 << 20, gt=0, le=1 << 28)
    """Most bytes of a request."""

    body_seconds: float = Field(default=30.0, gt=0)
    """A request is to be sent within so many seconds."""

    time_limit: float = Field(default=600.0, gt=0)
    """Most seconds that a request may take; what runs then is ended."""

    grace: float = Field(default=30.0, ge=0)
    """Seconds that running requests have to end after a signal."""

    api_keys: tuple[str, ...] = Field(default=(), repr=False)
    """One of them is to be sent with each request; none: anybody may ask."""

    origins: tuple[str, ...] = ()
    """Origins whose pages may ask, such as ``http://localhost:3000``; ``*``: all."""

    log_requests: bool = False
    """A line on stderr for each request, without what was said."""

    log_prompts: bool = False
    """And what was said."""
