"""What all bodies of requests have: strict types, finite numbers, and no field that is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from bc2.serve.protocol.api_error import bad_value, quoted, suggestion

#: The most characters of a field's name that come back.
_LONGEST_NAME = 60


class Body(BaseModel):
    """A body of a request, or an object in one; `bc2.serve.protocol.parse.parse` reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields of OpenAI's that are refused -> values that ask for nothing, beside the empty."""

    @classmethod
    def asked(cls, given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Those of the given fields that ask for something; null asks for nothing.

        Args:
            prefix: of the names in errors, such as ``stream_options.``.

        Raises:
            ApiError: a field is unknown, or it is not supported and asks for something.
        """
        return {name: value for name, value in given.items() if cls._asks(name, value, prefix)}

    @classmethod
    def _asks(cls, name: str, value: Any, prefix: str) -> bool:
        if name in cls.model_fields:
            return value is not None
        param = prefix + name[:_LONGEST_NAME]
        if name not in cls.unsupported:
            message = f"unknown field {quoted(prefix + name)}{suggestion(name, cls.model_fields)}"
            raise bad_value(param, message, "unknown_parameter")
        if is_empty(value) or any(value == neutral for neutral in cls.unsupported[name]):
            return False
        message = f"`{param}` is not supported, and {quoted(value)} asks for it; leave it out"
        raise bad_value(param, message, "unsupported_parameter")


def is_empty(value: Any) -> bool:
    """Whether a value is JSON's null, or nothing of its type."""
    return value is None or (isinstance(value, (str, list, dict)) and not value)
