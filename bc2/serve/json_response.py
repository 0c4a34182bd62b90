"""JSON to clients, and errors as OpenAI has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from bc2.serve.protocol.api_error import ApiError


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON data, which has no number that is none."""
    return Response(orjson.dumps(value), status, headers, "application/json")


def error_response(error: ApiError) -> Response:
    """An error object with its status."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    return json_response(error.to_json(), error.status, headers)
