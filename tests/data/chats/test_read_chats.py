"""Conversations out of files: order, formats by file, what is skipped and what stops."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bc2.data.chats.bad_chat import SkippedRows
from bc2.data.chats.chats_config import ChatsConfig, ChatSourceConfig
from bc2.data.chats.read_chats import ReadChat, read_chats
from bc2.data.chats.source_rows import SourceReading
from bc2.errors import DataError

ALPACA = {"instruction": "hi", "output": "ho"}
MESSAGES = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
BAD = {"messages": [{"role": "narrator", "content": "hi"}]}


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(
    path: Path | None, found: SourceReading | None = None, skipped: SkippedRows | None = None,
    **more: Any,
) -> list[ReadChat]:  # fmt: skip
    of_section = {key: more.pop(key) for key in ("system", "malformed", "max_malformed", "seed")
                  if key in more}  # fmt: skip
    source = ChatSourceConfig(name="s", path=path and str(path), **more)
    config = ChatsConfig(sources=(source,), **of_section)
    return list(read_chats(
        source, config, found or SourceReading(), skipped or SkippedRows("s", config.malformed)
    ))  # fmt: skip


def test_each_file_has_a_format_of_its_own_and_order_is_that_of_names_and_rows(tmp_path):
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(ALPACA, {**ALPACA, "id": 1})))
    (tmp_path / "a.json").write_text(json.dumps([SHAREGPT], indent=2))
    (tmp_path / "c").mkdir()
    pq.write_table(pa.Table.from_pylist([MESSAGES, MESSAGES]), tmp_path / "c" / "d.parquet")
    found = SourceReading()
    chats = read(tmp_path, found)
    assert [(one.conversation.file, one.conversation.row, one.format) for one in chats] == [
        ("a.json", 1, "sharegpt"),
        ("b.jsonl.gz", 1, "alpaca"),
        ("b.jsonl.gz", 2, "alpaca"),
        ("c/d.parquet", 1, "messages"),
        ("c/d.parquet", 2, "messages"),
    ]
    assert {json.dumps(one.conversation.messages) for one in chats} == {
        json.dumps(MESSAGES["messages"])
    }
    assert found.rows == 5
    assert found.formats == {"alpaca": 2, "messages": 2, "sharegpt": 1}
    assert found.ignored == {"id": 1}


def test_mixed_formats_in_a_file_stop_and_name_both(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        lines({"messages": []}, ALPACA, MESSAGES).replace(b'{"messages": []}\n', b"\n")
    )
    with pytest.raises(
        DataError, match="'messages', but row 2 of the same file is of 'alpaca'"
    ) as e:
        read(path)
    assert e.value.where == f"{path}:3"
    assert len(read(path, format="messages", malformed="skip", max_malformed=0.5)) == 1


@pytest.mark.parametrize("malformed", ["stop", "skip"])
def test_bad_rows_stop_or_are_counted(tmp_path, malformed):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(BAD) + b"{\n" + lines(*[MESSAGES] * 6, {**MESSAGES, "label": False}))
    if malformed == "stop":
        with pytest.raises(
            DataError, match=r"source 's': `messages\[0\]` is of an unknown"
        ) as caught:
            read(path)
        assert caught.value.where == f"{path}:1"
        assert 'malformed = "skip"' in caught.value.todo
        return
    skipped = SkippedRows("s", "skip")
    chats = read(path, skipped=skipped, malformed="skip", max_malformed=0.25)
    assert [one.conversation.row for one in chats] == [3, 4, 5, 6, 7, 8]
    assert skipped.counts == {"unknown_role": 1, "bad_json": 1, "label_false": 1}
    assert skipped.first == [
        "a.jsonl:1 unknown_role", "a.jsonl:2 bad_json", "a.jsonl:9 label_false"
    ]  # fmt: skip
    with pytest.raises(DataError, match="2 of 8 rows of source 's' could not be read") as caught:
        read(path, malformed="skip", max_malformed=0.2)
    assert caught.value.where == "a.jsonl:1 unknown_role, a.jsonl:2 bad_json, a.jsonl:9 label_false"


def test_answers_that_are_not_wanted_never_become_training_data(tmp_path):
    path = tmp_path / "kto.jsonl"
    rows = [{"prompt": "a", "completion": str(n), "label": n % 2 == 0} for n in range(6)]
    path.write_bytes(lines(*rows))
    with pytest.raises(DataError, match="`label` is false: an answer that is not wanted"):
        read(path)
    # They are no fault of the file: however many, they are left out and counted.
    chats = read(path, malformed="skip", max_malformed=0.0)
    assert [one.conversation.messages[1]["content"] for one in chats] == ["0", "2", "4"]


def test_a_row_that_lacks_something_is_named_by_what_it_lacks(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ALPACA, {**ALPACA, "output": None}))
    with pytest.raises(DataError, match="`output` is null"):
        read(path)


def test_only_so_many_rows_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(BAD, MESSAGES, MESSAGES))
    (tmp_path / "b.jsonl").write_bytes(lines(ALPACA) + b"{broken")
    chats = read(tmp_path, max_rows=4, malformed="skip", max_malformed=0.25)
    assert [(one.conversation.file, one.conversation.row) for one in chats] == [
        ("a.jsonl", 2), ("a.jsonl", 3), ("b.jsonl", 1)
    ]  # fmt: skip
    assert len(read(tmp_path, max_rows=3, malformed="skip", max_malformed=1.0)) == 2


def test_the_sections_system_text_stands_where_none_does(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ALPACA, {**ALPACA, "system": "own"}))
    first = [one.conversation.messages[0] for one in read(path, system="all")]
    assert first == [{"role": "system", "content": "all"}, {"role": "system", "content": "own"}]


def test_a_bad_row_of_parquet_is_one_bad_row(tmp_path):
    path = tmp_path / "a.parquet"
    text = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    table = pa.table({"prompt": text, "response": ["x", "y", "z"]})
    pq.write_table(table, path)
    with pytest.raises(DataError, match="not UTF-8") as caught:
        read(path)
    assert caught.value.where == f"{path}:2"
    chats = read(path, malformed="skip", max_malformed=0.5)
    assert [one.conversation.row for one in chats] == [1, 3]


def test_a_value_that_python_has_not_is_one_bad_row(tmp_path):
    path = tmp_path / "a.parquet"
    days = pa.array([0, 2**30], pa.date32())  # the second is after the year 9999
    pq.write_table(pa.table({"prompt": ["a", "b"], "response": ["x", "y"], "at": days}), path)
    with pytest.raises(DataError, match="a value that cannot be read") as caught:
        read(path)
    assert caught.value.where == f"{path}:2"
    assert len(read(path, malformed="skip", max_malformed=0.5)) == 1


def test_a_column_that_is_there_twice_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    columns = [pa.array([text]) for text in ("a", "b", "c")]
    pq.write_table(pa.Table.from_arrays(columns, ["prompt", "prompt", "response"]), path)
    with pytest.raises(DataError, match="the column 'prompt' is there twice"):
        read(path, malformed="skip")


def test_a_named_encoding_is_read_and_a_missing_one_is_told(tmp_path):
    said = {"instruction": "请介绍均摊复杂度的基础知识", "output": "均摊分析是一种分析算法的方法"}
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps(said, ensure_ascii=False) + "\n").encode("gb18030") * 3)
    chats = read(path, encoding="GB18030")
    assert [one.conversation.messages[0]["content"] for one in chats] == [said["instruction"]] * 3
    with pytest.raises(DataError, match="the file is likely in gb18030") as caught:
        read(path)
    assert caught.value.todo == 'set encoding = "gb18030" in the source'
    assert caught.value.where == f"{path}:1"


def test_what_is_said_of_a_row_is_short(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"messages": [{"role": "x" * 100_000, "content": "hi"}]}))
    with pytest.raises(DataError, match="unknown role") as caught:
        read(path)
    assert len(str(caught.value)) < 1000
    with pytest.raises(DataError, match="no conversations: 1 rows were skipped") as caught:
        read(path, malformed="skip", max_malformed=1.0)
    assert caught.value.where == "a.jsonl:1 unknown_role"


def test_a_hugging_face_directory(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines(MESSAGES, {**MESSAGES, "note": "x"}))
    chats = read(None, hf=str(folder))
    assert [(one.conversation.file, one.conversation.row) for one in chats] == [
        ("set/train", 1), ("set/train", 2)
    ]  # fmt: skip
    assert chats[0].conversation.messages == tuple(MESSAGES["messages"])


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.txt", b"hi", "no rows are read from a file of this kind: a.txt"),
        ("a.csv", b"hi", "cannot read a file of this kind"),
        ("a.jsonl", b"\n\n", "source 's' has no conversations"),
        ("a.json", b"[]", "source 's' has no conversations"),
        ("a.json", b'{\n "data": []\n}', "not JSON"),
        ("a.parquet", b"no", "the file is damaged"),
        ("a.jsonl.gz", gzip.compress(lines(*[MESSAGES] * 99))[:-9], "damaged or cut short"),
        ("a.jsonl", lines({"chosen": "a", "rejected": "b"}), "answers to be compared"),
    ],
)
def test_what_holds_no_chats_is_an_error(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=why):
        read(tmp_path)
