"""Clusters against plain sums; parts, processes and numbers of threads do not change them."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.settings import ClustersSettings
from bc2.data.prep.stages import clusters as module
from bc2.data.prep.stages.clusters import ClustersStage, excerpt, fit, terms
from bc2.data.prep.text import embedding
from bc2.errors import DataError, UsageError

TOPICS = {
    "sea": ["ship", "sail", "wave", "anchor", "harbour", "tide", "captain", "storm", "reef"],
    "law": ["court", "judge", "statute", "appeal", "verdict", "clause", "lawyer", "trial", "oath"],
    "诗": [*"春江潮水连海平明月共生滟滟随波千万里何处"],
}


def texts_of(each: int) -> list[tuple[str, str]]:
    """(topic, text) pairs: words of one topic, and some words that all texts have."""
    rng = np.random.default_rng(3)
    found = []
    for number in range(each):
        for topic, words in TOPICS.items():
            glue = "" if topic == "诗" else " "
            chosen = rng.choice(words, 30)
            found.append((topic, f"the page {number} and more: {glue.join(chosen)}"))
    return found


SMALL = ClustersSettings(clusters=3, dimensions=8, sample=60)


def test_topics_come_apart(records, run_stage):
    pairs = texts_of(40)
    outcomes, facts = run_stage(ClustersStage(SMALL), [records([text for _, text in pairs])])
    table = outcomes[0].table
    assert table.schema.field("cluster").type == pa.int32()
    together = Counter(zip((t for t, _ in pairs), table["cluster"].to_pylist(), strict=True))
    assert len(together) == 3
    assert set(together.values()) == {40}
    assert facts["sample"] == 60
    for entry in facts["clusters"]:
        [topic] = [t for (t, number) in together if number == entry["cluster"]]
        assert entry["documents"] == 40
        assert entry["bytes"] == sum(len(x.encode()) for t, x in pairs if t == topic)
        assert len(entry["terms"]) >= 9
        assert all(set(name) <= set(TOPICS[topic]) or name in TOPICS[topic]
                   for name in entry["terms"])  # fmt: skip
    assert len(outcomes[0].removed) == 0


def test_parts_make_no_difference(records, run_stage):
    texts = [text for _, text in texts_of(30)]
    whole, facts = run_stage(ClustersStage(SMALL), [records(texts)])
    for size in (1, 7, 50):
        tables = [records(texts[i : i + size], first=i) for i in range(0, len(texts), size)]
        tables.insert(1, records([]))
        parts, again = run_stage(ClustersStage(SMALL), tables)
        assert again == facts
        assert pa.concat_tables(part.table for part in parts).equals(whole[0].table)


def test_a_cluster_is_the_largest_sum_over_terms():
    """Compares with sums of rows, one term at a time."""
    texts = [text for _, text in texts_of(20)]
    fitted = fit(texts, SMALL)
    row = {term: number for number, term in enumerate(fitted.terms)}
    others = ["storm at sea", "春江花月夜", "nothing known", "", *texts]
    for text, label in zip(others, fitted.assign(others, SMALL), strict=True):
        sums = [0] * fitted.matrix.shape[1]
        for term, count in Counter(terms(text)).items():
            for number in range(len(sums)):
                if term in row:
                    sums[number] += round(64 * (1 + np.log(count))) * int(
                        fitted.matrix[row[term], number]
                    )
        assert label == sums.index(max(sums))
    assert np.abs(fitted.matrix).max() <= 2**20


@given(st.text(alphabet="aB_é9 ,ツ天地玄\n", max_size=40))
@settings(max_examples=300, deadline=None)
def test_terms_character_by_character(text):
    def kind(c: str) -> str:
        return "cjk" if c in "ツ天地玄" else "letter" if c in "abé" else ""

    wanted, run = [], ""
    for c in [*text.lower(), " "]:
        if run and kind(c) != kind(run[-1]):
            if kind(run[-1]) == "cjk":
                wanted += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
            elif len(run) > 1:
                wanted.append(run)
            run = ""
        if kind(c):
            run += c
    assert sorted(terms(text)) == sorted(wanted)


@given(st.text(max_size=300), st.integers(8, 100))
def test_an_excerpt_is_spread_over_the_text(text, characters):
    found = excerpt(text, characters)
    if len(text) <= characters:
        assert found == text
        return
    length = characters // 8
    assert found.startswith(text[:length])
    assert found.endswith(text[len(text) - length :])
    assert len(found) == 8 * length + 7


def test_the_sample_is_of_the_lowest_hashes(records, run_stage, monkeypatch):
    texts = [f"word{'abc'[i % 3]} tale{i}" for i in range(200)]
    seen: list[list[str]] = []
    real = module.fit
    monkeypatch.setattr(module, "fit", lambda t, s: seen.append(t) or real(t, s))
    found = ClustersSettings(sample=50, clusters=2, seed=5)
    stage = ClustersStage(found)
    tables = [records(texts[:90]), records(texts[90:], first=90)]
    run_stage(stage, tables)
    ranks = {}
    for table in tables:
        keys = stage.keys(table)
        assert keys.schema.names == ["pos", "rank"]
        ranks.update(zip(keys["pos"].to_pylist(), keys["rank"].to_pylist(), strict=True))
    lowest = sorted(sorted(ranks, key=lambda pos: (ranks[pos], pos))[:50])
    assert seen == [[texts[pos] for pos in lowest]]
    other = ClustersStage(ClustersSettings(sample=50, seed=6)).keys(tables[0])
    assert other["rank"] != stage.keys(tables[0])["rank"]


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["one document alone"],
        ["", "1 2 3", "?!"],
        ["same same"] * 5,
        ["天", "地"],
        ["ab", "cd"],
    ],
)
def test_little_text(texts, records, run_stage):
    outcomes, facts = run_stage(ClustersStage(ClustersSettings()), [records(texts), records([], 9)])
    found = outcomes[0].table["cluster"].to_pylist()
    assert all(0 <= number < len(facts["clusters"]) for number in found)
    assert sum(entry["documents"] for entry in facts["clusters"]) == len(texts)
    assert len(outcomes[1].table) == 0


def test_a_verdict_of_other_documents_is_refused(records):
    verdict = pa.table({"pos": [7], "cluster": pa.array([0], pa.int32())})
    with pytest.raises(DataError, match="other documents"):
        ClustersStage(SMALL).apply(records(["x"]), verdict)


FIT = """
import hashlib, json, sys
from bc2.data.prep.stages.clusters import fit
from bc2.data.prep.settings import ClustersSettings
if __name__ == "__main__":
    fitted = fit(json.load(sys.stdin), ClustersSettings(clusters=8, dimensions=32))
    text = json.dumps([fitted.terms, fitted.names]).encode()
    print(hashlib.sha256(text + fitted.matrix.tobytes()).hexdigest())
