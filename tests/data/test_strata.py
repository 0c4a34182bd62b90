"""Weights on their way from a corpus to the order of samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bc2.data.corpus import carried_weights, corpus_parts, read_corpus
from bc2.data.loader import Loader, heldout_batches
from bc2.data.mixture import Mixture, stratum_weights
from bc2.data.shards import TokenShards
from bc2.data.tokenize import tokenize
from bc2.errors import DataError
from bc2.files import sha256_file

#: The strata of a corpus whose source web was cut in two.
STRATA = {"web.c00": "web", "web.c01": "web"}
WEIGHTS = {"web.c00": 750_000_000, "web.c01": 250_000_000}


@pytest.fixture(scope="module")
def strata(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`corpus` as a corpus of one source: en and zh as its strata."""
    root = tmp_path_factory.mktemp("strata") / "corpus"
    shutil.copytree(corpus, root)
    text = (root / "corpus.json").read_text()
    for old, new in zip(("en", "zh"), STRATA, strict=True):
        for split in ("train", "heldout"):
            (root / split / old).rename(root / split / new)
        text = text.replace(f'"name": "{old}"', f'"name": "{new}"').replace(f"/{old}/", f"/{new}/")
    facts = json.loads(text)
    for entry in facts["sources"]:
        entry["source"] = STRATA[entry["name"]]
    (root / "corpus.json").write_text(json.dumps({**facts, "weights": WEIGHTS}))
    return root


@pytest.fixture(scope="module")
def weighted(strata: Path, tokenizer_path: Path, tmp_path_factory) -> TokenShards:
    out = tmp_path_factory.mktemp("weighted")
    tokenize(strata, tokenizer_path, out / "tokens", work=out / "work", workers=1)
    return TokenShards.open(out / "tokens")


def test_weights_reach_the_shards(weighted, tokens):
    assert weighted.weights == WEIGHTS
    assert weighted.facts["strata"] == STRATA
    assert [weighted.source_of(name) for name in weighted.sources("train")] == ["web", "web"]
    plain = TokenShards.open(tokens)
    assert plain.weights is None
    assert plain.source_of("en") == "en"


def test_shards_of_a_corpus_without_weights_are_as_before(tokens):
    facts = json.loads((tokens / "tokens.json").read_text())
    assert list(facts) == [
        "version", "dtype", "vocab_size", "eos_id", "tokenizer", "tokens", "splits",
    ]  # fmt: skip


def test_other_weights_are_other_shards(strata, weighted, tokenizer_path, tmp_path):
    """The index is a file of the artifact, so what is trained on them has another key."""
    shutil.copytree(strata, tmp_path / "corpus")
    facts = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    facts["weights"] = {"web.c00": 1, "web.c01": 1}
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps(facts))
    tokenize(tmp_path / "corpus", tokenizer_path, tmp_path / "out", work=tmp_path / "w", workers=1)
    one, two = weighted.root / "tokens.json", tmp_path / "out" / "tokens.json"
    assert sha256_file(one) != sha256_file(two)
    assert TokenShards.open(tmp_path / "out").weights == facts["weights"]


def test_a_source_of_which_nothing_is_left_needs_no_weight(strata):
    facts = json.loads((strata / "corpus.json").read_text())
    empty = {"documents": 0, "bytes": 0, "characters": 0, "parts": []}
    facts["sources"].append({"name": "law", "train": empty, "heldout": empty})
    found = carried_weights(facts, strata)
    assert found == {"weights": WEIGHTS, "strata": {**STRATA, "law": "law"}}


def test_a_source_is_read_as_all_its_strata(strata, corpus):
    assert corpus_parts(strata, "train", "web") == corpus_parts(strata, "train")
    assert {part.source for part in corpus_parts(strata, None, "web.c01")} == {"web.c01"}
    whole = [d.id for d in read_corpus(strata, "heldout", "web")]
    assert whole == [d.id for d in read_corpus(corpus, "heldout")]
    with pytest.raises(DataError, match="no source 'wbe'") as caught:
        corpus_parts(strata, None, "wbe")
    assert "web" in str(caught.value)


def test_samples_come_as_the_corpus_weighs_them(weighted):
    windows = {s: (weighted.num_tokens("train", s) - 1) // 16 for s in weighted.sources("train")}
    found = stratum_weights(windows, {}, weighted.weights, weighted.source_of)
    mixture = Mixture(windows, found, 0)
    loader = Loader(weighted, "train", mixture, 16, weighted.eos_id)
    ids = loader.batch(0, mixture.block).source_ids
    assert (ids == 0).sum() == mixture.block * 3 // 4
    assert mixture.share("web.c00") == 0.75


def test_held_out_text_can_be_told_apart_by_source(weighted):
    names = weighted.sources("heldout")
    seen = {names[i] for b in heldout_batches(weighted, 16, 4, most=40) for i in b.source_ids}
    assert seen == set(STRATA)
    assert {weighted.source_of(name) for name in seen} == {"web"}


def test_sources_take_turns():
    entry = {"tokens": 0, "documents": 0, "bytes": 0, "shards": [{"file": "f", "tokens": 1}]}
    names = ["web.a", "web.b", "web.c", "law", "code.a", "code.b"]
    facts = {
        "dtype": "<u2", "vocab_size": 9, "eos_id": 2, "tokenizer": "",
        "splits": {"train": {}, "heldout": dict.fromkeys(names, entry)},
        "strata": {name: name.split(".")[0] for name in names},
    }  # fmt: skip
    turns = TokenShards(Path(), facts).in_turns("heldout")
    assert turns == ["web.a", "law", "code.a", "web.b", "code.b", "web.c"]
    plain = TokenShards(Path(), {**facts, "strata": {}})
    assert plain.in_turns("heldout") == names == plain.sources("heldout")


@pytest.mark.parametrize(
    "weights",
    [{"web.c00": 1}, {**WEIGHTS, "law": 1}, {"web.c00": 1, "web.c01": 0.5}, {"web.c00": 0,
     "web.c01": 0}, {"web.c00": -1, "web.c01": 1}, [1, 2]],
)  # fmt: skip
def test_weights_that_cannot_be(weights, strata, tokenizer_path, tmp_path):
    shutil.copytree(strata, tmp_path / "corpus")
    facts = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps({**facts, "weights": weights}))
    with pytest.raises(DataError, match="one integer for each stratum"):
        tokenize(tmp_path / "corpus", tokenizer_path, tmp_path / "out", work=tmp_path / "w",
                 workers=1)  # fmt: skip
    assert not (tmp_path / "out").exists()
