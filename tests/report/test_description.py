"""Descriptions of corpora and token shards against a count document by document."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bc2.data.corpus import read_corpus
from bc2.data.corpus_config import CorpusConfig, SourceConfig
from bc2.data.prep.funnel import Histogram
from bc2.data.prep.prepare import prepare
from bc2.data.prep.write_corpus import LENGTH_EDGES
from bc2.data.splits import SPLITS
from bc2.errors import DataError, IntegrityError, UsageError
from bc2.report.description import describe
from bc2.report.description_view import markdown, view
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TokenizerConfig

WORDS = {"en": ["alpha ", "beta ", "gamma "], "zh": ["天地", "玄黄", "宇宙洪荒"], None: ["x", "é"]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources, one of no stated language, several parts, 10% held out."""
    folder = tmp_path_factory.mktemp("described")
    sources = []
    for lang, words in WORDS.items():
        name = lang or "odd"
        texts = ["".join(words[(n * k) % 3 % len(words)] for k in range(n * n % 70 + 1)) + f" {n}"
                 for n in range(200)]  # fmt: skip
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        licence = "CC0 | <free>" if lang == "zh" else None
        sources.append(SourceConfig(name=name, path=str(path), lang=lang, licence=licence))
    config = CorpusConfig(sources=tuple(sources), heldout_fraction=0.1, part_bytes=5000)
    prepare(config, folder / "corpus")
    # As corpora were made before there were funnels.
    (folder / "corpus" / "funnel.json").rename(folder / "funnel.json")
    return folder / "corpus"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bc2.tokenizer.train import train

    text = Path(os.__file__).read_text("utf-8")
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train([text], TokenizerConfig(vocab_size=1024)).model)
    return path