"""


def test_another_process_with_more_threads_fits_the_same():
    texts = [text for _, text in texts_of(60)]
    found = set()
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        run = subprocess.run(
            [sys.executable, "-c", FIT], input=json.dumps(texts), text=True, check=True,
            capture_output=True, env={**os.environ, **dict.fromkeys(names, threads)},
        )  # fmt: skip
        found.add(run.stdout)
    fitted = fit(texts, ClustersSettings(clusters=8, dimensions=32))
    text = json.dumps([fitted.terms, fitted.names]).encode()
    here = hashlib.sha256(text + fitted.matrix.tobytes()).hexdigest()
    assert found == {f"{here}\n"}


# -- a model's embeddings ------------------------------------------------------------------


class FakeModel:
    """Three topics on three axes."""

    def __init__(self, name: str, device: str):
        assert device == "cpu"

    def encode(self, text: str, normalize_embeddings: bool, show_progress_bar: bool):
        assert normalize_embeddings
        counts = [1.0 + sum(text.count(word) for word in words) for words in TOPICS.values()]
        return np.array(counts, np.float32) / np.float32(np.linalg.norm(counts))

    def get_sentence_embedding_dimension(self) -> int:
        return 3


def test_embeddings_of_a_model(records, run_stage, monkeypatch):
    fake = types.ModuleType("sentence_transformers")
    fake.SentenceTransformer = FakeModel
    fake.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
    embedding._model.cache_clear()
    pairs = texts_of(20)
    stage = ClustersStage(SMALL.model_copy(update={"model": "topics"}))
    stage.check()
    outcomes, facts = run_stage(stage, [records([text for _, text in pairs])])
    embedding._model.cache_clear()
    labels = outcomes[0].table["cluster"].to_pylist()
    assert len(set(zip((t for t, _ in pairs), labels, strict=True))) == 3
    assert all(entry["terms"] for entry in facts["clusters"])


def test_a_model_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install sentence-transformers"):
        ClustersStage(ClustersSettings(model="a/b")).check()
    monkeypatch.setattr(embedding, "find_spec", lambda name: object())
    with pytest.raises(DataError, match="no such model"):
        ClustersStage(ClustersSettings(model="./none")).check()


def test_the_files_of_a_model_are_keyed(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "w.bin").write_bytes(b"x")
    found = ClustersStage(ClustersSettings(model=str(tmp_path))).digests()
    assert found == {"deep/w.bin": hashlib.sha256(b"x").hexdigest()}
    assert ClustersStage(ClustersSettings(model="a/b")).digests() == {}
    assert ClustersStage(ClustersSettings()).digests() == {}


REAL = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "corpus"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no real text here: set BC2_TEST_DATA")
def test_real_text_comes_apart_by_source(records, run_stage):
    """Law, verse, code and manuals: most documents of a cluster are from one source."""
    texts, sources = [], []
    for path in sorted(REAL.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for _, line in zip(range(300), lines, strict=False):
                texts.append(json.loads(line)["text"])
                sources.append(path.name)
    outcomes, _ = run_stage(ClustersStage(ClustersSettings(clusters=16)), [records(texts)])
    labels = outcomes[0].table["cluster"].to_pylist()
    counts = Counter(zip(labels, sources, strict=True))
    purest = sum(max(n for (c, _), n in counts.items() if c == label) for label in set(labels))
    assert purest / len(texts) > 0.8
