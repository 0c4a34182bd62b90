"""Text that is not UTF-8: decoded as Python decodes it, told by how it looks."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2 import text_encoding as module
from bc2.errors import DataError
from bc2.text_encoding import likely_encoding, named_encoding, open_utf8

#: A sentence or two, and the encodings in which it may come.
PROSE = {
    "本页面将介绍均摊复杂度的基础知识，以及在算法竞赛中怎样使用它。": ["gb18030"],
    "這是一個繁體中文的句子，臺灣的網頁過去多用大五碼，現在多用萬國碼。": ["big5"],
    "日本語の文章です。カタカナとひらがなが含まれ、文字コードの判定を試します。": [
        "cp932",
        "euc_jp",
    ],
    "これはデータの整理に関する日本語の文書です。コードのファイルを処理する方法を説明します。": [
        "cp932",
        "euc_jp",
    ],
    "이것은 한국어 문장입니다. 문자 인코딩을 시험하기 위한 글입니다.": ["cp949"],
    "Это предложение на русском языке для проверки кодировки текста.": ["cp1251"],
    "Le café de la gare était fermé à Noël ; la fenêtre donnait sur l’allée où l’été finissait. "
    "Ça ne l’empêchait pas d’être très fréquenté dès le printemps.": ["cp1252"],
}
WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


def read(path: Path, encoding: str) -> bytes:
    with open_utf8(path, encoding) as stream:
        return stream.read()


@settings(max_examples=40, deadline=None)
@given(
    data=st.binary(max_size=60) | st.text(max_size=20).map(lambda t: t.encode("gb18030", "ignore")),
    encoding=st.sampled_from(["gb18030", "big5", "cp932", "utf-16-le", "utf-32-be", "cp1252"]),
    chunk=st.integers(1, 9),
)
def test_what_python_decodes_is_the_same_and_what_it_refuses_is_not_utf8(
    tmp_path_factory, data, encoding, chunk
):
    path = tmp_path_factory.mktemp("any") / "a.txt"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        found = read(path, encoding)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            found.decode()
    else:
        assert found.decode() == text


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-32-le"])
def test_one_bad_row_spoils_no_other_and_files_may_be_compressed(tmp_path, suffix, encoding):
    bad = {"gb18030": b"\xff", "utf-16": b"\x00\xd8", "utf-32-le": b"\xff" * 4}[encoding]
    tail = encoding if encoding != "utf-16" else "utf-16-le"
    data = "天地\n".encode(encoding) + bad + "\n玄黄".encode(tail)
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(pack(data))
    first, second, third = read(path, encoding).split(b"\n")
    assert (first.decode().lstrip("\ufeff"), third.decode()) == ("天地", "玄黄")
    with pytest.raises(UnicodeDecodeError):
        second.decode()


def test_utf16_without_a_mark_names_no_order(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("天".encode("utf-16-be"))
    with pytest.raises(DataError, match="no byte order mark") as caught:
        read(path, "utf-16")
    assert '"utf-16-be"' in str(caught.value.todo)
    assert caught.value.where == str(path)
    assert read(path, "utf-16-be") == "天".encode()


@pytest.mark.parametrize("form", ["text", "lines"])
@pytest.mark.parametrize(
    ("text", "encoding"),
    [(text, name) for text, names in PROSE.items() for name in [*names, *WIDE]],
)
def test_the_likely_encoding_is_the_one_it_was_written_in(tmp_path, text, encoding, form):
    rows = [json.dumps({"text": text, "n": n}, ensure_ascii=False) for n in range(20)]
    data = "\n".join([text, ""] if form == "text" else rows).encode(encoding)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(data))
    assert likely_encoding(path) == encoding


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "cp932"])
def test_a_few_such_lines_among_utf8_are_told(tmp_path, encoding):
    text = next(text for text, names in PROSE.items() if encoding in names)
    path = tmp_path / "a.txt"
    lines = itertools.chain([text.encode()] * 5000, [text.encode(encoding)] * 2)
    path.write_bytes(b"\n".join(lines))
    assert likely_encoding(path) == encoding


@pytest.mark.parametrize(
    "data",
    [b"", b"plain", "天地玄黄".encode(), b"one \xff byte", "天地".encode() * 99 + b"\xe5"],
)
def test_nothing_is_guessed_of_utf8_or_a_few_bytes(tmp_path, data):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert likely_encoding(path) is None


@pytest.mark.parametrize(
    ("name", "known"),
    [("GBK", "gbk"), ("cp936", "gbk"), ("UTF8", "utf-8"), ("utf-8-sig", "utf-8"),
     ("Shift-JIS", "shift_jis"), ("UTF-16LE", "utf-16-le"), ("latin-1", "iso8859-1")],
)  # fmt: skip
def test_an_encoding_has_one_name(name, known):
    assert named_encoding(name) == known == named_encoding(known)


@pytest.mark.parametrize("name", ["gb18300", "hex", "idna", "unicode_escape", "", "a\0b", "mbcs"])
def test_what_is_no_encoding_of_files_is_refused(name):
    with pytest.raises(ValueError, match="should name an encoding of text") as caught:
        named_encoding(name)
    if name == "gb18300":
        assert str(caught.value).endswith("such as gb18030")
