import orjson
import pytest

from bc2.errors import DataError, IntegrityError, RefError, ResourceError, RunFailed
from bc2.serve.protocol.api_error import (
    ApiError,
    api_error_of,
    bad_value,
    body_too_large,
    body_too_slow,
    context_too_long,
    failed,
    foreign_origin,
    model_not_found,
    out_of_time,
    quoted,
    shutting_down,
    too_many_waiting,
    wrong_key,
)


def test_an_error_is_openais_object():
    error = bad_value("messages[1].role", "no such role", "invalid_value")
    assert error.to_json() == {
        "error": {
            "message": "no such role",
            "type": "invalid_request_error",
            "param": "messages[1].role",
            "code": "invalid_value",
        }
    }


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (wrong_key(), 401, "invalid_api_key"),
        (foreign_origin("https://a.example"), 403, "origin_not_allowed"),
        (model_not_found("tiny", ["tiny-chat"]), 404, "model_not_found"),
        (body_too_slow(30), 408, "request_timeout"),
        (body_too_large(1 << 20), 413, "body_too_large"),
        (too_many_waiting(256, 5), 429, "rate_limit_exceeded"),
        (failed(), 500, "internal_error"),
        (shutting_down(30), 503, "shutting_down"),
        (out_of_time(600), 504, "time_limit"),
        (context_too_long(5000, 4096, "prompt", at_least=True), 400, "context_length_exceeded"),
    ],
)
def test_each_failure_has_its_status_and_code(error, status, code):
    assert (error.status, error.code) == (status, code)
    assert error.message
    assert (error.retry_after is not None) == (status in (429, 503))


def test_a_model_that_is_not_served_names_those_that_are():
    message = model_not_found("tiny-chot", ["tiny-chat", "other"]).message
    assert "did you mean 'tiny-chat'?" in message
    assert "served: tiny-chat, other" in message


def test_a_fault_of_the_request_says_what_where_and_what_to_do():
    error = api_error_of(
        DataError("unknown role 'x'", where="message 1", todo="roles are user"), "messages"
    )
    assert (error.status, error.param) == (400, "messages")
    assert error.message == "unknown role 'x' (message 1); roles are user"


def test_the_engines_own_number_of_a_request_is_not_told():
    assert api_error_of(DataError("it is empty", where="prompt 4711")).message == "it is empty"


@pytest.mark.parametrize(
    "error",
    [
        DataError("no layout", where="/srv/models/tiny/chat.json"),
        DataError("cannot read /srv/models/tiny/chat.json", todo="look at '~/models/tiny'"),
        RefError("no artifact", where="file:///srv/models"),
        IntegrityError("not what was published", where="/srv/models/tiny"),
        RunFailed("broken at /srv/models/tiny"),
        ResourceError("disk full", where="/srv/models"),
    ],
)
def test_no_path_of_the_machine_that_serves_is_told(error):
    said = api_error_of(error)
    assert "srv" not in said.message
    assert "models" not in said.message


def test_a_route_of_the_server_is_no_path():
    error = api_error_of(DataError("it has no layout", todo="send a prompt to /v1/completions"))
    assert error.message.endswith("send a prompt to /v1/completions")


def test_what_a_client_cannot_mend_has_no_reason():
    assert api_error_of(RunFailed("logits are no numbers")).status == 500
    assert "logits" not in api_error_of(RunFailed("logits are no numbers")).message
    assert api_error_of(ResourceError("out of memory")).status == 503


@pytest.mark.parametrize(
    "value",
    ["模" * 10_000, ["a"] * 10_000, {"a": ["b" * 10_000]}, ["b" * 10_000], 10**300, "\n\x1b"],
)
def test_what_is_quoted_is_short_and_printable(value):
    shown = quoted(value)
    assert len(shown) < 80
    assert shown.isprintable()
    orjson.dumps(ApiError(400, shown).to_json())
