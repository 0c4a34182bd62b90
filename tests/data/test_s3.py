"""Sources on S3, through s3fs, against a server of moto's that speaks S3 on the loopback.

`pip install 'bc2[s3]'`, then `pip install 'moto[s3]' flask flask-cors`: at once, and beside all of
the `dev` extra, pip takes many minutes to find a botocore for both.
"""

from __future__ import annotations

import gzip
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from bc2.cli import main
from bc2.data.corpus import read_corpus
from bc2.data.corpus_config import CorpusConfig, SourceConfig
from bc2.data.inputs import InputFile, inputs
from bc2.data.prep.prepare import PrepOptions, prepare

server = pytest.importorskip("moto.server", reason="needs moto[s3], flask and flask-cors")
s3fs = pytest.importorskip("s3fs", reason="needs s3fs")


def rows(name: str, count: int = 30) -> bytes:
    return b"".join(json.dumps({"text": f"{name} says {i}"}).encode() + b"\n" for i in range(count))


#: What lies in the bucket below web/, and, the same, on disk.
FILES = {
    "a.jsonl.zst": zstandard.compress(rows("one")) + zstandard.compress(rows("two")),
    "b.jsonl.zst": zstandard.compress(rows("three")),
    "deep/c.jsonl.gz": gzip.compress(rows("four")),
    "deep/_SUCCESS": b"",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system, with `FILES` and a Parquet file in s3://bucket/web and in tmp_path/web."""
    settings = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "BC2_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "web" / "deep").mkdir(parents=True)
    table = pa.table({"text": [f"row {i} says so" for i in range(20)]})
    pq.write_table(table, tmp_path / "web" / "p.parquet")
    for name, data in FILES.items():
        (tmp_path / "web" / name).write_bytes(data)
    _tell(endpoint, "reset")
    s3fs.S3FileSystem.clear_instance_cache()  # each test has a client of its own
    files = s3fs.S3FileSystem()
    files.mkdir("bucket")
    files.put(str(tmp_path / "web"), "bucket/web", recursive=True)
    yield files
    _tell(endpoint, "reset-auth", "inf")
    s3fs.S3FileSystem.clear_instance_cache()


def _tell(endpoint: str, what: str, data: str = "") -> None:
    address, kind = f"{endpoint}/moto-api/{what}", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(address, data.encode(), kind)).close()


def config(path: str) -> CorpusConfig:
    return CorpusConfig(sources=(SourceConfig(name="s", path=path),), heldout_fraction=0.1)


def made(path: str, out: Path, workers: int = 1) -> list[tuple[str, str, int]]:
    prepare(config(path), out, options=PrepOptions(workers=workers))
    found = [*read_corpus(out, "train"), *read_corpus(out, "heldout")]
    return sorted((d.text, d.origin_file, d.origin_row) for d in found)


@pytest.mark.parametrize("below", ["", "/*.jsonl.zst", "/**/*.gz", "/p.parquet"])
def test_objects_are_read_as_files_are(bucket, tmp_path, below):
    there = made(f"s3://bucket/web{below}", tmp_path / "there")
    assert there == made(f"{tmp_path}/web{below}", tmp_path / "here")
    counts = {"": 140, "/*.jsonl.zst": 90, "/**/*.gz": 30, "/p.parquet": 20}
    assert len(there) == counts[below]


def test_worker_processes_read_objects_too(bucket, tmp_path):
    there = made("s3://bucket/web/*.jsonl.zst", tmp_path / "there", workers=2)
    assert there == made(f"{tmp_path}/web/*.jsonl.zst", tmp_path / "here")


def keys(path: str) -> dict[str, InputFile]:
    return {file.name: file for file in inputs(config(path))}


