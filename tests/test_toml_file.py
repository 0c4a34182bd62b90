"""Lines of keys, whatever stands around them."""

from __future__ import annotations

import codecs
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.errors import RecipeError
from bc2.toml_file import MAX_BYTES, TomlFile, is_lasting, read_toml


@given(st.integers(0, 20), st.lists(st.sampled_from(["", "# note", "k = [\n 1,\n]"]), max_size=6))
def test_line_of_survives_comments_and_multiline_values(pad: int, before: list[str]) -> None:
    lines = ["[a]", *[f"x{i} = {i}" for i in range(pad)]]
    used = [text.replace("k", f"k{i}") for i, text in enumerate(before)]
    text = "\n".join([*lines, *used, "wanted = [", "  1,", "]", "after = 2"])
    layer = TomlFile(Path("f"), text, tomllib.loads(text))
    line = layer.line_of(("a", "wanted"))
    assert line is not None
    assert text.splitlines()[line - 1] == "wanted = ["


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_bytes(codecs.BOM_UTF8 + 'a = "文"\r\n[b]\rc = 1\n'.encode())
    read = read_toml(path)
    assert read.data == {"a": "文", "b": {"c": 1}}
    assert read.line_of(("b", "c")) == 3


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("a = 1".encode("utf-16"), "UTF-16, not UTF-8"),
        ("a = 1".encode("utf-32"), "UTF-32, not UTF-8"),
        ("a = 1".encode("utf-16-le"), "UTF-16 or binary, not UTF-8"),
        ("a = 1".encode("utf-16-be"), "UTF-16 or binary, not UTF-8"),
        ('a = "文"'.encode("gbk"), "not UTF-8: byte 5"),
        (codecs.BOM_UTF8 + b'\n\na = "\xff"', "not UTF-8: byte 10"),
    ],
)
def test_another_encoding_is_named(data: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_bytes(data)
    with pytest.raises(RecipeError) as error:
        read_toml(tmp_path / "f.toml")
    assert error.value.what == what
    assert error.value.todo == "save it as UTF-8"
    if data.startswith(codecs.BOM_UTF8):
        assert str(error.value.where).endswith("f.toml:3")


def test_a_separator_of_lines_in_a_string_is_no_line(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text('a = "x\u2028y\x85z"\nb = 1\n', encoding="utf-8")
    assert read_toml(tmp_path / "f.toml").line_of(("b",)) == 2


def piped(data: bytes) -> Path:
    """The name of a pipe with something in it."""
    ours, theirs = os.pipe()
    os.write(theirs, data)
    os.close(theirs)
    return Path(f"/dev/fd/{ours}")


def test_a_pipe_is_read_once_and_known_after(tmp_path: Path) -> None:
    for number in (1, 2):  # another pipe may get the same descriptor
        path = piped(f"a = {number}".encode())
        assert not is_lasting(path)
        assert read_toml(path).data == read_toml(path).data == {"a": number}
        assert (read_toml(path).stem, read_toml(path).folder) == ("pipe", Path())
        os.close(int(path.name))


def test_what_cannot_be_a_recipe_is_refused(tmp_path: Path) -> None:
    empty = piped(b"")
    with pytest.raises(RecipeError, match="nothing came from it"):
        read_toml(empty)
    os.close(int(empty.name))
    with pytest.raises(RecipeError, match=f"longer than {MAX_BYTES >> 20} MiB"):
        read_toml(Path("/dev/zero"))
    ours, theirs = os.pipe()
    with pytest.raises(RecipeError, match="cannot read it: bad file descriptor"):
        read_toml(Path(f"/dev/fd/{theirs}"))
    os.close(ours)
    os.close(theirs)
