"""What a client is told when its request is not answered: OpenAI's error object, with a status."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from bc2.errors import Bc2Error, DataError, RefError, ResourceError, UsageError, nearest

#: The most characters of what a client sent that come back in a message.
MOST_QUOTED = 60

#: The most characters of a name that others are compared with; the comparison takes time.
_MOST_COMPARED = 64

#: The most items of a list or an object that is written out.
_MOST_SHOWN = 8

#: The most characters of an error's words; it may quote what the client sent.
_LONGEST_MESSAGE = 2000

#: A path of the machine that serves, in an error's words; it is no client's business.
_HOST_PATH = re.compile(r"(?<![\w.:/])(?:~|/)(?!v1/)[\w.~-]*/[^\s'\",;)]+")

#: The place of an error inside a request; other places are files of the machine that serves, or
#: numbers that its engine gives.
_PLACE = re.compile(r"message \d+")


class ApiError(Exception):
    """A request that is not answered, as a client of OpenAI's interface is told.

    Args:
        status: of HTTP.
        message: what is wrong and what to do about it.
        type: OpenAI's word for the kind of failure.
        param: the field that is wrong, such as ``messages[1].role``, if one is.
        code: what programs tell failures apart by.
        retry_after: seconds after which the same may work.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def to_json(self) -> dict[str, Any]:
        """The body of the response; an event of a stream that has begun holds the same."""
        error = {
            "message": self.message, "type": self.type, "param": self.param, "code": self.code,
        }  # fmt: skip
        return {"error": error}


def quoted(value: Any) -> str:
    """What a client sent, short enough for a message and safe to print."""
    if isinstance(value, (list, dict)):
        within = value.values() if isinstance(value, dict) else value
        if len(value) > _MOST_SHOWN or any(isinstance(one, (list, dict)) for one in within):
            return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    shown = repr(value[: 2 * MOST_QUOTED] if isinstance(value, str) else value)
    return shown if len(shown) <= MOST_QUOTED else f"{shown[:MOST_QUOTED]}..."


def suggestion(wrong: str, right: Iterable[str]) -> str:
    """``; did you mean 'name'?``, or "" if no known name is close."""
    guess = nearest(wrong, right) if len(wrong) <= _MOST_COMPARED else None
    return f"; did you mean {guess!r}?" if guess else ""


def bad_value(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """A field whose name or value cannot be taken (400)."""
    return ApiError(400, message, param=param, code=code)


def wrong_kind(message: str) -> ApiError:
    """A model that cannot do what is asked of it (400)."""
    return bad_value("model", message, "wrong_kind_of_model")


def model_not_found(name: str, served: Iterable[str]) -> ApiError:
    """A model that is not served (404)."""
    served = list(served)
    message = f"there is no model {quoted(name)} here{suggestion(name, served)}"
    return ApiError(
        404, f"{message}; served: {', '.join(served)}", param="model", code="model_not_found"
    )


def context_too_long(tokens: int, window: int, param: str, *, at_least: bool = False) -> ApiError:
    """A prompt that does not fit into the model's window (400).

    Args:
        tokens: of the prompt.
        window: of the model.
        param: the field that holds the prompt.
        at_least: `tokens` were counted in its beginning alone.
    """
    has = f"has {'at least ' if at_least else ''}{tokens:,}"
    return bad_value(
        param,
        f"this model reads at most {window:,} tokens, and the prompt {has}; shorten it",
        "context_length_exceeded",
    )


def wrong_key() -> ApiError:
    """No key, or one that is not the server's (401)."""
    return ApiError(
        401, "a valid API key is needed: send it as `Authorization: Bearer KEY`",
        code="invalid_api_key",
    )  # fmt: skip


def foreign_origin(origin: str) -> ApiError:
    """A page of another origin that nobody allowed (403)."""
    return ApiError(
        403, f"pages of {quoted(origin)} may not use this server; its --allow-origin names those "
        "that may", code="origin_not_allowed",
    )  # fmt: skip


def body_too_large(most: int) -> ApiError:
    """A body of more bytes than are read (413)."""
    return ApiError(
        413, f"the body has more than {most:,} bytes; send less, or several requests",
        code="body_too_large",
    )  # fmt: skip


def encoded_body(encoding: str) -> ApiError:
    """A body that is compressed (415)."""
    return ApiError(
        415, f"bodies of the encoding {quoted(encoding)} are not read; send it as it is",
        code="unsupported_encoding",
    )  # fmt: skip


def body_too_slow(seconds: float) -> ApiError:
    """A body that was not sent in time (408)."""
    return ApiError(
        408, f"the body was not sent within {seconds:g} seconds", code="request_timeout"
    )


def no_http() -> ApiError:
    """Bytes that are no request (400)."""
    return ApiError(400, "this is no request of HTTP/1.1", code="invalid_http")


def headers_too_large(most: int) -> ApiError:
    """Headers of more bytes than are read (431)."""
    return ApiError(431, f"the headers have more than {most:,} bytes", code="headers_too_large")


def too_many_waiting(most: int, retry_after: int) -> ApiError:
    """More requests than may wait (429)."""
    return ApiError(
        429, f"{most:,} answers are waiting already; try again in {retry_after} seconds",
        type="rate_limit_error", code="rate_limit_exceeded", retry_after=retry_after,
    )  # fmt: skip


def shutting_down(retry_after: int) -> ApiError:
    """A server that takes no more requests (503)."""
    return ApiError(
        503, "the server is shutting down and takes no more requests",
        type="server_error", code="shutting_down", retry_after=retry_after,
    )  # fmt: skip


def out_of_time(seconds: float) -> ApiError:
    """A request that was not answered within its time limit (504)."""
    return ApiError(
        504, f"not answered within the time limit of {seconds:g} seconds; ask for fewer tokens",
        type="server_error", code="time_limit",
    )  # fmt: skip


def score_not_finite(name: str) -> ApiError:
    """A score that is no number, which JSON has not got (500)."""
    return ApiError(
        500, f"a score by {name!r} is not a number",
        type="server_error", code="score_not_finite",
    )  # fmt: skip


def failed() -> ApiError:
    """A defect of the server, about which a client is told no more (500)."""
    return ApiError(
        500, "the server failed at this request; its log says more",
        type="server_error", code="internal_error",
    )  # fmt: skip


def api_error_of(error: Bc2Error, param: str | None = None) -> ApiError:
    """An error of bc2 as a client is told: what is wrong, where in the request, what to do.

    Paths of the machine that serves are left out. What the client cannot mend is told without a
    reason: out of memory or disk is a 503, and anything else a 500.

    Args:
        param: the field that the request has the fault in, if that is known.
    """
    if isinstance(error, ResourceError):
        return ApiError(
            503, "the server is out of memory or disk; try again later, or ask for less",
            type="server_error", code="out_of_resources", retry_after=10,
        )  # fmt: skip
    if not isinstance(error, (DataError, UsageError, RefError)):
        return failed()
    where = f" ({error.where})" if error.where and _PLACE.fullmatch(error.where) else ""
    todo = f"; {error.todo}" if error.todo else ""
    message = f"{error.what}{where}{todo}"[:_LONGEST_MESSAGE]
    message = _HOST_PATH.sub("(a file of the server)", message)
    return ApiError(400, message, param=param, code="invalid_value")