@pytest.fixture(scope="module")
def tokens(corpus: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bc2.data.tokenize import tokenize

    folder = tmp_path_factory.mktemp("shards")
    tokenize(corpus, tokenizer, folder / "tokens", work=folder / "work", workers=1)
    return folder / "tokens"


def documents(corpus: Path) -> Iterator[tuple[str, str, str, str]]:
    """(split, source, language, text) of every document."""
    for split in SPLITS:
        for one in read_corpus(corpus, split):
            yield split, one.source, one.lang or "not stated", one.text


def bin_of(length: int) -> tuple[float, float]:
    ends = (*LENGTH_EDGES, math.inf)
    return next(pair for pair in pairwise(ends) if pair[0] <= length < pair[1])


def bins(found: Histogram) -> dict[tuple[float, float], int]:
    return {(low, high): count for low, high, count in found.bins() if count}


def test_a_corpus_is_counted(corpus: Path) -> None:
    told: list[float] = []
    found = describe(corpus, "corpus", progress=lambda size, _="": told.append(size))
    all_documents = list(documents(corpus))
    assert found.total().documents == len(all_documents)
    assert found.total().bytes == sum(told) == sum(len(t.encode()) for *_, t in all_documents)
    assert found.total().tokens is None
    for split in SPLITS:
        mine = [text for at, *_, text in all_documents if at == split]
        assert found.total(split).documents == len(mine) > 0
    for source in found.sources:
        for name, tally in source.splits.items():
            key = (name, source.name)
            mine = [t for at, one, _, t in all_documents if (at, one) == key]
            assert (tally.documents, tally.bytes) == (len(mine), sum(len(t.encode()) for t in mine))
    for lang, tally in found.languages.items():
        mine = [text for _, _, one, text in all_documents if one == lang]
        assert (tally.documents, tally.bytes) == (len(mine), sum(len(t.encode()) for t in mine))
        assert bins(found.lengths[lang]) == Counter(bin_of(len(text)) for text in mine)
    assert set(found.languages) == {"en", "zh", "not stated"}
    assert found.unlicensed == ["en", "odd"]
    assert found.funnel is None


def test_shards_know_the_funnel_of_their_corpus_and_how_long_it_took(
    corpus: Path, tokens: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "corpus"
    shutil.copytree(corpus, whole)
    shutil.copy(corpus.parent / "funnel.json", whole)
    (whole / "contamination.jsonl").touch()
    took = [
        {"step": "exact", "bytes": 10_000, "seconds": 61.0, "settling": 1.0},
        {"step": "writing", "bytes": 10_000, "seconds": 2.0, "settling": 0.0},
    ]
    for path, kind in ((whole, "corpus"), (tokens, "tokens")):
        found = describe(path, kind, corpus=whole, timings=took)
        assert found.contamination == whole / "contamination.jsonl"
        assert found.funnel is not None
        assert [stage.seconds for stage in found.funnel.stages] == [61.0]
        assert [row["step"] for row in found.as_json()["timings"]] == ["exact", "writing"]
        assert "| writing | 10.00 kB | 2.0 | - | 3.2% | 0.0 |" in markdown(found, "x")
    assert describe(whole, "corpus").timings == []
    assert "Seconds of work" not in markdown(describe(whole, "corpus"), "x")


@pytest.mark.parametrize("with_corpus", [False, True])
@pytest.mark.parametrize("chunk", [100, 1 << 22])
def test_token_shards_are_counted(
    corpus: Path, tokens: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, chunk: int,
    with_corpus: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("bc2.report.description._CHUNK", chunk)
    found = describe(tokens, "tokens", corpus=corpus if with_corpus else None)
    pieces = Tokenizer.load(tokenizer)
    lengths: dict[str, list[int]] = {}
    for _, _, lang, text in documents(corpus):
        _, counts = pieces.encode_flat([text])
        lengths.setdefault(lang if with_corpus else "not stated", []).append(int(counts[0]))
    assert found.total().tokens == sum(map(sum, lengths.values()))
    assert set(found.languages) == set(lengths)
    for lang, mine in lengths.items():
        assert found.languages[lang].tokens == sum(mine)
        assert bins(found.lengths[lang]) == Counter(map(bin_of, mine))
    whole = found.total()
    assert whole.tokens
    assert whole.bytes_per_token == whole.bytes / whole.tokens
    assert found.sources[0].licence is None
    assert len(found.unlicensed) == (2 if with_corpus else 3)


def with_funnel(corpus: Path, out: Path, *, lengths: bool, documents: int | None = None) -> Path:
    """A copy of the corpus with a funnel that says one language, "xx"."""
    shutil.copytree(corpus, out)
    whole = describe(corpus, "corpus").total()
    count = whole.documents if documents is None else documents
    group = {"source": "all", "lang": "xx", "documents": count, "bytes": whole.bytes}
    step = {"name": "exact", "removed": {}, "in": [group], "out": [group], "facts": {}}
    data: dict[str, Any] = {
        "version": 1, "read": {"documents": count, "bytes": whole.bytes}, "stages": [step],
    }  # fmt: skip
    if lengths:
        data["lengths"] = {"xx": {"edges": [1, 1000], "documents": [count]}}
    (out / "funnel.json").write_text(json.dumps(data))
    return out


def test_a_funnel_with_lengths_spares_the_reading(corpus: Path, tmp_path: Path) -> None:
    made = with_funnel(corpus, tmp_path / "c", lengths=True)
    for part in made.rglob("*.parquet"):
        part.write_bytes(b"never read")
    found = describe(made, "corpus")
    assert list(found.languages) == ["xx"]
    assert bins(found.lengths["xx"]) == {(1, 1000): found.total().documents}
    assert found.as_json()["funnel"]["stages"][0]["stage"] == "exact"


def test_the_funnel_of_a_corpus_says_what_is_counted(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "c")
    shutil.copyfile(corpus.parent / "funnel.json", tmp_path / "c" / "funnel.json")
    made, counted = describe(tmp_path / "c", "corpus"), describe(corpus, "corpus")
    assert made.funnel is not None
    assert made.funnel.kept.documents == counted.total().documents
    assert made.languages == counted.languages
    by_lang = {lang: bins(one) for lang, one in counted.lengths.items()}
    assert {lang: bins(one) for lang, one in made.lengths.items()} == by_lang


def test_strata_are_told_by_source_and_by_weight(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "c")
    facts = json.loads((tmp_path / "c" / "corpus.json").read_text())
    for entry in facts["sources"][:2]:
        entry["source"] = "web"
    facts["weights"] = {"en": 1, "zh": 2, "odd": 5}
    (tmp_path / "c" / "corpus.json").write_text(json.dumps(facts))
    found = describe(tmp_path / "c", "corpus")
    assert found.unlicensed == ["web", "odd"]
    page = markdown(found, "m")
    assert "| stratum | documents | bytes | drawn |" in page
    whole = sum(one.splits["train"].documents for one in found.sources[:2])
    assert f"| web | train | {whole} |" in page
    drawn = [line.split("|")[-2].strip() for line in page.splitlines() if line.endswith("% |")]
    assert drawn[:3] == ["12.50%", "25.00%", "62.50%"]


def test_a_funnel_without_lengths_does_not(corpus: Path, tmp_path: Path) -> None:
    found = describe(with_funnel(corpus, tmp_path / "c", lengths=False), "corpus")
    assert set(found.languages) == {"en", "zh", "not stated"}
    assert found.funnel is not None


def test_what_does_not_agree_is_told(corpus: Path, tokens: Path, tmp_path: Path) -> None:
    made = with_funnel(corpus, tmp_path / "c", lengths=True, documents=1)
    with pytest.raises(IntegrityError, match="1 documents, not"):
        describe(made, "corpus")
    shutil.copytree(tokens, tmp_path / "t")
    facts = json.loads((tmp_path / "t" / "tokens.json").read_text())
    facts["splits"]["train"]["en"]["documents"] += 1
    (tmp_path / "t" / "tokens.json").write_text(json.dumps(facts))
    with pytest.raises(IntegrityError, match="as the index says"):
        describe(tmp_path / "t", "tokens")


def test_a_damaged_part_is_told(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "c")
    part = next((tmp_path / "c").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DataError, match="damaged"):
        describe(tmp_path / "c", "corpus")


def test_other_things_have_no_documents(corpus: Path) -> None:
    with pytest.raises(UsageError, match="a checkpoint has no documents"):
        describe(corpus, "checkpoint")
    with pytest.raises(DataError):
        describe(corpus, "tokens")


def test_columns_of_later_corpora_do_not_matter(corpus: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    shutil.copytree(corpus, tmp_path / "c")
    for part in (tmp_path / "c").rglob("*.parquet"):
        rows = pq.read_table(part, partitioning=None)
        texts = rows["text"].cast(pa.large_string())
        rows = rows.set_column(1, "text", texts).append_column("quality", pa.nulls(len(rows)))
        pq.write_table(rows, part)
    assert describe(tmp_path / "c", "corpus") == describe(corpus, "corpus")


def test_it_is_rendered(corpus: Path, tokens: Path) -> None:
    from rich.console import Console

    found = describe(tokens, "tokens", corpus=corpus)
    found.sources[0].weight = 1
    json.dumps(found.as_json(), allow_nan=False)
    out = StringIO()
    Console(file=out, width=100).print(view(found))
    words = out.getvalue()
    whole = found.total()
    for text in (f"{whole.documents:,}", f"{whole.tokens:,}", "100.00%", "CC0 | <free>",
                 "No licence is recorded for en, odd."):  # fmt: skip
        assert text in words, text
    page = markdown(found, "tokens/made | <b>")
    assert page.startswith("# tokens/made \\| \\<b\\>\n\nNo licence")
    assert "| CC0 \\| \\<free\\> |" in page
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 6
    for lines in tables:
        cells = {line.replace("\\|", "").count("|") for line in lines}
        assert len(cells) == 1, "every line has as many cells"


def test_markdown_with_a_funnel(corpus: Path, tmp_path: Path) -> None:
    found = describe(with_funnel(corpus, tmp_path / "c", lengths=True), "corpus")
    assert "| exact | 0 | 0.00% | 0 B | 0.00% | 100.00% | 29.89% | 70.11% |" in markdown(found, "m")
