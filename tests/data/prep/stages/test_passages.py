"""Duplicate passages against dictionaries of texts, with any division into parts."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bc2.data.prep.settings import PassagesSettings
from bc2.data.prep.stages.deduplication import repeated_passages as repeats
from bc2.data.prep.stages.deduplication.repeated_passages import PASSAGES
from bc2.data.prep.stages.passages import PARAGRAPH, SENTENCE, PassagesStage
from bc2.data.prep.text.sentences import (
    cut_sentences,
    divide,
    split_sentences,
)

LOOSE = PassagesSettings(paragraph_bytes=12, sentence_bytes=9, sentence_repeats=2, min_left=4)

SENTENCES = [
    "The river rose by night.",
    "the  RIVER rose by night.",
    "Nobody saw the bridge go!",
    "Yes.",
    "水在夜里涨了上来。",
    "没有人看见桥倒塌！",
    "好。",
    "A field, a barn, a road.",
]

paragraphs_st = st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=4).map(" ".join)
texts_st = st.lists(paragraphs_st, max_size=5).map("\n\n".join)


def passages_of(text, config):
    """(kind, index, form, first and last character) of each passage that is long enough."""
    at = index = 0
    for number, paragraph in enumerate(divide(text)):
        start = at
        for sentence in paragraph.sentences:
            form = " ".join(sentence.split()).casefold()
            if config.sentences and len(form.encode()) >= config.sentence_bytes:
                yield SENTENCE, index, form, at, at + len(sentence)
            at += len(sentence)
            index += 1
        form = " ".join(paragraph.text.split()).casefold()
        if config.paragraphs and len(form.encode()) >= config.paragraph_bytes:
            yield PARAGRAPH, number, form, start, at


def naive(texts, config):
    """The reference: what is left of each text; None for a text that is dropped."""
    passages = [list(passages_of(text, config)) for text in texts]
    times = Counter((kind, form) for row in passages for kind, _, form, _, _ in row)
    least = {PARAGRAPH: config.paragraph_repeats, SENTENCE: config.sentence_repeats}

    def lost_by(alive):
        seen: set[tuple[int, str]] = set()
        for text, row in enumerate(passages):
            lost: set[int] = set()
            for kind, _, form, first, last in sorted(row, key=lambda p: (p[0], p[1])):
                if alive[text] and times[kind, form] >= least[kind]:
                    if (kind, form) in seen:
                        lost.update(range(first, last))
                    seen.add((kind, form))
            yield lost

    alive = []
    for text, lost in zip(texts, lost_by([True] * len(texts)), strict=True):
        left = "".join(c for i, c in enumerate(text) if i not in lost)
        too_much = len(lost) > config.max_lost * len(text)
        alive.append(not too_much and not (lost and len(left.encode()) < config.min_left))
    result = []
    for text, lives, lost in zip(texts, alive, lost_by(alive), strict=True):
        at, keep = 0, []
        for sentence in split_sentences(text):
            keep.append(at not in lost)
            at += len(sentence)
        result.append(cut_sentences(text, keep) if lives else None)
    return result


def parts_of(table, cuts):
    edges = [0, *sorted(cut % (len(table) + 1) for cut in cuts), len(table)]
    return [table.slice(a, b - a) for a, b in pairwise(edges)]


def survivors(outcomes):
    return {row["pos"]: row for outcome in outcomes for row in outcome.table.to_pylist()}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(texts_st, min_size=1, max_size=7),
    cuts=st.lists(st.integers(0, 99), max_size=2),
    repeats=st.integers(2, 3),
    max_lost=st.sampled_from([0.3, 0.7, 1.0]),
    kinds=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_the_same_is_cut_as_by_dictionaries_of_texts(
    run_stage, records, texts, cuts, repeats, max_lost, kinds
):
    config = LOOSE.model_copy(
        update={
            "paragraphs": kinds[0],
            "sentences": kinds[1],
            "sentence_repeats": repeats,
            "max_lost": max_lost,
        }
    )
    table = records(texts, first=1 << 40)
    outcomes, facts = run_stage(PassagesStage(config), parts_of(table, cuts))
    expected = naive(texts, config)
    left = survivors(outcomes)
    assert [left.get((1 << 40) + i, {"text": None})["text"] for i in range(len(texts))] == expected
    assert facts["mostly_duplicate"] == expected.count(None)
    removed = pa.concat_tables([outcome.removed for outcome in outcomes]).to_pylist()
    for i, (text, after) in enumerate(zip(texts, expected, strict=True)):
        gone = sum(row["bytes"] for row in removed if row["pos"] == (1 << 40) + i)
        assert gone == len(text.encode()) - len((after or "").encode())
    assert all(row["reason"] in PassagesStage.reasons for row in removed)
    assert all(row["whole"] == (row["reason"] == "mostly_duplicate") for row in removed)


def test_what_is_cut_stands_elsewhere_though_its_first_document_is_dropped(run_stage, records):
    one, two, three = (f"Alpha beta gamma {i}, delta." for i in range(3))
    own = "Nothing here was ever said before, so this text stays in the corpus."
    texts = [f"{own}\n\n{one}", f"{one}\n\n{two}", f"{two}\n\n{own} Not this.\n\n{three}"]
    config = LOOSE.model_copy(update={"sentences": False, "max_lost": 0.45})
    outcomes, _ = run_stage(PassagesStage(config), [records(texts)])
    left = survivors(outcomes)
    # the second text is dropped for `one`, so the third keeps `two`, which came second
    assert sorted(left) == [0, 2]
    assert left[2]["text"] == texts[2]
    detail = outcomes[0].removed.to_pylist()[0]["detail"]
    assert detail == "51.8% of its characters stand earlier"


def test_short_and_rare_passages_are_left_alone(run_stage, records):
    refrain = "SourceRow, row, row your boat, gently down the stream, merrily to the distant sea."
    clause = "本条例自公布之日起施行。"
    texts = [f"{clause}\n\n{i}: {refrain} {'x' * i}" for i in range(1, 5)]
    outcomes, _ = run_stage(PassagesStage(PassagesSettings()), [records(texts)])
    assert [row["text"] for row in outcomes[0].table.to_pylist()] == texts


def test_code_is_left_alone_unless_asked_for(run_stage, records):
    licence = "# Licensed under terms\n#   that many files repeat, word for word\n\n"
    texts = [licence + f"def f{i}():\n    return {i} + {i} * 2\n" for i in range(2)]
    table = records(texts, lang="code")
    outcomes, facts = run_stage(PassagesStage(LOOSE), [table])
    assert facts["compared"] == 0
    assert outcomes[0].table.equals(table)
    outcomes, _ = run_stage(PassagesStage(LOOSE.model_copy(update={"code": True})), [table])
    assert outcomes[0].table["text"].to_pylist() == [texts[0], texts[1].removeprefix(licence)]
    other = records([texts[0], texts[0].upper() + "\n\nx = 'a line that is new in this file'"])
    other = other.set_column(4, "lang", pa.array(["code"] * 2))
    outcomes, _ = run_stage(PassagesStage(LOOSE.model_copy(update={"code": True})), [other])
    assert outcomes[0].table["text"].to_pylist() == other["text"].to_pylist()  # case counts


def test_scores_stay_in_step_with_the_text(run_stage, records):
    shared = "This sentence stands in both of the documents."
    texts = [f"{shared} First.\n\nMore of it.", f"Second one here. {shared} End.\n\n{shared} Last."]
    config = LOOSE.model_copy(update={"max_lost": 0.95})
    counts = [len(split_sentences(text)) for text in texts]
    scores = [[i / 8 for i in range(count)] for count in counts]
    table = records(texts, sentence_scores=scores, paragraph_scores=[[0.0, 0.5], [0.25, 0.75]])
    outcomes, _ = run_stage(PassagesStage(config), [table])
    row = outcomes[0].table.to_pylist()[1]
    assert row["text"] == "Second one here. End.\n\nLast."
    assert row["sentence_scores"] == [0.0, 0.25, 0.5]
    assert row["paragraph_scores"] == [0.25, 0.75]
    assert outcomes[0].table.schema == table.schema
    wrong = records(texts, sentence_scores=[[0.5], [0.5]])
    outcomes, _ = run_stage(PassagesStage(config), [wrong])
    assert outcomes[0].table["sentence_scores"].to_pylist() == [[0.5], None]


def test_many_classes_find_what_one_does(run_stage, records, monkeypatch):
    picks = random.Random(5)
    texts = [" ".join(picks.choices(SENTENCES, k=picks.randrange(1, 9))) for _ in range(40)]
    once, facts = run_stage(PassagesStage(LOOSE), [records(texts)])
    monkeypatch.setattr(repeats, "_CLASS", 25)
    often, facts_often = run_stage(PassagesStage(LOOSE), [records(texts)])
    assert facts == facts_often
    assert facts["cut_sentences"] > 0
    assert once[0].table.equals(often[0].table)


def test_keys_hold_no_text_and_say_where_passages_are(records):
    table = records([SENTENCES[0] + " " + SENTENCES[2], "", "Yes."], first=7)
    keys = PassagesStage(LOOSE).keys(table)
    assert keys.schema == PASSAGES
    assert keys.select(["pos", "kind", "index", "inside"]).to_pylist() == [
        {"pos": 7, "kind": kind, "index": index, "inside": 0}
        for kind, index in [(PARAGRAPH, 0), (SENTENCE, 0), (SENTENCE, 1)]
    ]


SETTLING = """
import sys
from pathlib import Path
import scipy.sparse, pyarrow.parquet
from bc2.data.prep.stages.passages import PassagesSettings, PassagesStage
folder = Path(sys.argv[1])
parts = [path.stem for path in folder.glob("*.parquet")]
kept = []
work = type("Work", (), dict(parts=parts, folder=folder, map=lambda self, *items: map(*items),
    keys=lambda self, name: folder / f"{name}.parquet",
    hand_out=lambda self, decided: kept.append(decided)))()
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
before = peak()
PassagesStage(PassagesSettings()).settle(work)
print(peak() - before, len(kept[0]) - sum(kept[0]['held'].to_numpy()))
"""


@pytest.mark.slow
def test_settling_two_million_passages_takes_little_memory(tmp_path):
    """Half of them occur twice: about 100 bytes for each of those, and the memory of libraries."""
    n = 2_000_000
    rng = np.random.default_rng(1)
    columns = {
        "pos": np.arange(n) // 10,
        "hash": rng.permutation(np.arange(n) % (n * 3 // 4)) * 7919,
        "index": np.arange(n) % 10,
        "inside": np.arange(n) % 10,
    }
    same = {"kind": 0, "characters": 100, "bytes": 100, "all_characters": 1000, "all_bytes": 1000}
    columns |= {name: np.full(n, value) for name, value in same.items()}
    table = pa.table(columns).select(PASSAGES.names).cast(PASSAGES)
    for part in range(8):
        pq.write_table(table.slice(n // 8 * part, n // 8), tmp_path / f"{part}.parquet")
    run = [sys.executable, "-c", SETTLING, str(tmp_path)]
    grown, decided = map(int, subprocess.check_output(run, text=True).split())
    assert decided == 490_001
    assert grown < 130 * n


def test_the_reference_sees_pieces_as_the_stage_does():
    """Sentences are parts of paragraphs, which the naive reference assumes."""
    text = "\n\n".join(" ".join(SENTENCES[i:]) for i in range(4))
    nested = chain(*(paragraph.sentences for paragraph in divide(text)))
    assert list(nested) == split_sentences(text)
