"""The JSON of a request's body, read strictly: what two readers could take differently is refused.

That is, beside what JSON has not got (NaN, lone surrogates, numbers beyond a double): a name that
an object has twice.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import orjson

from bc2.serve.protocol.api_error import ApiError, bad_value, quoted


def read_object(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        ApiError: it is not UTF-8, not JSON, nested more than about a thousand deep, no object, or
            one that has a name twice.
    """
    # orjson refuses what Python's own reader lets pass; that one keeps large integers as they are
    # and tells every pair.
    try:
        orjson.loads(body)
        value = json.loads(body, object_pairs_hook=_each_once)
    except RecursionError:
        raise _broken("it is nested too deeply") from None
    except ValueError as error:
        raise _broken(str(error)) from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is no JSON object", code="invalid_json")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = Counter(name for name, _ in pairs)
        twice = next(name for name, count in names.items() if count > 1)
        raise bad_value(twice[:60], f"{quoted(twice)} is there twice in an object; give it once")
    return made


def _broken(said: str) -> ApiError:
    return ApiError(400, f"the body is not JSON: {said}", code="invalid_json")
