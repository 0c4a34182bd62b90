"""Shards hold what the tokenizer says, whatever the workers, and survive being killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from bc2.data import tokenize as module
from bc2.data.corpus import CorpusPart, corpus_parts, read_corpus
from bc2.data.documents import Document, SourceRow
from bc2.data.shards import TokenShards
from bc2.data.tokenize import default_workers, tokenize
from bc2.errors import DataError, ResourceError, RunFailed
from bc2.tokenizer.tokenizer import Tokenizer


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_shards_hold_the_documents_in_order(corpus, tokens, tokenizer_path):
    tokenizer = Tokenizer.load(tokenizer_path)
    shards = TokenShards.open(tokens)
    for split in ("train", "heldout"):
        assert shards.sources(split) == ["en", "zh"]
        for source in shards.sources(split):
            documents = list(read_corpus(corpus, split, source))
            wanted = [i for d in documents for i in [*tokenizer.encode(d.text), tokenizer.eos_id]]
            n = shards.num_tokens(split, source)
            assert shards.window(split, source, 0, n).tolist() == wanted
            assert shards.num_documents(split, source) == len(documents)
            assert shards.num_bytes(split, source) == sum(len(d.text.encode()) for d in documents)


def test_the_index_adds_up(corpus, tokens, tokenizer_path):
    facts = json.loads((tokens / "tokens.json").read_bytes())
    tokenizer = Tokenizer.load(tokenizer_path)
    assert (facts["dtype"], facts["vocab_size"], facts["eos_id"], facts["tokenizer"]) == (
        "<u2",
        1024,
        tokenizer.eos_id,
        tokenizer.digest,
    )
    for split, sources in facts["splits"].items():
        assert facts["tokens"][split] == sum(e["tokens"] for e in sources.values())
        for entry in sources.values():
            for unit in ("tokens", "documents", "bytes"):
                assert entry[unit] == sum(shard[unit] for shard in entry["shards"])
    named = {s["file"] for e in facts["splits"].values() for x in e.values() for s in x["shards"]}
    assert named | {"tokens.json"} == set(tree(tokens))
    assert len(named) == len(corpus_parts(corpus))


def test_two_processes_give_the_same_bytes(corpus, tokens, tokenizer_path, tmp_path):
    told: list[float] = []
    facts = tokenize(
        corpus,
        tokenizer_path,
        tmp_path / "out",
        work=tmp_path / "work",
        workers=2,
        progress=lambda n, detail="": told.append(n),
    )
    assert tree(tmp_path / "out") == tree(tokens)
    assert sum(told) == sum(e["bytes"] for s in facts["splits"].values() for e in s.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_moves_within_a_part(long_corpus, tokenizer_path, tmp_path, monkeypatch, workers):
    """Many times a part, never beyond what there is, and at once for what an earlier run did."""
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    root, work = long_corpus / "corpus", tmp_path / "work"
    parts = corpus_parts(root)
    whole = sum(part.bytes for part in parts)
    told: list[tuple[float, str]] = []

    def run(out: str) -> None:
        told.clear()
        tokenize(
            root, tokenizer_path, tmp_path / out, work=work, workers=workers,
            progress=lambda n, detail="": told.append((n, detail)),
        )  # fmt: skip

    run("one")
    moves = [n for n, _ in told if n]
    assert sum(moves) == whole
    assert min(moves) > 0
    assert max(moves) <= workers * max(part.bytes for part in parts)
    assert len(moves) > 2 * len(parts)
    assert re.fullmatch(r"\d+\.\d MB/s, 0:\d\d:\d\d left", told[-1][1])
    run("two")
    assert sum(n for n, _ in told) == whole
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


def test_runs_of_a_part_are_its_documents_in_order(monkeypatch):
    monkeypatch.setattr(module, "_RUN_BYTES", 10)
    texts = ["é" * 4, "a", "b", "", "c" * 30]
    documents = [
        Document.of(SourceRow.of(text, "f", row), "s", "en") for row, text in enumerate(texts, 1)
    ]
    runs = list(module._runs(documents))
    assert runs == [(["é" * 4, "a", "b"], 10), (["", "c" * 30], 30)]
    assert list(module._runs([])) == []


def test_the_time_left_is_of_the_last_half_minute(monkeypatch):
    """What an earlier run did counts at once, and is soon no part of the speed."""
    clock = iter([0.0, 0.0, 10.0, 20.0, 31.0, 40.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    told: list[tuple[float, str]] = []
    meter = module._Meter(lambda n, detail="": told.append((n, detail)), 1_000_000_000)
    for done in (900_000_000, 910_000_000, 920_000_000, 931_000_000, 940_000_000):
        meter.at(done)
    assert told[1] == (10_000_000, "91.0 MB/s, 0:00:01 left")
    assert told[-1] == (9_000_000, "1.0 MB/s, 0:01:00 left")


def test_finished_shards_are_not_made_again(corpus, tokens, tokenizer_path, tmp_path, monkeypatch):
    work = tmp_path / "work"
    tokenize(corpus, tokenizer_path, tmp_path / "one", work=work, workers=1)
    made: list[str] = []
    real = module._encode
    monkeypatch.setattr(module, "_encode", lambda p, *a: made.append(p.name) or real(p, *a))
    tokenize(corpus, tokenizer_path, tmp_path / "two", work=work, workers=1)
    assert made == []
    parts = corpus_parts(corpus)
    names = [work / module.shard_name(part) for part in parts]
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "two")
    flipped = bytearray(names[0].read_bytes())
    flipped[7] ^= 1
    names[0].write_bytes(flipped)  # damaged
    names[1].with_suffix(".json").unlink()  # killed before the sidecar
    names[2].unlink()  # lost
    sidecar = names[3].with_suffix(".json")  # of another corpus
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "part": "0" * 64}))
    tokenize(corpus, tokenizer_path, tmp_path / "three", work=work, workers=1)
    assert made == [Path(part.file).name for part in parts[:4]]
    assert tree(tmp_path / "three") == tree(tokens)


def test_another_tokenizer_makes_its_own(corpus, tokenizer_path, tmp_path):
    work = tmp_path / "work"
    tokenize(corpus, tokenizer_path, tmp_path / "one", work=work, workers=1)
    tokenizer = Tokenizer.load(tokenizer_path)
    part = corpus_parts(corpus)[0]
    final = work / module.shard_name(part)
    digest = hashlib.sha256((corpus / part.file).read_bytes()).hexdigest()
    sidecar = final.with_suffix(".json")
    assert module._finished(final, sidecar, digest, tokenizer.digest) is not None
    assert module._finished(final, sidecar, digest, "another") is None


RUN = """
import sys, time
from pathlib import Path
from bc2.data import tokenize as module
corpus, model, out, work, workers, pause = sys.argv[1:]
real = module.make_shard
if __name__ == "__main__":
    def slow(*args, **kwargs):
        time.sleep(float(pause))
        return real(*args, **kwargs)
    module.make_shard = slow
    facts = module.tokenize(Path(corpus), Path(model), Path(out), work=Path(work),
                            workers=int(workers))
