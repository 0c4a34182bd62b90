"""Near-deduplication against brute force: it drops near-duplicates, and nothing else."""

from __future__ import annotations

import gzip
import json
import os
import random
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from bc2.data.prep.settings import NearSettings
from bc2.data.prep.stages.base import RECORD, REMOVED
from bc2.data.prep.stages.near import NearStage
from bc2.data.prep.text.minhash import recall_at
from bc2.errors import RecipeError

THRESHOLD = 0.8
ENGLISH = [f"word{i}" for i in range(3000)]
CHINESE = [chr(0x4E00 + i) for i in range(3000)]


def text_of(draw: random.Random, length: int, vocabulary: list[str] = ENGLISH) -> str:
    return glue(vocabulary).join(draw.choices(vocabulary, k=length))


def glue(vocabulary: list[str]) -> str:
    return "" if vocabulary is CHINESE else " "


def replaced(draw: random.Random, text: str, count: int, vocabulary: list[str] = ENGLISH) -> str:
    words = list(text) if vocabulary is CHINESE else text.split(" ")
    for at in draw.sample(range(len(words)), count):
        words[at] = draw.choice(vocabulary)
    return glue(vocabulary).join(words)


def jaccard(one: set, two: set) -> float:
    return len(one & two) / len(one | two)


def true_edges(sets: list[set]) -> dict[tuple[int, int], float]:
    """Every pair that reaches the threshold, found by comparing the sets of all pairs."""
    number = {shingle: i for i, shingle in enumerate(set().union(*sets))}
    columns = [number[shingle] for one in sets for shingle in one]
    ends = np.cumsum([0, *map(len, sets)])
    rows = csr_array((np.ones(len(columns), np.int32), columns, ends), (len(sets), len(number)))
    found = {}
    for first in range(0, len(sets), 200):
        shared = (rows[first : first + 200] @ rows.T).tocoo()
        one, two = shared.row + first, shared.col
        sizes = np.diff(ends)
        near = shared.data / (sizes[one] + sizes[two] - shared.data)
        mine = (near >= THRESHOLD) & (one < two)
        pairs = zip(one[mine].tolist(), two[mine].tolist(), strict=True)
        found |= dict(zip(pairs, near[mine].tolist(), strict=True))
    return found


def groups_of(count: int, edges) -> list[set[int]]:
    group = [{i} for i in range(count)]
    for i, j in edges:
        if group[i] is not group[j]:
            group[i] |= group[j]
            for member in group[j]:
                group[member] = group[i]
    return group


def dropped_rows(outcomes) -> dict[int, str]:
    """pos -> detail of the dropped documents; checks that no document is lost or out of order."""
    gone: dict[int, str] = {}
    for outcome in outcomes:
        assert outcome.removed.schema == REMOVED
        assert outcome.removed["whole"].to_pylist() == [True] * len(outcome.removed)
        assert set(outcome.removed["reason"].to_pylist()) <= {"near_duplicate"}
        kept = outcome.table["pos"].to_pylist()
        assert kept == sorted(kept)
        rows = zip(*(outcome.removed[name].to_pylist() for name in ("pos", "detail")), strict=True)
        gone |= dict(rows)
        assert not gone.keys() & set(kept)
    return gone


def check_against_truth(texts, gone, naive_shingles) -> tuple[dict, list[set[int]]]:
    """Check that for each dropped document, another one of its true component stays."""
    sets = [naive_shingles(text) for text in texts]
    edges = true_edges(sets)
    groups = groups_of(len(texts), edges)
    for pos, detail in gone.items():
        keeper = int(detail.split(" ")[1].split(":")[1]) - 1  # origin rows count from 1
        assert keeper in groups[pos]
        assert keeper not in gone
        assert (
            detail == f"of file.jsonl:{keeper + 1} jaccard {jaccard(sets[pos], sets[keeper]):.2f}"
        )
    return edges, groups


@pytest.fixture
def stage() -> NearStage:
    return NearStage(NearSettings())


