import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.serve.protocol.api_error import ApiError
from bc2.serve.protocol.json_body import read_object

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


@given(data=st.dictionaries(st.text(), JSON, max_size=4), ascii_only=st.booleans())
def test_an_object_is_read_as_it_is(data, ascii_only):
    assert read_object(json.dumps(data, ensure_ascii=ascii_only).encode()) == data


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b'{"a": 1,}', b"{'a': 1}", b'{"a": NaN}', b'{"a": -Infinity}',
        b'{"a": 1e999}', b'{"a": "\\ud800"}', b'{"a": "\xff"}', b"\xef\xbb\xbf{}", b'{"a": 1} x',
        b'{"a": ' + b"9" * 5000 + b"}", "{}".encode("utf-16"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(body):
    with pytest.raises(ApiError, match="not JSON") as caught:
        read_object(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"a"', b"3", b'[{"a": 1}]'])
def test_other_than_an_object_is_refused(body):
    with pytest.raises(ApiError, match="no JSON object"):
        read_object(body)


@pytest.mark.parametrize("depth", [10, 500, *range(900, 1100, 7), 100_000])
@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_read_or_refused(depth, begin, end):
    inner = b"1" if end == b"}" else b""
    body = b'{"a":' + begin * depth + inner + end * depth + b"}"
    if depth <= 500:
        assert read_object(body)["a"]
    elif depth >= 1030:
        with pytest.raises(ApiError, match=r"not JSON: .*dep"):
            read_object(body)
    else:
        # Python's own limit is where the stack is now.
        with contextlib.suppress(ApiError):
            read_object(body)


@pytest.mark.parametrize(
    "body", [b'{"a": 1, "a": 1}', b'{"b": {"a": 1, "c": 2, "a": 3}}', b'{"\\u0061": 1, "a": 2}']
)
def test_a_name_that_is_there_twice_is_refused(body):
    with pytest.raises(ApiError, match="'a' is there twice") as caught:
        read_object(body)
    assert caught.value.param == "a"


def test_large_integers_stay_integers():
    assert read_object(b'{"a": 123456789012345678901}') == {"a": 123456789012345678901}
