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


def test_a_column_of_nulls_is_so_many_bad_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.nulls(3)}), path)
    found, drops = read(source(path), "skip")
    assert (found, drops.documents) == ([], {"no_text": 3})
    with pytest.raises(DataError, match="field 'text' is null") as caught:
        read(source(path))
    assert caught.value.where == f"{path}:1"


def test_a_text_that_is_there_twice(tmp_path, write):
    path = tmp_path / "a.parquet"
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, path)
    with pytest.raises(DataError, match="the column 'text' is there twice") as caught:
        read(source(path), "skip")
    assert caught.value.where == str(path)
    # that of another column hides nothing
    pq.write_table(table.append_column("body", pa.array(["c"])), path)
    assert [d.text for d in read(source(path, text_field="body"))[0]] == ["c"]
    lines = [b'{"text": "a", "n": 1, "n": 2}', b'{"text": "a", "text": "b"}',
             b'{"text": "say \\"text\\"", "meta": {"text": "b"}}']  # fmt: skip
    path = write("a.jsonl", b"\n".join(lines))
    found, drops = read(source(path), "skip")
    assert [d.text for d in found] == ["a", 'say "text"']
    assert drops.rows == [f"{path}:2 bad_json"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_that_is_one_list(write, suffix, indent):
    data = json.dumps([{"text": text} for text in TEXTS], indent=indent).encode()
    path = write(f"a.json{suffix}", pack(data, suffix))
    found, _ = read(source(path))
    assert [(d.text, d.origin_row) for d in found] == [*zip(TEXTS, range(1, 99), strict=False)]
    path.write_bytes(pack(b'[{"text": "a"}, {"txet": "b"}, 5, {"text": "c"}]', suffix))
    found, drops = read(source(path), "skip")
    assert [d.origin_row for d in found] == [1, 4]
    assert drops.rows == [f"{path}:2 no_text", f"{path}:3 not_an_object"]
    path.write_bytes(pack(data[:-5], suffix))
    with pytest.raises(DataError, match="the JSON list is broken"):
        read(source(path), "skip")


def test_an_object_over_several_lines_is_told(write):
    path = write("a.json", json.dumps({"text": "a"}, indent=1).encode())
    with pytest.raises(
        DataError, match="an object over several lines, and each line is to be a row"
    ):
        read(source(path))


def test_files_that_were_joined_have_marks_inside(write):
    mark = b"\xef\xbb\xbf"
    rows = mark + b'{"text": "a"}\n' + mark + b'{"text": "b"}\n' + mark + mark + b'{"text": "c"}'
    assert [d.text for d in read(source(write("a.jsonl", rows)))[0]] == ["a", "b", "c"]
    lists = mark + b'[{"text": "a"}]\n' + mark * 2 + b'[{"text": "b"},\n {"text": "c"}]\n' + mark
    found, _ = read(source(write("b.json", lists)))
    assert [(d.text, d.origin_row) for d in found] == [("a", 1), ("b", 2), ("c", 3)]
    assert read(source(write("c.txt", mark + mark + b"a" + mark)))[0][0].text == "a\ufeff"


ENCODED = "编码是字符与字节之间的对应，同一段文字可以有不同的写法。"


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16", "utf-16-be", "utf-32-le"])
def test_a_named_encoding_is_read_and_a_missing_one_is_told(write, suffix, encoding):
    text = ENCODED if encoding != "big5" else "這是一個繁體中文的句子，臺灣的網頁過去多用大五碼。"
    rows = "".join(json.dumps({"text": text, "n": n}, ensure_ascii=False) + "\n" for n in range(9))
    files = {
        "a.txt": f"{text}\n",
        "b.jsonl": rows,
        "c.json": json.dumps([{"text": text}], ensure_ascii=False, indent=1),
    }
    for name, content in files.items():
        path = write(f"{name}{suffix}", pack(content.encode(encoding), suffix))
        found, _ = read(source(path, encoding=encoding))
        assert {d.text.strip() for d in found} == {text}
        assert len(found) == (9 if name == "b.jsonl" else 1)
        assert found[0].id == documents.text_id(found[0].text.encode())
        with pytest.raises(DataError) as caught:
            read(source(path))
        assert encoding in str(caught.value.todo)
        assert str(caught.value.where).startswith(str(path))
        with pytest.raises(DataError) as caught:
            list(documents_at([str(path)]))
        assert encoding in str(caught.value)


@pytest.mark.parametrize("text", ["plain words in English, twice as long as they are. " * 4, "я"])
def test_utf16_that_is_valid_utf8_is_no_text(write, text):
    path = write("a.txt", f"{text} {text}\n".encode("utf-16-le"))
    path.read_bytes().decode()  # it is
    with pytest.raises(DataError, match="half of its bytes are zeros"):
        read(source(path))
    assert read(source(path, encoding="utf-16-le"))[0][0].text == f"{text} {text}\n"


def test_a_row_that_is_not_of_the_encoding_is_one_bad_row(write):
    rows = [f'{{"text": "{ENCODED}"}}'.encode("gbk"), b'{"text": "a\xff\xff"}', b'{"text": "b"}']
    path = write("a.jsonl", b"\n".join(rows))
    found, drops = read(source(path, encoding="gbk"), "skip")
    assert [d.text for d in found] == [ENCODED, "b"]
    assert drops.documents == {"bad_encoding": 1}
    with pytest.raises(DataError, match="not gbk: character 12") as caught:
        read(source(path, encoding="gbk"))
    assert caught.value.where == f"{path}:2"


def test_skipped_rows_say_the_likely_encoding_once_a_file(write):
    path = write("a.jsonl", (f'{{"text": "{ENCODED}"}}\n' * 3).encode("gb18030"))
    _, drops = read(source(path), "skip")
    first = f"{path}:1 bad_utf8 (likely gb18030)"
    assert drops.rows == [first, f"{path}:2 bad_utf8", f"{path}:3 bad_utf8"]


def test_a_path_that_is_not_utf8_is_told():
    for read_at in (lambda path: list(readers.texts_at([path], "text")), readers.source_at):
        with pytest.raises(DataError, match="the name of a file is not UTF-8"):
            read_at("caf\udce9.txt")


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
