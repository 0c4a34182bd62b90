"""Files below a folder and in archives: bounded, never unpacked, told by name when damaged."""

from __future__ import annotations

import gzip
import hashlib
import re
import zipfile
from pathlib import Path

import pytest

from bc2.errors import DataError
from bc2.harness import release_files
from bc2.harness.release_files import MAX_DEPTH, ReleaseFile, files_below, sha256_and_size

ANY = re.compile("")


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


def test_files_and_members_have_names_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "one.csv").write_bytes(b"x,y\n\n1,2\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "two.csv").write_text("")
    archive(tmp_path / "a" / "z.zip", {"dev/three.csv": b"1\n", "__MACOSX/._three.csv": b""})
    found = files_below(tmp_path, "x", ANY)
    assert [file.name for file in found] == ["a/b/one.csv", "a/z.zip", "a/z.zip/dev/three.csv"]
    assert [file.stored for file in found] == ["a/b/one.csv", "a/z.zip", "a/z.zip"]
    assert list(found[0].records()) == [["x", "y"], ["1", "2"]]
    assert list(found[2].records()) == [["1"]]
    assert found[2].where == f"{tmp_path}/a/z.zip/dev/three.csv"
    data = (tmp_path / "a" / "b" / "one.csv").read_bytes()
    assert sha256_and_size(found[0].path) == (hashlib.sha256(data).hexdigest(), len(data))
    # An archive that is not asked for is not opened.
    (tmp_path / "other.zip").write_bytes(b"no archive")
    assert len(files_below(tmp_path, "x", re.compile("^x/a/"))) == 4


def test_it_is_looked_only_so_deep(tmp_path: Path) -> None:
    at = tmp_path
    for depth in range(MAX_DEPTH + 2):
        (at / f"{depth}.csv").write_text("")
        at = at / "x"
        at.mkdir()
    assert [file.path.stem for file in files_below(tmp_path, "x", ANY)] == [
        str(depth) for depth in range(MAX_DEPTH + 1)
    ]


def test_a_name_that_climbs_out_is_only_a_name(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret.csv").write_text("secret")
    archive(inside / "z.zip", {"../secret.csv": b"member\n", "/etc/passwd": b"member\n"})
    climbing = [file for file in files_below(inside, "x", ANY) if file.member]
    assert [list(file.records()) for file in climbing] == [[["member"]]] * 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "secret.csv", "z.zip"]


def test_what_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_files, "MAX_FILE_BYTES", 1000)
    archive(tmp_path / "z.zip", {"a.csv": b"x" * 1001, "b.csv": b"x" * 1000})
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"x" * 1001))
    fits = {file.name: file for file in files_below(tmp_path, "x", ANY)}
    assert len(fits["z.zip/b.csv"].contents()) == 1000
    for name in ("z.zip/a.csv", "c.csv.gz"):
        with pytest.raises(DataError, match="larger than 1,000 bytes"):
            fits[name].contents()
    monkeypatch.setattr(release_files, "MAX_FILES", 2)
    with pytest.raises(DataError, match="more than 2 files"):
        files_below(tmp_path, "x", ANY)


def test_a_compressed_member(tmp_path: Path) -> None:
    path = archive(tmp_path / "z.zip", {"a.jsonl.gz": gzip.compress(b'{"a": 1}\n'), "b.gz": b"no"})
    file = ReleaseFile("z.zip/a.jsonl.gz", path, "a.jsonl.gz")
    assert list(file.rows()) == [(1, {"a": 1})]
    with pytest.raises(DataError, match="damaged"):
        ReleaseFile("z.zip/b.gz", path, "b.gz").contents()


def test_damaged_archives_are_told(tmp_path: Path) -> None:
    path = archive(tmp_path / "z.zip", {"a.csv": b"0123456789" * 50})
    data = bytearray(path.read_bytes())
    data[40] ^= 0xFF
    path.write_bytes(data)
    (file,) = (file for file in files_below(tmp_path, "x", ANY) if file.member)
    with pytest.raises(DataError, match="archive is damaged") as caught:
        file.contents()
    assert caught.value.where == f"{path}/a.csv"
    path.write_bytes(data[:-30])
    with pytest.raises(DataError, match="archive is damaged"):
        files_below(tmp_path, "x", ANY)


def test_another_encoding_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"q,a\n" + "题,甲\n".encode("gb18030"))
    with pytest.raises(DataError, match="not UTF-8: byte 4") as caught:
        ReleaseFile("a.csv", path).contents()
    assert caught.value.where == f"{path}:2"
    assert "iconv -f GB18030" in str(caught.value.todo)