def test_copies_with_other_spaces_case_and_marks_go_and_the_first_stays(run_stage, records, stage):
    draw = random.Random(1)
    text, other = text_of(draw, 80), text_of(draw, 80)
    texts = [text, other, text.upper(), text.replace(" ", " \n, "), other]
    outcomes, facts = run_stage(stage, [records(texts[:3]), records(texts[3:], first=3)])
    assert dropped_rows(outcomes) == {
        2: "of file.jsonl:1 jaccard 1.00",
        3: "of file.jsonl:1 jaccard 1.00",
        4: "of file.jsonl:2 jaccard 1.00",
    }
    sizes = [size for outcome in outcomes for size in outcome.removed["bytes"].to_pylist()]
    assert sizes == [len(texts[i].encode()) for i in (2, 3, 4)]
    assert facts["identical"] == facts["dropped"] == 3
    assert facts["documents"] == 5
    assert facts["components"] == 2
    assert all(type(value) is int for value in facts.values())


def test_short_documents_match_only_equal_ones_and_empty_ones_nothing(run_stage, records, stage):
    texts = [
        "",
        "a b c",
        " ",
        "A, b: c!",
        "a b",
        "a b c d",
        "",
        "!?",
        "。",
        "天地",
        "天 地",
        "天地玄",
    ]
    outcomes, facts = run_stage(stage, [records(texts)])
    assert dropped_rows(outcomes).keys() == {3, 10}
    assert facts["documents"] == 7


def test_nothing_at_all(run_stage, records, stage):
    assert run_stage(stage, [])[1]["documents"] == 0
    outcomes, facts = run_stage(stage, [records([]), records(["", "..."]), records([], first=9)])
    assert dropped_rows(outcomes) == {}
    assert sum(len(outcome.table) for outcome in outcomes) == 2
    assert set(facts.values()) == {0}


def chain(draw: random.Random) -> list[str]:
    """Three texts: each is similar to the next, the first and the last are less similar."""
    words = text_of(draw, 300).split(" ")
    ends = [" ".join(["x1", "x2", "x3", *words[30:]]), " ".join([*words[:-30], "y1", "y2", "y3"])]
    return [ends[0], " ".join(words), ends[1]]


def test_a_chain_is_one_component_and_says_how_near_its_ends_are(
    run_stage, records, stage, naive_shingles
):
    texts = chain(random.Random(3))
    sets = [naive_shingles(text) for text in texts]
    ends = jaccard(sets[0], sets[2])
    assert min(jaccard(sets[0], sets[1]), jaccard(sets[1], sets[2])) > 0.82
    assert 0.7 < ends < THRESHOLD
    scores = np.array([1, 0.5, 0.5], np.float32)
    outcomes, facts = run_stage(stage, [records(texts, quality=scores)])
    gone = dropped_rows(outcomes)
    assert gone[2] == f"of file.jsonl:1 jaccard {ends:.2f}"
    assert facts["dropped"] == 2
    assert facts["chained"] == facts["components"] == 1


def test_the_best_stays_and_of_equals_the_first(run_stage, records, stage):
    draw = random.Random(4)
    one, two, three = (text_of(draw, 60) for _ in range(3))
    texts = [one, two, one, two, two, three, three]
    scores = np.array([0.1, 0.5, 0.9, 0.5, 0.2, np.nan, 0.0], np.float32)
    outcomes, _ = run_stage(stage, [records(texts, quality=scores)])
    assert dropped_rows(outcomes).keys() == {0, 3, 4, 5}
    assert outcomes[0].table.column_names == [*RECORD.names, "quality"]


def test_of_a_near_pair_the_one_with_more_text_of_its_own_stays(run_stage, records, stage):
    """A reply is not dropped for the mail that it quotes, wherever the two stand."""
    mail = text_of(random.Random(12), 90)
    reply = f"{text_of(random.Random(13), 14)}\n\n> {mail}"
    for texts, gone in (([mail, reply], {0}), ([reply, mail], {1})):
        assert dropped_rows(run_stage(stage, [records(texts)])[0]).keys() == gone
        for scores, better in (([0.8, 0.71], gone), ([0.71, 0.8], gone), ([0.9, 0.75], {1})):
            quality = np.array(scores, np.float32)
            outcomes, _ = run_stage(stage, [records(texts, quality=quality)])
            assert dropped_rows(outcomes).keys() == better
    # the same words said often are no more text
    chorus = " ".join([mail] * 3)
    assert dropped_rows(run_stage(stage, [records([reply, chorus])])[0]).keys() == {1}


