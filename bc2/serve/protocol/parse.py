"""A body of a request as what it asks for; anything that would be ignored is an error."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError

from bc2.serve.protocol.api_error import ApiError, bad_value, quoted
from bc2.serve.protocol.body import Body
from bc2.serve.protocol.json_body import read_object

AnyBody = TypeVar("AnyBody", bound=Body)


def parse(cls: type[AnyBody], body: bytes) -> AnyBody:
    """What a body asks for.

    A field that is null is one that is not there. A field that OpenAI has and bc2 does not is
    accepted with a value that asks for nothing, and otherwise refused.

    Raises:
        ApiError: broken JSON; or a field that is unknown, not supported, missing, of a wrong type
            or out of range, which `param` names.
    """
    given = read_object(body)
    try:
        return cls.model_validate(cls.asked(given))
    except ValidationError as error:
        raise _api_error(error) from None


def _api_error(error: ValidationError) -> ApiError:
    """The first thing that is wrong, with its place as OpenAI writes it."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = _place(first["loc"])
    if first["type"] == "missing":
        return bad_value(param, f"`{param}` is missing", "missing_required_parameter")
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    said = first["msg"].removeprefix("Input ").removeprefix("String ")
    return bad_value(param, f"`{param}` {said}, not {quoted(first['input'])}", code)


def _place(loc: tuple[int | str, ...]) -> str:
    """``stop[1]``, of the keys and numbers on the way there."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc]
    return "".join(parts).removeprefix(".")
