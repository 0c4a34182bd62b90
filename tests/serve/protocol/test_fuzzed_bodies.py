"""Bodies that nobody thought of: each is understood, or refused with an error that can be sent."""

import json
import time

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.generate.sampling_config import SamplingConfig
from bc2.serve.protocol.api_error import ApiError
from bc2.serve.protocol.parse import parse
from bc2.serve.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeBody,
    ScoreBody,
    TokenizeBody,
)
from bc2.serve.protocol.sampling import sampling_of

BODIES = (CompletionRequest, ChatRequest, ScoreBody, TokenizeBody, DetokenizeBody)

MORE = pytest.param(10_000, marks=pytest.mark.slow)

NUMBERS = st.one_of(
    st.integers(-2, 130), st.integers(), st.floats(), st.sampled_from([1 << 31, 1 << 63, 10**400])
)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.just("\ud800")
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
TEXTS = st.text(max_size=6)
IDS = st.lists(st.integers(0, 300), max_size=5)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool"])},
    optional={"content": TEXTS | st.lists(st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image_url"])}, optional={"text": TEXTS}
    ), max_size=2), "name": SCALARS, "tool_calls": ANYTHING},
)  # fmt: skip
#: What is near to right where `ANYTHING` seldom is.
LIKELY = st.one_of(
    TEXTS, IDS, st.lists(TEXTS, max_size=3), st.lists(IDS, max_size=3), st.booleans(),
    st.integers(0, 20), st.floats(0, 1), st.lists(MESSAGE, max_size=3),
    st.just({"include_usage": True}),
)  # fmt: skip


@st.composite
def bodies(draw, cls):
    """A body with what it needs, mostly, and some more fields."""
    names = [*cls.model_fields, *cls.unsupported, "max_token", ""]
    likely = {
        "model": TEXTS, "prompt": TEXTS | IDS, "context": TEXTS | IDS, "continuation": TEXTS | IDS,
        "messages": st.just([{"role": "user", "content": "a"}]) | st.lists(MESSAGE, max_size=3),
        "tokens": IDS,
    }  # fmt: skip
    body = {name: draw(values) for name, values in likely.items() if name in cls.model_fields}
    more = st.dictionaries(st.sampled_from(names), LIKELY | ANYTHING, max_size=4)
    return body | draw(more)


def outcome(cls, body):
    """What a body asks for, or the error."""
    try:
        return parse(cls, body)
    except ApiError as error:
        return error


def check(cls, body):
    """What a body asks for, or the error, which can be sent; at once in any case."""
    begun = time.perf_counter()
    found = outcome(cls, body)
    assert time.perf_counter() - begun < 1
    if isinstance(found, ApiError):
        assert found.status == 400
        assert found.message
        assert len(orjson.dumps(found.to_json())) < 1000
    return found


@pytest.mark.parametrize("cls", BODIES)
@pytest.mark.parametrize("count", [120, MORE])
def test_any_object_is_understood_or_refused(cls, count):
    understood = 0

    @settings(max_examples=count, deadline=None, database=None)
    @given(body=bodies(cls))
    def every(body):
        nonlocal understood
        found = check(cls, json.dumps(body).encode())
        understood += found is not None
        if isinstance(found, CompletionRequest | ChatRequest) and getattr(found, "max_tokens", 1):
            made = sampling_of(found, {}, (2,), 100, seed=1)
            assert isinstance(made, SamplingConfig)

    every()
    assert understood


@pytest.mark.parametrize("cls", BODIES)
@pytest.mark.parametrize("count", [60, MORE])
def test_any_bytes_are_understood_or_refused(cls, count):
    least = (
        b'{"model": "m", "prompt": "a", "messages": [{"role": "user", "content": "\xe6\xa8\xa1"}]}'
    )

    @settings(max_examples=count, deadline=None, database=None)
    @given(
        data=st.binary(max_size=40),
        cut=st.tuples(st.integers(0, len(least)), st.integers(0, len(least))),
    )
    def every(data, cut):
        check(cls, data)
        check(cls, least[: min(cut)] + data + least[max(cut) :])

    every()
