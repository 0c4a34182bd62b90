"""Which files a source is, in which order, and what their fingerprint depends on."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bc2.data import inputs as module
from bc2.data.corpus_config import CorpusConfig, SourceConfig
from bc2.data.documents import Drops
from bc2.data.inputs import DigestCache, file_layout, inputs, source_files
from bc2.data.readers import read_source
from bc2.errors import DataError


def source(path: Path | str, name: str = "s", **more: Any) -> SourceConfig:
    return SourceConfig(name=name, path=str(path), **more)


def names(config: SourceConfig) -> list[str]:
    return [file.name for file in source_files(config)]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("a.txt", "text"),
        ("a.txt.gz", "text"),
        ("a.jsonl", "lines"),
        ("a.json.gz", "lines"),
        ("a.ndjson.zst", "lines"),
        ("a.b.parquet", "parquet"),
        ("a.parquet.gz", None),
        ("a.csv", None),
        ("a.gz", None),
        ("txt", None),
    ],
)
def test_layout_of(name, layout):
    assert file_layout(name) == layout


def test_a_file_a_directory_and_a_glob(write, tmp_path):
    for name in ("b.txt", "a/z.jsonl", "a/b/c.parquet", "a.txt", "_SUCCESS", ".hidden/x.txt"):
        write(name, b"")
    root = tmp_path / "in"
    assert names(source(root / "b.txt")) == ["b.txt"]
    everything = ["a.txt", "a/b/c.parquet", "a/z.jsonl", "b.txt"]
    assert names(source(root)) == everything
    assert names(source(f"{root}/*.txt")) == ["a.txt", "b.txt"]
    assert names(source(f"{root}/a/**/*.parquet")) == ["b/c.parquet"]
    assert names(source(root, include=("*.txt",))) == ["a.txt", "b.txt"]
    assert names(source(root, exclude=("a/*",))) == ["a.txt", "b.txt"]


def test_a_file_with_wildcards_in_its_name_is_that_file(write):
    path = write("a[1].txt", b"x")
    assert names(source(path)) == ["a[1].txt"]


def test_links_are_followed_but_not_in_circles(write, tmp_path):
    write("a/x.txt", b"")
    (tmp_path / "in" / "a" / "back").symlink_to(tmp_path / "in")
    other = tmp_path / "other"
    other.mkdir()
    (other / "y.txt").write_bytes(b"")
    (tmp_path / "in" / "link").symlink_to(other)
    assert names(source(tmp_path / "in")) == ["a/x.txt", "link/y.txt"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("none.txt", "no such file"),
        ("*.jsonl", "has no files"),
        ("empty", "has no files"),
        ("odd", "cannot read a file of this kind: x.csv"),
        ("odd/x.csv", "cannot read a file of this kind"),
    ],
)
def test_nothing_to_read(write, tmp_path, path, says):
    write("odd/x.csv", b"")
    (tmp_path / "in" / "empty").mkdir()
    with pytest.raises(DataError, match=says):
        source_files(source(tmp_path / "in" / path))


def test_a_name_that_is_no_text(write, tmp_path):
    write("caf\udce9.txt", b"x")
    with pytest.raises(DataError, match="the name of a file is not UTF-8") as error:
        source_files(source(tmp_path / "in"))
    assert error.value.where == str(tmp_path / "in" / "caf\udce9.txt")


@pytest.mark.parametrize("path", ["in", "in/*", "in/**/*.txt", "in/gone.txt"])
@pytest.mark.parametrize("target", ["nowhere.txt", "gone.txt"])  # the second is a circle
def test_a_link_that_leads_nowhere_is_an_error_wherever_it_is_found(write, tmp_path, path, target):
    write("a.txt", b"x")
    (tmp_path / "in" / "gone.txt").symlink_to(target)
    with pytest.raises(DataError, match=f"a link that leads nowhere: {target}") as caught:
        source_files(source(tmp_path / path))
    assert caught.value.where == str(tmp_path / "in" / "gone.txt")
    if path != "in/gone.txt":
        assert names(source(tmp_path / path, exclude=("gone*",))) == ["a.txt"]


@pytest.mark.parametrize("path", ["in", "in/*", "in/pipe.txt"])
def test_a_pipe_is_not_waited_for(write, tmp_path, path):
    write("a.txt", b"x")
    os.mkfifo(tmp_path / "in" / "pipe.txt")
    with pytest.raises(DataError, match="a pipe and not a file") as caught:
        source_files(source(tmp_path / path))
    assert caught.value.where == str(tmp_path / "in" / "pipe.txt")


def test_a_local_dataset_has_files_that_can_be_keyed(write, tmp_path):
    path = write("train.jsonl", b"{}").parent
    (path / "more.jsonl").symlink_to("nowhere")
    with pytest.raises(DataError, match="a link that leads nowhere"):
        inputs(config(SourceConfig(name="h", hf=str(path))))
    (path / "more.jsonl").rename(path / "caf\udce9.jsonl")
    with pytest.raises(DataError, match="not UTF-8"):
        inputs(config(SourceConfig(name="h", hf=str(path))))


def test_parquet_has_no_encoding_to_name(write, tmp_path):
    write("a.txt", b"x")
    write("b.parquet", b"")
    with pytest.raises(DataError, match="Parquet is always in UTF-8"):
        source_files(source(tmp_path / "in", encoding="gbk"))
    assert names(source(tmp_path / "in", encoding="gbk", include=("*.txt",))) == ["a.txt"]


def config(*sources: SourceConfig) -> CorpusConfig:
    return CorpusConfig(sources=sources)


def test_inputs_are_content_not_place_or_time(write, tmp_path):
    first = write("one/a.txt", b"alpha")
    write("one/b.txt", b"beta")
    write("two/a.txt", b"alpha")
    second = write("two/b.txt", b"beta")
    os.utime(first, (1, 1))
    one = inputs(config(source(tmp_path / "in/one")))
    assert one == inputs(config(source(tmp_path / "in/two")))
    assert one[0] == ("s", "a.txt", 5, hashlib.sha256(b"alpha").hexdigest())
    second.write_bytes(b"betA")
    assert one != inputs(config(source(tmp_path / "in/two")))


def age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files just written count as settled."""
    monkeypatch.setattr(module, "_SETTLED_NS", -(10**18))


