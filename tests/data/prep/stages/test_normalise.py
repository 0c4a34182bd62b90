"""Normalisation against plain Python: what stays, and that every byte cut is counted."""

from __future__ import annotations

import unicodedata
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.settings import NormaliseSettings
from bc2.data.prep.stages.base import REMOVED
from bc2.data.prep.stages.normalise import NormaliseStage


def reference(text: str, config: NormaliseSettings) -> str:
    # with an end, so that a line end before it is one too
    text = "\n".join((text.replace("\r\x85", "\n") + "x").splitlines())[:-1].replace("\x1f", " ")
    text = "".join(
        c for c in text if c in "\t\n" or (unicodedata.category(c) != "Cc" and c != "\ufeff")
    )
    if config.strip_lines:
        text = "\n".join(line.rstrip() for line in text.split("\n"))
    if config.blank_lines is not False:
        *lines, last = text.split("\n")
        kept: list[str] = []
        for blank, run in groupby(lines, key=lambda line: not line.strip()):
            same = list(run)
            kept += same[: config.blank_lines] if blank else same
        text = "\n".join([*kept, last])
    return unicodedata.normalize("NFC", text) if config.nfc else text


ALPHABET = "a\r\n \t\x00\x0b\x0c\x1c\x1e\x1f\x7f\x85\x9f\ufeff\u3000\xa0\u2028\u2029é"

documents = st.one_of(
    st.text(
        alphabet="a\r\n \t\x00\x0b\x0c\x1c\x1e\x1f\x7f\x85\x9f\ufeff\u3000\xa0\u2028\u2029é",
        max_size=30,
    ),
    st.text(max_size=30),
)
configs = st.builds(
    NormaliseSettings,
    nfc=st.booleans(),
    strip_lines=st.booleans(),
    blank_lines=st.sampled_from([False, 0, 1, 2]),
)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(documents, min_size=1, max_size=5), config=configs)
def test_texts_and_bytes_are_what_plain_python_gives(texts, config, records):
    table = records(texts, first=3)
    outcome = NormaliseStage(config).apply(table, None)
    expected = {3 + at: reference(text, config) for at, text in enumerate(texts)}
    kept = {pos: text for pos, text in expected.items() if text.strip()}
    left = outcome.table.to_pydict()
    assert dict(zip(left["pos"], left["text"], strict=True)) == kept
    assert outcome.removed.schema == REMOVED
    for at, text in enumerate(texts):
        mine = [row for row in outcome.removed.to_pylist() if row["pos"] == 3 + at]
        if 3 + at not in kept:
            size = len(text.encode())
            assert [(row["reason"], row["bytes"], row["whole"]) for row in mine] == [
                ("empty", size, True)
            ]
            continue
        plain = reference(text, config.model_copy(update={"nfc": False}))
        assert sum(row["bytes"] for row in mine) == len(text.encode()) - len(plain.encode())
        assert all(row["bytes"] > 0 and not row["whole"] for row in mine)


@settings(max_examples=200, deadline=None)
@given(text=documents, config=configs)
def test_no_words_are_joined(text, config, records):
    outcome = NormaliseStage(config).apply(records([text]), None)
    left = outcome.table["text"].to_pylist()
    # what is no white space and is removed is no end of a word
    plain = "".join(
        c for c in text if c.isspace() or (unicodedata.category(c) != "Cc" and c != "\ufeff")
    )
    if config.nfc:
        left, plain = [unicodedata.normalize("NFKC", one) for one in left], reference(plain, config)
        plain = unicodedata.normalize("NFKC", plain)
    assert [word for one in left for word in one.split()] == plain.split()


def cut(text: str, records, **config) -> tuple[str, dict[str, int]]:
    outcome = NormaliseStage(NormaliseSettings(**config)).apply(records([text]), None)
    rows = outcome.removed.to_pylist()
    return outcome.table["text"][0].as_py(), {row["reason"]: row["bytes"] for row in rows}


@pytest.mark.parametrize(
    ("text", "config", "left", "lost"),
    [
        ("a\r\nb\rc", {}, "a\nb\nc", {"line_ends": 1}),
        ("\ufeffa\x00b\tc\x9f", {}, "ab\tc", {"control_characters": 6}),
        ("a\x0bb\x0cc", {}, "a\nb\nc", {}),
        ("end of a page.\n\x0cnext page", {}, "end of a page.\n\nnext page", {}),
        ("a\x85b\r\x85c", {}, "a\nb\nc", {"line_ends": 3}),
        ("a\u2028b\u2029c", {}, "a\nb\nc", {"line_ends": 4}),
        ("a\x1cb\x1dc\x1ed", {}, "a\nb\nc\nd", {}),
        ("a\x1fb\x1f\x1fc", {}, "a b  c", {}),
        ("a\x0b\x0c\x85\u2029b", {"blank_lines": 1}, "a\n\nb", {"line_ends": 3, "blank_lines": 2}),
        ("a  \n\n\n\nb", {}, "a  \n\n\n\nb", {}),
        ("a  \n\n\n\n b", {"blank_lines": 2}, "a  \n\n\n b", {"blank_lines": 1}),
        ("\n\n\n\na", {"blank_lines": 2}, "\n\na", {"blank_lines": 2}),
        ("a\u3000\n b \t", {"strip_lines": True}, "a\n b", {"line_spaces": 5}),
        ("e\u0301", {}, "e\u0301", {}),
        ("e\u0301", {"nfc": True}, "é", {}),
        ("\uf900", {}, "\uf900", {}),
        ("a\u200bb\u200d", {}, "a\u200bb\u200d", {}),
    ],
)
def test_examples(text, config, left, lost, records):
    assert cut(text, records, **config) == (left, lost)


def test_the_id_and_other_columns_stay(records):
    table = records(["a\r\n", "b"], lang="en", quality=[0.5, 0.25])
    outcome = NormaliseStage(NormaliseSettings()).apply(table, None)
    assert outcome.table.schema == table.schema
    assert outcome.table.drop_columns("text") == table.drop_columns("text")


def test_an_empty_part(records):
    outcome = NormaliseStage(NormaliseSettings()).apply(records([]), None)
    assert outcome.table.num_rows == outcome.removed.num_rows == 0
