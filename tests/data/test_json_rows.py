"""Rows of JSON files: lines and lists, cut anywhere, against Python's own reader."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from bc2.data import json_rows as module
from bc2.data.json_rows import json_rows
from bc2.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def values(path: Path) -> list[Any]:
    return [row.value for row in json_rows(path)]


@given(
    rows=st.lists(VALUES, max_size=5),
    chunk=st.integers(1, 40),
    escaped=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
    bom=st.booleans(),
)
def test_a_list_is_read_as_python_reads_it_wherever_it_is_cut(
    tmp_path_factory, rows, chunk, escaped, indent, bom
):
    path = tmp_path_factory.mktemp("list") / "a.json"
    text = json.dumps(rows, ensure_ascii=escaped, indent=indent)
    path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        found = list(json_rows(path))
    assert [row.value for row in found] == json.loads(text)
    assert [row.number for row in found] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("text", ["12", "-Infinity", "1e5", '"a\\u00e9"', "true", "123456"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_what_is_cut_in_a_word_is_one_value(tmp_path, monkeypatch, text, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(f"[{text},{text}]")
    assert values(path) == [json.loads(text)] * 2


def test_lines_of_any_end_and_empty_ones_are_numbered(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}\n{"a": NaN}')
    rows = list(json_rows(path))
    assert [row.number for row in rows] == [1, 4, 5]
    assert [row.value["a"] for row in rows[:2]] == [1, 2]


@pytest.mark.parametrize(
    ("line", "reason", "why"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "bad_json", "the key 'a' stands twice"),
        (b'{"m": [{"x": 1, "x": 1}]}', "bad_json", "the key 'x' stands twice"),
        (b'{"a": "\xff"}', "bad_utf8", "not UTF-8: byte 7"),
        (b'{"a": 1', "bad_json", "not JSON: Expecting ',' delimiter"),
        (b'{"a":' + b"[" * 100_000, "bad_json", "recursion"),
        (b'{"a":' + b"9" * 5000 + b"}", "bad_json", "4300 digits"),
        ('{"a": 1}'.encode("utf-16"), "bad_utf8", "not UTF-8: byte 0"),
    ],
)
def test_a_bad_line_spoils_no_other(tmp_path, line, reason, why):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = json_rows(path)
    assert bad.fault is not None
    assert bad.fault.reason == reason
    assert why in bad.fault.detail
    assert [first.value, last.value] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "row", "why"),
    [
        (b'[{"a": 1}, {"a', 2, "the file ends in it"),
        (b'[{"a": 1}', 1, "the file ends"),
        (b'[{"a": 1},]', 2, "a comma stands before its end"),
        (b'[{"a": 1}, {"a": tru, "b": "a long enough text"}]', 2, "expecting value"),
        (b'[{"a": 1} {"a": 2}]', 1, ", or ] expected"),
        (b'[{"a": 1}]\n[{"a": 2}]', 1, "something follows the list"),
        (b'[{"a": 1}, {"a": 1, "a": 2}]', 2, "the key 'a' stands twice"),
        (b'[{"a": 1}, {"a": "\xff"}]', 1, "not UTF-8: invalid start byte"),
        (b"[" * 100_000, 1, "recursion"),
    ],
)
def test_a_broken_list_is_an_error_that_names_the_element(tmp_path, text, row, why):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match="the JSON list is broken") as caught:
        list(json_rows(path))
    assert why in caught.value.what
    assert caught.value.where == f"{path}:{row}"


def test_an_element_that_never_ends_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(module, "_CHUNK", 100)
    path = tmp_path / "a.json"
    path.write_text('["' + "a" * 5000 + '"]')
    with pytest.raises(DataError, match="an element of more than 1,000 characters"):
        list(json_rows(path))


def test_a_compressed_file_that_is_cut_is_an_error(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps([{"a": n} for n in range(9999)]).encode())[:-9])
    with pytest.raises(DataError, match="damaged or cut short"):
        list(json_rows(path))


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', '{"a": 1}\n{"a": 2}'])
@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".jsonl.zst"])
def test_compressed_files(tmp_path, text, suffix):
    squeezed = {".gz": gzip.compress, ".zst": zstandard.compress}
    path = tmp_path / f"a{suffix}"
    path.write_bytes(squeezed.get(path.suffix, bytes)(text.encode()))
    assert values(path) == [{"a": 1}, {"a": 2}]


def test_a_file_of_another_file_system():
    path = UPath("memory://chats/a.json")
    path.write_bytes(b' [{"a": 1}, {"a": 2}]')
    assert values(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("text", ["", " \n\n", "[]", " [ ] "])
def test_nothing_is_no_rows(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert values(path) == []