"""


def test_a_killed_run_goes_on(corpus, tokens, tokenizer_path, tmp_path):
    """SIGKILL at several moments; what was finished is kept, the result is the same."""
    out, work = tmp_path / "out", tmp_path / "work"
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), corpus, tokenizer_path, out, work, "1", "0.1"]
    finished = []
    for goal in (1, 3, 5):
        run = subprocess.Popen(list(map(str, command)))
        while len(list(work.rglob("*.json"))) < goal:
            assert run.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        run.kill()
        run.wait()
        finished.append({p: p.stat().st_mtime_ns for p in work.rglob("shard-*.bin")})
        assert not out.exists() or not (out / "tokens.json").exists()
    assert finished[0].items() <= finished[1].items() <= finished[2].items()
    shutil.rmtree(out, ignore_errors=True)
    tokenize(corpus, tokenizer_path, out, work=work, workers=1)
    assert tree(out) == tree(tokens)
    assert finished[2].items() <= {p: p.stat().st_mtime_ns for p in work.rglob("*.bin")}.items()


LONG = """
import signal, sys
from pathlib import Path
from bc2.data.tokenize import tokenize
if __name__ == "__main__":
    # a shell starts background jobs with Ctrl-C ignored, and so this test where it runs in one
    signal.signal(signal.SIGINT, signal.default_int_handler)
    root, model = Path(sys.argv[1]), Path(sys.argv[2])
    tokenize(root / "corpus", model, root / "out", work=root / "work", workers=2)