def test_an_object_is_keyed_by_its_tag_however_it_was_found(bucket):
    listed, asked = keys("s3://bucket/web"), keys("s3://bucket/web/a.jsonl.zst")
    assert (
        asked["a.jsonl.zst"]
        == listed["a.jsonl.zst"]
        == keys("s3://bucket/*/a*")["web/a.jsonl.zst"]._replace(name="a.jsonl.zst")
    )
    assert listed["a.jsonl.zst"].size == len(FILES["a.jsonl.zst"])
    assert {file.sha256[:5] for file in listed.values()} == {"etag:"}
    bucket.pipe("bucket/web/a.jsonl.zst", FILES["a.jsonl.zst"])  # the same again, later
    assert keys("s3://bucket/web") == listed


def prep(folder: Path, path: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code and what was said by `bc2 data prep`."""
    recipe = folder / "s3.toml"
    recipe.write_text(
        'name = "s3"\n[corpus]\nheldout_fraction = 0.1\n'
        f'[[corpus.sources]]\nname = "s"\npath = "{path}"\n'
    )
    with pytest.raises(SystemExit) as caught:
        main(["data", "prep", str(recipe), "--quiet"])
    said = capsys.readouterr()
    return int(str(caught.value.code)), said.out.strip(), said.err


def test_a_changed_object_gives_a_new_corpus(bucket, tmp_path, capsys):
    code, first, _ = prep(tmp_path, "s3://bucket/web", capsys)
    assert code == 0
    code, again, said = prep(tmp_path, "s3://bucket/web", capsys)
    assert (code, again) == (0, first)
    assert "registered already" in said
    bucket.pipe("bucket/web/b.jsonl.zst", zstandard.compress(rows("other")))
    code, second, said = prep(tmp_path, "s3://bucket/web", capsys)
    assert code == 0
    assert second != first
    assert "registered already" not in said


@pytest.mark.parametrize("path", ["nobucket/web", "nobucket/*.jsonl", "bucket/no", "bucket/*.no"])
def test_what_is_not_there_is_named(bucket, tmp_path, capsys, path):
    code, _, said = prep(tmp_path, f"s3://{path}", capsys)
    assert code == 3
    assert "no such file, directory or glob" in said
    assert f"s3://{path}" in said


def _reader(iam: Any) -> dict[str, str]:
    """Keys of somebody who may list the bucket and read a.jsonl.zst alone."""
    may = [
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"},
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::bucket/web/a*"},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": may})
    iam.create_user(UserName="reader")
    iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=policy)
    found = iam.create_access_key(UserName="reader")["AccessKey"]
    return {
        "AWS_ACCESS_KEY_ID": found["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": found["SecretAccessKey"],
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("b.jsonl.zst", "cannot list these files: Forbidden"),
        ("*.jsonl.zst", "cannot read from this file system: "),
        ("*.parquet", "cannot read from this file system: "),
    ],
)
def test_an_object_that_may_not_be_read(
    bucket, endpoint, tmp_path, capsys, monkeypatch, name, says
):
    import boto3

    for key, value in _reader(boto3.client("iam")).items():
        monkeypatch.setenv(key, value)
    _tell(endpoint, "reset-auth", "0")
    s3fs.S3FileSystem.clear_instance_cache()
    assert prep(tmp_path, "s3://bucket/web/a.jsonl.zst", capsys)[0] == 0
    code, _, said = prep(tmp_path, f"s3://bucket/web/{name}", capsys)
    assert code == 3, said
    assert says in said
    assert "credentials" in said
    assert "s3://bucket/web/" in said
    assert len(list((tmp_path / "home").rglob("corpus.json"))) == 1


def test_a_wrong_key_and_a_server_that_is_not_there(
    bucket, endpoint, tmp_path, capsys, monkeypatch
):
    _tell(endpoint, "reset-auth", "0")
    code, _, said = prep(tmp_path, "s3://bucket/web", capsys)
    assert code == 3
    assert "Access Key Id you provided does not exist" in said
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    code, _, said = prep(tmp_path, "s3://bucket/web", capsys)
    assert code == 3, said
    assert "Could not connect to the endpoint URL" in said