def test_digests_are_remembered_until_a_file_changes(write, tmp_path, monkeypatch):
    age(monkeypatch)
    path, cache = write("a.txt", b"alpha"), tmp_path / "digests.json"
    hashed = []
    real = module.sha256_file
    monkeypatch.setattr(module, "sha256_file", lambda p: hashed.append(p) or real(p))
    one = inputs(config(source(path)), cache)
    assert inputs(config(source(path)), cache) == one
    assert len(hashed) == 1
    stat = path.stat()
    path.write_bytes(b"omega")  # same size, and the old time put back
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert inputs(config(source(path)), cache)[0].sha256 == hashlib.sha256(b"omega").hexdigest()
    assert len(hashed) == 2


def test_a_file_just_written_is_not_remembered(write, tmp_path):
    cache = DigestCache(tmp_path / "digests.json")
    cache.digest(write("a.txt", b"alpha"))
    cache.save()
    assert not (tmp_path / "digests.json").exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", json.dumps({"x": 3}).encode()])
def test_a_damaged_cache_only_costs_time(write, tmp_path, damage, monkeypatch):
    age(monkeypatch)
    cache = tmp_path / "digests.json"
    cache.write_bytes(damage)
    path = write("a.txt", b"alpha")
    assert inputs(config(source(path)), cache) == inputs(config(source(path)))
    assert str(path.resolve()) in json.loads(cache.read_bytes())


def test_hugging_face_sources(tmp_path, write):
    commit = "0123456789abcdef" * 2 + "01234567"
    pinned = SourceConfig(name="h", hf="owner/set", revision=commit)
    assert inputs(config(pinned)) == [("h", "hf:owner/set", 0, f"git:{commit}")]
    path = write("set/train.jsonl", b"{}")
    local = inputs(config(SourceConfig(name="h", hf=str(path.parent))))
    assert [(i.name, i.size) for i in local] == [("train.jsonl", 2)]


def test_environment_sources_are_keyed_by_their_files():
    found = inputs(config(SourceConfig(name="p", environment="python-source")))
    assert len(found) > 300
    assert "json/decoder.py" in {i.name for i in found}


def test_a_hub_that_cannot_be_reached(monkeypatch):
    import huggingface_hub

    class Lost(Exception):
        """As an HTTP library's: neither OSError nor ValueError."""

    def lost(*args: object, **kwargs: object) -> None:
        raise Lost("name not known\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lost)
    with pytest.raises(DataError, match="the hub about this dataset: name not known") as caught:
        inputs(config(SourceConfig(name="h", hf="owner/set", revision="main")))
    assert "set revision to a full commit" in str(caught.value)


def test_files_of_another_file_system_are_read_alike(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    rows = b"".join(json.dumps({"text": f"document {i}"}).encode() + b"\n" for i in range(5))
    memory.pipe("/web/a.jsonl", rows)
    memory.pipe("/web/deep/b.jsonl.gz", gzip.compress(rows))
    memory.pipe("/web/_SUCCESS", b"")
    table = pa.table({"text": [f"row {i}" for i in range(3)]})
    with memory.open("/web/c.parquet", "wb") as stream:
        pq.write_table(table, stream)
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.jsonl").write_bytes(rows)
    (tmp_path / "deep" / "b.jsonl.gz").write_bytes(gzip.compress(rows))
    pq.write_table(table, tmp_path / "c.parquet")

    def read(path: str) -> list[tuple[str, str, int]]:
        source = SourceConfig(name="s", path=path)
        found = read_source(source, Drops("s", "stop"))
        return [(d.text, d.origin_file, d.origin_row) for d in found]

    assert read("memory://web") == read(str(tmp_path)) == read(f"file://{tmp_path}")
    assert read("memory://web/*.jsonl") == read(f"{tmp_path}/*.jsonl")
    assert read("memory://web/c.parquet") == [(f"row {i}", "c.parquet", i + 1) for i in range(3)]
    before = inputs(CorpusConfig(sources=(SourceConfig(name="s", path="memory://web/a.jsonl"),)))
    memory.pipe("/web/a.jsonl", rows + rows)
    after = inputs(CorpusConfig(sources=(SourceConfig(name="s", path="memory://web/a.jsonl"),)))
    assert before[0].sha256.startswith("ukey:")
    assert before != after


@pytest.mark.parametrize("url", ["memory://nothing/here", "nosuch://bucket/x.jsonl"])
def test_an_address_with_nothing_behind_it(url):
    with pytest.raises(DataError) as caught:
        source_files(SourceConfig(name="s", path=url))
    assert caught.value.where == url
