"""prepare: what is kept, what is dropped and why, which side it falls on, same bytes out."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.corpus import corpus_parts, read_corpus, read_part
from bc2.data.corpus_config import CorpusConfig, SourceConfig
from bc2.data.prep.prepare import PrepOptions, prepare
from bc2.data.prep.write_corpus import is_held_out
from bc2.errors import DataError, ResourceError

DATA = Path(os.environ.get("BC2_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def jsonl(rows: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def config(folder: Path, sources: dict[str, list[str]], **more: Any) -> CorpusConfig:
    made = []
    for name, texts in sources.items():
        path = folder / f"{name}.jsonl"
        path.write_bytes(jsonl({"text": text} for text in texts))
        made.append(SourceConfig(name=name, path=str(path), lang="en"))
    return CorpusConfig(sources=tuple(made), **more)


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_first_copy_survives_and_drops_are_counted(tmp_path):
    made = config(
        tmp_path,
        {"a": ["one", "two", "one", ""], "b": ["two", "three", "x"]},
        heldout_fraction=0,
        min_characters=2,
    )
    facts = prepare(made, tmp_path / "out")
    found = [(d.source, d.text, d.origin_row) for d in read_corpus(tmp_path / "out", "train")]
    assert found == [("a", "one", 1), ("a", "two", 2), ("b", "three", 2)]
    a, b = facts["sources"]
    assert a["drops"] == {
        "duplicate": {"documents": 1, "bytes": 3},
        "too_short": {"documents": 1, "bytes": 0},
    }
    assert b["drops"] == {
        "duplicate": {"documents": 1, "bytes": 3},
        "too_short": {"documents": 1, "bytes": 1},
    }
    assert facts["train"] == {"documents": 3, "bytes": 11, "characters": 11}
    assert facts == json.loads((tmp_path / "out" / "corpus.json").read_bytes())


@settings(max_examples=25, deadline=None)
@given(
    sources=st.fixed_dictionaries(
        {n: st.lists(st.text(max_size=4), min_size=1, max_size=30) for n in ("a", "b")}
    ),
    fraction=st.sampled_from([0.0, 0.3]),
    part_bytes=st.integers(1024, 4096),
)
def test_nothing_is_lost_but_what_is_counted(tmp_path_factory, sources, fraction, part_bytes):
    """Against brute force: distinct non-empty texts in order, and the books balance."""
    folder = tmp_path_factory.mktemp("h")
    sources["a"].append("always there, and trained on")
    sources["b"].append("held out at 0.3: 15")
    made = config(folder, sources, heldout_fraction=fraction, part_bytes=part_bytes)
    facts = prepare(made, folder / "out")
    seen: set[str] = set()
    for entry, (name, texts) in zip(facts["sources"], sources.items(), strict=True):
        kept = [t for t in dict.fromkeys(texts) if t and t not in seen]
        seen.update(kept)
        sides = {s: list(read_corpus(folder / "out", s, name)) for s in ("train", "heldout")}
        for side, documents in sides.items():
            wanted = [
                t
                for t in kept
                if is_held_out(hashlib.sha256(t.encode()).hexdigest()[:32], fraction)
                == (side == "heldout")
            ]
            assert [d.text for d in documents] == wanted
            assert entry[side]["documents"] == len(wanted)
            assert entry[side]["bytes"] == sum(len(t.encode()) for t in wanted)
            assert entry[side]["characters"] == sum(map(len, wanted))
        dropped = sum(d["documents"] for d in entry["drops"].values())
        assert entry["read"]["documents"] == len(texts) == len(kept) + dropped


def test_copies_fall_on_one_side_whatever_the_source_or_order(tmp_path):
    texts = [f"document {i}" for i in range(2000)]
    sides = []
    for number, order in enumerate((texts, texts[::-1], texts[1000:] + texts[:1000])):
        folder = tmp_path / str(number)
        folder.mkdir()
        split = {f"x{number}": order[:700], "y": order[700:]}
        prepare(config(folder, split, heldout_fraction=0.1), folder / "out")
        sides.append({d.text for d in read_corpus(folder / "out", "heldout")})
    assert sides[0] == sides[1] == sides[2]
    assert 150 < len(sides[0]) < 250  # 200, sigma 13.4


def test_the_split_is_read_from_the_low_half_of_the_id():
    """Fixed for ever: another rule would move documents between the sides."""
    assert is_held_out("f" * 16 + "0" * 16, 0.01)
    assert not is_held_out("0" * 16 + "f" * 16, 0.01)
    assert is_held_out("0" * 16 + "028f" + "0" * 12, 0.01)  # 0x028f / 0x10000 = 0.009995
    assert not is_held_out("0" * 16 + "0290" + "0" * 12, 0.01)
    assert not is_held_out("0" * 32, 0.0)


def test_the_same_bytes_out(tmp_path):
    texts = {"a": [f"text {i} " * (i % 50) for i in range(800)], "b": ["solo", "duo", "trio"]}
    made = config(tmp_path, texts, heldout_fraction=0.1, part_bytes=30_000)
    prepare(made, tmp_path / "one")
    for source in made.sources:  # elsewhere, later, compressed by nobody
        shutil.copy(source.path or "", tmp_path / f"copy-{source.name}.jsonl")
    prepare(made, tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "one")) > 8


def test_parts_are_as_large_as_asked_and_small_inside(tmp_path, monkeypatch):
    monkeypatch.setattr("bc2.data.corpus.ROW_GROUP_BYTES", 3000)
    texts = [f"{i:05d}" * 20 for i in range(500)]  # 100 bytes each
    prepare(config(tmp_path, {"a": texts}, heldout_fraction=0, part_bytes=10_000), tmp_path / "out")
    parts = corpus_parts(tmp_path / "out")
    assert [p.bytes for p in parts] == [10_000] * 5
    assert [p.file for p in parts] == [f"train/a/part-{i:05d}.parquet" for i in range(5)]
    groups = [len(group) for group in read_part(tmp_path / "out" / parts[0].file)]
    assert groups == [30, 30, 30, 10]


@pytest.mark.parametrize(
    ("sources", "settings_", "says"),
    [
        ({"a": []}, {}, "has no documents"),
        ({"a": ["x", ""]}, {"min_characters": 5}, r"every document was dropped \(too_short\)"),
        ({"a": ["one", "two"]}, {"heldout_fraction": 1e-9}, "no document is held out"),
        ({"a": ["one", "two"]}, {"heldout_fraction": 0.999999}, "no document is left for training"),
    ],
)
def test_an_empty_result_is_an_error_and_leaves_nothing(tmp_path, sources, settings_, says):
    with pytest.raises(DataError, match=says):
        prepare(config(tmp_path, sources, **settings_), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_an_existing_directory_empty(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": f"text {i}" * 30} for i in range(5000)) + b"broken\n")
    made = CorpusConfig(sources=(SourceConfig(name="a", path=str(path)),), part_bytes=10_000)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError) as caught:
        prepare(made, out)
    assert caught.value.where == f"{path}:5001"
    assert list(out.iterdir()) == []
    facts = prepare(made.model_copy(update={"malformed": "skip"}), out)
    assert facts["sources"][0]["drops"]["bad_json"] == {"documents": 1, "bytes": 7}


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "corpus.json")

    monkeypatch.setattr("bc2.data.prep.prepare.write_durably", full)
    with pytest.raises(ResourceError, match="disk full") as caught:
        prepare(config(tmp_path, {"a": ["a", "b"]}, heldout_fraction=0), tmp_path / "out")
    assert caught.value.exit_code == 6
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_something_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        prepare(config(tmp_path, {"a": ["a"]}), tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_reading_what_is_no_corpus(tmp_path, corpus):
    with pytest.raises(DataError, match="no corpus"):
        list(read_corpus(tmp_path, "train"))
    (tmp_path / "corpus.json").write_text("[]")
    with pytest.raises(DataError, match="no corpus"):
        list(read_corpus(tmp_path, "train"))
    with pytest.raises(DataError, match="it has zh"):
        list(read_corpus(corpus, "train", "zhh"))
    shutil.copytree(corpus, tmp_path / "copy")
    part = tmp_path / "copy" / corpus_parts(corpus)[1].file
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged"):
        list(read_corpus(tmp_path / "copy", "train"))


def test_facts_name_licence_and_origin(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    sources = (
        SourceConfig(name="a", path=str(tmp_path / "a.txt"), lang="en", licence="CC0"),
        SourceConfig(name="b", environment="python-docs", max_bytes=50_000),
    )
    facts = prepare(CorpusConfig(sources=sources, heldout_fraction=0), tmp_path / "out")
    a, b = facts["sources"]
    assert (a["lang"], a["licence"], a["origin"]) == ("en", "CC0", {"files": 1})
    assert (b["lang"], b["licence"]) == ("en", "PSF-2.0")
    assert b["origin"]["environment"] == "python-docs"
    assert b["origin"]["version"].startswith("3.")


def test_progress_adds_up(tmp_path):
    told: dict[str, list[float]] = {}
    totals: dict[str, float | None] = {}

    @contextmanager
    def bars(title, total, unit):
        totals[title] = total
        yield lambda advance, detail="": told.setdefault(title, []).append(advance)

    made = config(tmp_path, {"a": ["x" * 1000 + str(i) for i in range(3000)]})
    prepare(made, tmp_path / "out", bars=bars, options=PrepOptions(part_bytes=1_000_000))
    assert totals["reading"] == (tmp_path / "a.jsonl").stat().st_size
    for title in ("reading", "exact", "writing"):
        assert sum(told[title]) == totals[title], title
    assert totals["exact"] == 4  # parts


MEASURE = """
import re, sys
from pathlib import Path
from bc2.data.corpus_config import *
from bc2.data.prep.prepare import PrepOptions, prepare
import pyarrow.parquet
def peak():  # not ru_maxrss, which a child inherits
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
source = SourceConfig(name="a", path=sys.argv[1])
prepare(CorpusConfig(sources=(source,)), Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path):
    """400 MB of text take no more memory than 40 MB, but for the digests (KiB of peak RSS)."""
    peaks = []
    for count in (2_000, 20_000):
        with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as stream:
            for i in range(count):
                stream.write(jsonl([{"text": f"{i} " * (20_000 // len(f"{i} "))}]))
        out = tmp_path / f"out{count}"
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.jsonl.gz"), str(out)]
        peaks.append(int(subprocess.check_output(command)))
    assert peaks[1] < 1.25 * peaks[0] + 20_000 * 150 / 1024


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "corpus").is_dir(), reason="no shared data")
def test_real_exact_duplicates(tmp_path):
    """Every kept document of real books is distinct, and what was dropped was a copy."""
    source = SourceConfig(name="g", path=str(DATA / "corpus" / "en_gutenberg.jsonl.gz"))
    facts = prepare(CorpusConfig(sources=(source,)), tmp_path / "out")
    with gzip.open(source.path or "", "rt", encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    kept = {d.text for s in ("train", "heldout") for d in read_corpus(tmp_path / "out", s)}
    assert kept == set(texts)
    dropped = facts["sources"][0]["drops"].get("duplicate", {"documents": 0})["documents"]
    assert dropped == len(texts) - len(kept)
