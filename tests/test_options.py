import errno
import os
from pathlib import Path

import pytest

from bc2.errors import UsageError
from bc2.options import output_file, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2 GiB", 2**31),
        ("2GiB", 2**31),
        ("500 MB", 500_000_000),
        ("1.5 KiB", 1536),
        ("1000000", 1_000_000),
        ("64 B", 64),
        (" 1 TB ", 10**12),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text, "--cache-memory") == size


@pytest.mark.parametrize(
    "text", ["", "two", "2 Gib", "2 gb", "-1 GB", "1e9", "1,000", "GiB", "0", "0.1"]
)
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="--cache-memory"):
        parse_bytes(text, "--cache-memory")


def test_a_file_that_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_file(Path("page.html"), "--out") == tmp_path / "page.html"
    assert output_file(Path("~/page.html"), "--out") == tmp_path / "page.html"
    (tmp_path / "page.html").write_text("older")
    assert output_file(tmp_path / "page.html", "--out").read_text() == "older"
    assert os.listdir(tmp_path) == ["page.html"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("folder", "--out is a directory"),
        ("none/page.html", "no such directory for --out"),
        ("page.html/other.html", "no such directory for --out"),
        ("pipe", "--out is not a file to write to"),
        ("x" * 250, "--out cannot be written: file name too long"),
        ("x" * 300, "--out cannot be written: file name too long"),
    ],
)
def test_a_file_that_cannot_be_written(tmp_path, name, told):
    (tmp_path / "folder").mkdir()
    (tmp_path / "page.html").touch()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=told):
        output_file(tmp_path / name, "--out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_that_may_not_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # the tests may run as root
    with pytest.raises(UsageError, match="--out cannot be written: permission denied"):
        output_file(tmp_path / "page.html", "--out")