def test_a_long_file_name_does_not_cut_how_near(run_stage, records, stage):
    table = records(["a b c d e f g"] * 2)
    at = table.schema.get_field_index("origin_file")
    names = pa.array(["x" * 500 + "/name.jsonl"] * 2)
    outcomes, _ = run_stage(stage, [table.set_column(at, RECORD.field(at), names)])
    detail = dropped_rows(outcomes)[1]
    assert len(detail) == 200
    assert detail.endswith("xx/name.jsonl:1 jaccard 1.00")


def test_impossible_settings():
    with pytest.raises(RecipeError, match="10 hashes cannot find 99"):
        NearStage(NearSettings(threshold=0.1, recall=0.99, hashes=10))


def planted(seed: int, families: int) -> list[str]:
    """Families of more and less similar texts, in English and Chinese, shuffled."""
    draw = random.Random(seed)
    texts = []
    for number in range(families):
        vocabulary = CHINESE if number % 2 else ENGLISH
        first = text_of(draw, draw.randint(3, 120), vocabulary)
        length = len(first) if vocabulary is CHINESE else first.count(" ") + 1
        most = max(1, length // 20)
        texts += [first] + [
            replaced(draw, first, draw.randint(0, most), vocabulary)
            for _ in range(draw.randint(0, 4))
        ]
    draw.shuffle(texts)
    return texts


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 90), max_size=5).map(sorted),
    backwards=st.booleans(),
)
def test_parts_and_their_order_change_nothing(seed, cuts, backwards, run_stage, records):
    table, stage = records(planted(seed, 30)), NearStage(NearSettings())
    whole, facts = run_stage(stage, [table])
    edges = [0, *cuts, len(table)]
    parts = [table.slice(a, max(b - a, 0)) for a, b in pairwise(edges)]
    outcomes, same = run_stage(stage, parts[::-1] if backwards else parts)
    assert same == facts
    for name in ("table", "removed"):
        joined = pa.concat_tables([getattr(o, name) for o in outcomes]).sort_by("pos")
        assert joined.equals(getattr(whole[0], name))


def test_planted_families_against_brute_force(run_stage, records, stage, naive_shingles):
    texts = planted(11, 150)
    outcomes, facts = run_stage(stage, [records(texts)])
    gone = dropped_rows(outcomes)
    edges, groups = check_against_truth(texts, gone, naive_shingles)
    most = len(texts) - len({id(group) for group in groups})
    assert facts["pairs"] <= len(edges)
    assert 0.97 * most <= len(gone) <= most
    assert facts["dropped"] == len(gone) == len(texts) - sum(len(o.table) for o in outcomes)