"""


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory) -> Path:
    """Seconds of work for two processes."""
    from bc2.data.corpus_config import CorpusConfig, SourceConfig
    from bc2.data.prep.prepare import prepare

    root = tmp_path_factory.mktemp("long")
    source = SourceConfig(name="p", environment="python-source")
    prepare(CorpusConfig(sources=(source,), part_bytes=3_000_000), root / "corpus")
    return root


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(long_corpus, tokenizer_path, tmp_path, how):
    (tmp_path / "corpus").symlink_to(long_corpus / "corpus")
    script = tmp_path / "run.py"
    script.write_text(LONG)
    command = [sys.executable, str(script), str(tmp_path), str(tokenizer_path)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "work").rglob("*.tmp")):
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.01)
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) >= 2
    os.killpg(run.pid, how) if how == signal.SIGINT else run.kill()
    run.wait(30)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert not (tmp_path / "out" / "tokens.json").exists()
    if how == signal.SIGINT:
        assert list((tmp_path / "work").rglob("*.tmp")) == []
        assert b"SpawnProcess" not in run.stderr.read()  # no tracebacks of workers


def test_a_dead_worker_is_an_error_that_says_so(long_corpus, tokenizer_path, tmp_path):
    def kill(advance: float, detail: str = "") -> None:
        if not list(work.rglob("shard-*.json")):
            return
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):  # called again: it is dead already
                if "spawn_main" in " ".join(child.cmdline()):  # not the resource tracker
                    child.kill()

    root, work = long_corpus / "corpus", tmp_path / "work"
    with pytest.raises(ResourceError, match="process died") as caught:
        tokenize(root, tokenizer_path, tmp_path / "out", work=work, workers=2, progress=kill)
    assert caught.value.exit_code == 6
    assert not (tmp_path / "out").exists()
    assert list(work.rglob("shard-*.json"))


def test_an_error_in_a_worker_is_the_error_of_the_run(corpus, tokenizer_path, tmp_path):
    """What, where and exit code come through the process border."""
    broken = tmp_path / "corpus"
    shutil.copytree(corpus, broken)
    part = broken / corpus_parts(corpus)[2].file
    part.write_bytes(part.read_bytes()[:-50])
    with pytest.raises(DataError, match="damaged") as caught:
        tokenize(broken, tokenizer_path, tmp_path / "out", work=tmp_path / "work", workers=2)
    assert caught.value.where == str(part)
    assert not (tmp_path / "out").exists()


def test_a_corpus_that_lies_about_itself(corpus, tokenizer_path, tmp_path):
    broken = tmp_path / "corpus"
    shutil.copytree(corpus, broken)
    facts = json.loads((broken / "corpus.json").read_text())
    facts["sources"][0]["train"]["parts"][0]["documents"] += 1
    (broken / "corpus.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"as corpus\.json says"):
        tokenize(broken, tokenizer_path, tmp_path / "out", work=tmp_path / "work", workers=1)


@pytest.mark.parametrize("ids", [[5, 2, 6, 2], [5, 6, 7, 8], [5, 2000, 7, 2]])
def test_ids_that_cannot_be(ids, tokenizer_path):
    tokenizer = Tokenizer.load(tokenizer_path)
    assert tokenizer.eos_id == 2
    with pytest.raises(RunFailed, match="outside its vocabulary, or EOS inside"):
        module._check_ids(np.array(ids), np.array([4]), tokenizer, Path("part"))


def test_nothing_to_tokenize(corpus, tokenizer_path, tmp_path):
    with pytest.raises(DataError, match="no corpus"):
        tokenize(tmp_path, tokenizer_path, tmp_path / "out", work=tmp_path / "work")
    with pytest.raises(DataError):
        tokenize(corpus, tmp_path / "none.model", tmp_path / "out", work=tmp_path / "work")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        tokenize(corpus, tokenizer_path, tmp_path / "out", work=tmp_path / "work")


def test_default_workers_are_worth_their_start():
    cores = len(os.sched_getaffinity(0))
    assert default_workers([CorpusPart("train", "s", "f", 1, 10**6)] * 9) == 1
    assert default_workers([CorpusPart("train", "s", "f", 1, 10**9)] * 9) == cores


def test_shards_of_a_large_vocabulary_are_four_bytes():
    assert module.token_dtype(65_536).str == "<u2"
    assert module.token_dtype(65_537).str == "<u4"
