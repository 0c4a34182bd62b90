"""What ``--set`` may be: every string is understood wholly, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bc2.errors import UsageError
from bc2.override import parse_override, spelled_place
from bc2.recipe import load


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("a.b=1", 1),
        ("a.b = 1 ", 1),
        ("a.b=[1,\n 2]", [1, 2]),
        ("a.b='''q\nr'''", "q\nr"),
        ("a.b=400 steps", "400 steps"),
        ("a.b=x=y", "x=y"),
        ("a.b=", ""),
        # nothing is dropped: a comment, a further line, a second value
        ("a.b=1 # c", "1 # c"),
        ("a.b=dir#1", "dir#1"),
        ("a.b=1\nfoo = 2", "1\nfoo = 2"),
        ("a.b=1\n[model]", "1\n[model]"),
        ("a.b=1\n# c", "1\n# c"),
        ("a.b=1,2", "1,2"),
        ("a.b=1]\nc=[2", "1]\nc=[2"),
        ("a.b=2024-01-01", "2024-01-01"),
        ("a.b=07:32:00", "07:32:00"),
    ],
)
def test_all_of_a_value_counts(override: str, value: Any) -> None:
    assert parse_override(override) == (("a", "b"), value)


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ('w."a.b"=1', ("w", "a.b")),
        ("w.'a=b'.c=1", ("w", "a=b", "c")),
        (' w . "\\u4e2d" = 1', ("w", "中")),
        ("w.中文=1", ("w", "中文")),
        ("w.a b=1", ("w", "a b")),
    ],
)
def test_parts_of_a_key_are_quoted_as_in_toml(override: str, path: tuple[str, ...]) -> None:
    assert parse_override(override) == (path, 1)


@pytest.mark.parametrize(
    "override",
    ["", "a", "=1", ".=1", "a.=1", ".a=1", "a..b=1", 'a."b=1', 'a."b"c=1', "a.\nb=1", "a." * 99],
)
def test_a_key_that_cannot_be_read_is_refused(override: str) -> None:
    with pytest.raises(UsageError, match="cannot read --set"):
        parse_override(override)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("base=7b.toml", "base cannot be set here"),
        ("base=nonexistent.toml", "base cannot be set here"),
        ("corpus.sources.².path=x", "no item '²' in a list of 3"),
        ("corpus.sources.-1.path=x", "no item '-1' in a list of 3"),
        ("corpus.sources.3.path=x", "no item '3' in a list of 3"),
        (f"corpus.sources.{'9' * 5000}.path=x", "in a list of 3"),
        ("corpus.sources.0=x", "name a key of the item"),
        ("model.vocab_size.x=1", "model.vocab_size is a value, not a table"),
        ("model.vocab_size=1\nfoo = 2", "input should be a valid integer"),
        ("model.vocab_size=inf", "must be a finite number"),
        (f"model.vocab_size=0x{'f' * 5000}", "a number of more than 64 bits"),
        (f"model.vocab_size={'9' * 5000}", "input should be a valid integer"),
        ("model.vocab_size=a\0b", "text with a NUL character"),
        ("model.vocab_size=\udcff", "text that is not UTF-8"),
        ('model."a\\u0000"=1', "text with a NUL character"),
        (f"model.x={'[' * 60}{']' * 60}", "more than 32 tables and lists inside each other"),
        (f"model.x={'[' * 9000}{']' * 9000}", "unknown key model.x"),
    ],
)
def test_odd_overrides_are_refused_with_their_place(override: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        load("tiny", [override]).resolved()
    assert what in caught.value.what
    assert (caught.value.where or "").startswith("--set ")
    assert len(caught.value.where or "") < 1000
    assert str(caught.value).isprintable() or "\n" in override


def test_the_last_of_two_overrides_counts() -> None:
    both = ["pretrain.seed=1", "pretrain.seed=2"]
    assert load("tiny", both).resolved()["pretrain"]["seed"] == 2


def test_the_place_of_an_override_is_one_short_line() -> None:
    assert spelled_place("a.b=1") == "--set a.b=1"
    assert "\n" not in spelled_place("a.b=1\n2")
    assert len(spelled_place("a.b=" + "x" * 5000)) < 120


KEYS = st.sampled_from(
    ["corpus.sources.0", "corpus", "pretrain.weights", "model", "name", "base", "tokenizer.weights"]
)
ODD = st.text(st.sampled_from(list("ab=.'\"\\[]{}#\n\r\t 01²٣_-,:é中\0\udcff")), max_size=12)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=30), ODD, st.builds("{}.{}={}".format, KEYS, ODD, ODD)))
@example("model.vocab_size=1979-05-27T07:32:00Z")
@example("model.vocab_size=[1979-05-27]")
@example('pretrain.weights={"\\ud800"=1}')
def test_any_string_is_taken_or_refused(override: str) -> None:
    try:
        load("tiny", [override]).resolved()
    except UsageError as error:
        str(error).encode()