def pairs_recall(count, run_stage, records, stage, naive_shingles, vocabulary) -> None:
    """Check on planted pairs that only near-duplicates are dropped, with the expected recall."""
    draw = random.Random(7)
    firsts = [text_of(draw, draw.randint(60, 250), vocabulary) for _ in range(count)]
    seconds = [
        replaced(
            draw, text, draw.randint(0, len(text.split(" ")) // 30 or len(text) // 30), vocabulary
        )
        for text in firsts
    ]
    outcomes, _ = run_stage(stage, [records(firsts), records(seconds, first=count)])
    gone = dropped_rows(outcomes)
    near = [
        jaccard(naive_shingles(a), naive_shingles(b)) for a, b in zip(firsts, seconds, strict=True)
    ]
    assert all(near[pos - count] >= THRESHOLD for pos in gone)
    real = [(i + count, s) for i, s in enumerate(near) if s >= THRESHOLD]
    chance = np.array([recall_at(s, stage.bands, stage.rows) for _, s in real])
    found = sum(pos in gone for pos, _ in real)
    assert len(real) > count // 3
    assert abs(found - chance.sum()) <= 4 * np.sqrt((chance * (1 - chance)).sum()) + 1


@pytest.mark.parametrize("vocabulary", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_recall_of_pairs(vocabulary, run_stage, records, stage, naive_shingles):
    pairs_recall(300, run_stage, records, stage, naive_shingles, vocabulary)


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_recall_of_thousands_of_pairs(vocabulary, run_stage, records, stage, naive_shingles):
    pairs_recall(5000, run_stage, records, stage, naive_shingles, vocabulary)


def test_a_crowd_of_near_copies_leaves_one(run_stage, records, stage):
    """In buckets above 64 not all pairs are tried, but all near copies are joined all the same."""
    draw = random.Random(5)
    text = text_of(draw, 400)
    texts = [replaced(draw, text, 2) for _ in range(600)]
    outcomes, facts = run_stage(stage, [records(texts[:250]), records(texts[250:], first=250)])
    assert len(dropped_rows(outcomes)) == 599
    assert facts["passed_over"] > 0
    assert facts["candidates"] < 600 * 599 / 2


def changes(text: str, draw: random.Random) -> dict[str, str]:
    """Kinds of change, the smallest first; sentences end in '. '."""
    sentences = text.split(". ")
    middle = len(sentences) // 2
    moved = [*sentences[1:middle], sentences[0], *sentences[middle:]]
    inserted = [*sentences[:middle], text_of(draw, 40), *sentences[middle:]]
    return {
        "spaces": text.replace(" ", " \t\n "),
        "case": text.upper(),
        "punctuation": text.replace(". ", " - "),
        "sentence moved": ". ".join(moved),
        "paragraph inserted": ". ".join(inserted),
        "words replaced": replaced(draw, text, text.count(" ") // 20),
    }


def test_kinds_of_change_and_how_near_they_leave_a_text(naive_shingles, run_stage, records, stage):
    draw = random.Random(6)
    text = ". ".join(text_of(draw, 20) for _ in range(20))
    kinds = changes(text, draw)
    near = {kind: jaccard(naive_shingles(text), naive_shingles(new)) for kind, new in kinds.items()}
    assert near["spaces"] == near["case"] == near["punctuation"] == 1
    assert 1 > near["sentence moved"] > 0.9 > near["paragraph inserted"] > THRESHOLD
    assert THRESHOLD > near["words replaced"] > 0.5  # one in 20 words, in 5 shingles each
    gone = dropped_rows(run_stage(stage, [records([text, *kinds.values()])])[0])
    assert gone.keys() == {0, 1, 2, 3, 4}, "the text with a paragraph more stays"


def real_texts(name: str, count: int) -> list[str]:
    folder = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "corpus"
    path = folder / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line)["text"][:20_000] for line in islice(stream, count)]


def check_real(names, count, run_stage, records, stage, naive_shingles) -> None:
    """Compare with brute force over all pairs of real documents and changed copies of them."""
    draw = random.Random(8)
    texts = [text for name in names for text in real_texts(name, count)]
    copies = [replaced(draw, text, text.count(" ") // 60) for text in texts[::7]]
    texts += copies
    outcomes, facts = run_stage(stage, [records(texts)])
    gone = dropped_rows(outcomes)
    edges, groups = check_against_truth(texts, gone, naive_shingles)
    chance = sum(recall_at(s, stage.bands, stage.rows) for s in edges.values())
    assert len(edges) > len(copies) // 2
    assert facts["pairs"] <= len(edges)
    assert facts["pairs"] >= chance - 5 * np.sqrt(len(edges) * 0.03) - 1
    most = len(texts) - len({id(group) for group in groups})
    assert 0.95 * most <= len(gone) <= most


def test_real_documents_against_brute_force(run_stage, records, stage, naive_shingles):
    names = ["code", "zh_modern_translation"]
    check_real(names, 60, run_stage, records, stage, naive_shingles)


@pytest.mark.slow
def test_more_real_documents_against_brute_force(run_stage, records, stage, naive_shingles):
    names = ["code", "en_docs", "zh_law", "zh_tech_wiki_docs"]
    check_real(names, 300, run_stage, records, stage, naive_shingles)
