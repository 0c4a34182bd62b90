"""Readers: every format says the same, every bad row has a reason, nothing passes half."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2 import streams
from bc2.data import documents, readers
from bc2.data.corpus_config import SourceConfig
from bc2.data.documents import Drops
from bc2.data.readers import documents_at, read_source, text_of
from bc2.errors import DataError
from bc2.streams import BadRow, parse_line

TEXTS = [
    "Hello,\r\nworld\n",
    "天地玄黄",
    "emoji 🙂 and NUL \0",
    "\ufeffmark inside",
    "",
    "x" * 70_000,
]


def source(path: Path | str, name: str = "s", **more: Any) -> SourceConfig:
    return SourceConfig(name=name, path=str(path), **more)


def jsonl(rows: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def pack(data: bytes, suffix: str) -> bytes:
    """`data` compressed as a file with this suffix holds it."""
    if suffix == ".gz":
        return gzip.compress(data)
    return zstandard.compress(data) if suffix == ".zst" else data


def read(config: SourceConfig, malformed="stop"):
    drops = Drops(config.name, malformed)
    return list(read_source(config, drops)), drops


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("stem", ["jsonl", "json", "ndjson"])
def test_json_lines(write, suffix, stem):
    data = jsonl({"text": text, "n": i} for i, text in enumerate(TEXTS))
    path = write(f"a.{stem}{suffix}", pack(data, suffix))
    found, _ = read(source(path, lang="en"))
    assert [d.text for d in found] == TEXTS
    assert [d.origin_row for d in found] == list(range(1, len(TEXTS) + 1))
    assert {(d.source, d.lang, d.origin_file) for d in found} == {("s", "en", path.name)}
    assert len({d.id for d in found}) == len(TEXTS)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_text_file_is_a_document(write, suffix):
    path = write(f"a.txt{suffix}", pack(b"\xef\xbb\xbfone\r\n\r\ntwo", suffix))
    found, _ = read(source(path))
    assert [(d.text, d.origin_row) for d in found] == [("one\r\n\r\ntwo", 1)]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
)
def test_parquet(tmp_path, kind):
    texts = TEXTS[:5] * 100
    table = pa.table({"n": range(500), "body": pa.array(texts).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=130)
    found, _ = read(source(tmp_path / "a.parquet", text_field="body"))
    assert [d.text for d in found] == texts
    assert [d.origin_row for d in found] == list(range(1, 501))


def test_parquet_bad_rows_are_single_rows(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe", None, b"fine"], pa.binary())
    column = pa.StringArray.from_buffers(4, *raw.buffers()[1:], raw.buffers()[0])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    config = source(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="not UTF-8") as caught:
        read(config)
    assert caught.value.where == f"{tmp_path / 'a.parquet'}:2"
    found, drops = read(config, "skip")
    assert [(d.text, d.origin_row) for d in found] == [("good", 1), ("fine", 4)]
    assert drops.documents == {"bad_utf8": 1, "no_text": 1}


@pytest.mark.parametrize(
    ("columns", "says"),
    [({"texts": ["a"]}, "no column 'text'"), ({"text": [1]}, "holds int64, not strings")],
)
def test_parquet_columns(tmp_path, columns, says):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=says):
        read(source(tmp_path / "a.parquet"), "skip")


def test_damaged_parquet_always_stops(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{i} {'y' * (i % 90)}" for i in range(5000)]
    pq.write_table(pa.table({"text": texts}), path, write_page_checksum=True)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for bad in (b"", b"no parquet", whole[:-20], bytes(flipped)):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="damaged or cut short"):
            read(source(path), "skip")


BAD = [
    (b'{"text": "a"', "bad_json", "not JSON"),
    (b"[" * 100_000, "bad_json", "not JSON"),
    (b'["text"]', "not_an_object", "list"),
    (b'"text"', "not_an_object", "str"),
    (b'{"txet": "a"}', "no_text", "there is: txet"),
    (b'{"text": null}', "no_text", "null"),
    (b'{"text": 5}', "text_not_string", "int"),
    (b'{"text": "\xff"}', "bad_utf8", "not UTF-8"),
    (b'{"text": "a\\ud83d"}', "lone_surrogate", "surrogate"),
    (b"\x00\x01\x02binary", "bad_json", "not JSON"),
]


@pytest.mark.parametrize(("line", "reason", "says"), BAD)
def test_a_malformed_row_stops_with_file_and_row_or_is_counted(write, line, reason, says):
    good = b'{"text": "good"}\n'
    path = write("a.jsonl", good + b"\n" + line + b"\n" + good)
    with pytest.raises(DataError) as caught:
        read(source(path))
    assert caught.value.where == f"{path}:3"
    assert says in caught.value.what
    assert caught.value.exit_code == 3
    found, drops = read(source(path), "skip")
    assert [d.origin_row for d in found] == [1, 4]
    assert drops.facts() == {reason: {"documents": 1, "bytes": len(line) + 1}}


def test_surrogate_pairs_are_one_character(write):
    path = write("a.jsonl", b'{"text": "\\ud83d\\ude42"}\n')
    assert read(source(path))[0][0].text == "🙂"


def test_documents_of_several_paths_with_their_languages(write, tmp_path):
    rows = [{"text": "a", "lang": "en"}, {"text": "天"}, {"text": "", "lang": ""}]
    rows += [{"text": "b", "lang": None}]
    lines = write("a.jsonl", jsonl(rows))
    table = pa.table({"lang": pa.array(["zh", None]).dictionary_encode(), "text": ["地", "c"]})
    pq.write_table(table, tmp_path / "b.parquet")
    pq.write_table(table.drop(["lang"]), tmp_path / "c.parquet")
    paths = [str(lines), str(tmp_path / "[bc].parquet"), str(write("d.txt", b"plain"))]
    found = [(d.text, d.lang, d.origin_file, d.origin_row) for d in documents_at(paths)]
    assert found == [
        ("a", "en", "a.jsonl", 1),
        ("天", None, "a.jsonl", 2),
        ("", None, "a.jsonl", 3),
        ("b", None, "a.jsonl", 4),
        ("地", "zh", "b.parquet", 1),
        ("c", None, "b.parquet", 2),
        ("地", None, "c.parquet", 1),
        ("c", None, "c.parquet", 2),
        ("plain", None, "d.txt", 1),
    ]
    other = write("e.jsonl", jsonl([{"body": "x", "language": "fr"}]))
    (named,) = documents_at([str(other)], text_field="body", lang_field="language")
    assert (named.text, named.lang, named.source) == ("x", "fr", str(other))
    # a corpus states the language of a source, whatever its rows say
    assert [d.lang for d in read(source(lines, lang="code"))[0]] == ["code"] * 4


def test_a_language_that_is_no_string_and_a_malformed_row_stop(write, tmp_path):
    path = write("a.jsonl", jsonl([{"text": "a", "lang": "en"}, {"text": "b", "lang": 5}]))
    with pytest.raises(DataError, match="the language is a int, not a string") as caught:
        list(documents_at([str(path)]))
    assert caught.value.where == f"{path}:2"
    pq.write_table(pa.table({"text": ["a"], "lang": [[1]]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the language is a list"):
        list(documents_at([str(tmp_path / "a.parquet")]))
    torn = write("c.jsonl", b'{"text": "a", "lang": "\\ud800"}\n')
    with pytest.raises(DataError, match="the language is no Unicode text"):
        list(documents_at([str(torn)]))
    assert len(read(source(path))[0]) == 2  # a corpus does not look
    path = write("b.jsonl", b'{"text": 5}\n')
    with pytest.raises(DataError, match="text' holds a int") as caught:
        list(documents_at([str(path)]))
    assert caught.value.todo == "repair it, or leave it out"


def test_documents_above_the_limit(write, monkeypatch):
    monkeypatch.setattr(streams, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(readers, "MAX_DOCUMENT_BYTES", 100)
    path = write("a.txt", b"x" * 101)
    found, drops = read(source(path), "skip")
    assert (found, drops.documents) == ([], {"too_long": 1})
    with pytest.raises(BadRow, match="longer than 100"):
        text_of({"text": "é" * 51}, "text")
    with pytest.raises(BadRow, match="longer than 100"):
        parse_line(None)


@settings(max_examples=80, deadline=None)
@given(
    st.binary(max_size=60)
    | st.text(max_size=20).map(lambda t: json.dumps({"text": t}).encode())
    | st.dictionaries(st.sampled_from(["text", "x"]), st.integers() | st.none() | st.text()).map(
        lambda row: json.dumps(row).encode()
    )
)
def test_any_line_is_a_text_or_a_named_reason(line):
    verdict = None
    try:
        text, utf8 = text_of(parse_line(line), "text")
    except BadRow as bad:
        verdict = bad.reason
    if verdict is None:
        assert json.loads(line)["text"] == text
        assert text.encode() == utf8
    else:
        assert verdict in get_args(documents.Reason)


def test_max_bytes_stops_before_it_is_exceeded(write):
    path = write("a.jsonl", jsonl({"text": "天" * 10} for _ in range(10)))
    assert len(read(source(path, max_bytes=95))[0]) == 3
    assert len(read(source(path, max_bytes=90))[0]) == 3
    assert len(read(source(path, max_bytes=89))[0]) == 2


def test_a_hugging_face_dataset_on_disk(tmp_path):
    """The real code path of `datasets`, streaming; a local directory needs no network."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(jsonl({"body": t} for t in TEXTS[:4]))
    (folder / "test.jsonl").write_bytes(jsonl({"body": "t"} for _ in range(2)))
    config = SourceConfig(name="s", hf=str(folder), text_field="body")
    found, _ = read(config)
    assert [d.text for d in found] == TEXTS[:4]
    assert found[0].origin_file == f"{folder.name}/train"
    found, _ = read(config.model_copy(update={"split": "test"}))
    assert len(found) == 2
    with pytest.raises(DataError, match="no field 'text'"):
        read(config.model_copy(update={"text_field": "text"}))
    with pytest.raises(DataError, match="cannot read the dataset"):
        read(config.model_copy(update={"split": "validation"}))
