"""Words, signatures, bands and sets of shingles, against plain Python and theory."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.text import minhash
from bc2.data.prep.text.word_hashes import text_slices, words_of
from bc2.errors import RecipeError

#: Letters, marks, digits, punctuation and spaces; wide forms, ligatures, four bytes.
LETTERS = (
    "abcXYZ éÉßñ ё Ж 1２３ Ａｂ ﬁ Ⅳ ① が か゛ 漢字、。！天地〆々㐀 𠀀𪜀 한국어 ไทย 🙂 "
    "_-'\t\n\u3000\u0301\u00ad"
)
short_st = st.lists(st.lists(st.sampled_from("abc天地"), max_size=25).map(" ".join), max_size=8)
texts_st = st.lists(st.text(st.sampled_from(LETTERS), max_size=40), max_size=12)


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def test_bands_follow_from_threshold_and_recall():
    assert minhash.bands_for(0.8, 0.97, 112) == (16, 7)
    assert minhash.bands_for(0.8, 0.92, 112) == (14, 8)  # what datatrove and FineWeb take
    assert minhash.recall_at(0.8, 14, 8) == pytest.approx(0.9236, abs=1e-4)
    assert minhash.recall_at(0.8, 16, 7) == pytest.approx(0.9769, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(threshold=st.floats(0.05, 1), recall=st.floats(0.01, 0.999), hashes=st.integers(1, 200))
def test_bands_are_the_most_rows_that_reach_the_recall(threshold, recall, hashes):
    reach = [
        rows
        for rows in range(1, hashes + 1)
        if 1 - (1 - threshold**rows) ** (hashes // rows) >= recall
    ]
    if reach:
        assert minhash.bands_for(threshold, recall, hashes) == (hashes // max(reach), max(reach))
    else:
        with pytest.raises(RecipeError, match="cannot find"):
            minhash.bands_for(threshold, recall, hashes)


@settings(max_examples=60, deadline=None)
@given(texts=texts_st)
def test_words_are_those_of_plain_python(texts, naive_words):
    found = words_of(column(texts)).to_pylist()
    assert found == [" ".join(naive_words(text)) for text in texts]


@settings(max_examples=50, deadline=None)
@given(texts=texts_st, cut=st.integers(0, 12), limit=st.integers(1, 200))
def test_neither_slices_nor_neighbours_change_anything(texts, cut, limit):
    chunks = pa.chunked_array([column(texts[:cut]), column(["x", *texts[cut:]]).slice(1)])
    parts = list(text_slices(chunks, limit))
    assert [text for part in parts for text in part.to_pylist()] == texts
    assert all(len(part) == 1 or part.nbytes <= 20 * limit + 200 for part in parts)
    one = words_of(column(texts))
    many = [words_of(part) for part in parts]
    assert [word for part in many for word in part.to_pylist()] == one.to_pylist()
    together = minhash.signatures(one, 14, 5)
    apart = [minhash.signatures(part, 14, 5) for part in many]
    assert np.array_equal(together, np.concatenate([together[:0], *apart]))


@settings(max_examples=40, deadline=None)
@given(texts=short_st)
def test_sets_of_shingles_overlap_as_plain_python_says(texts, naive_shingles):
    values, ends = minhash.shingle_sets(words_of(column(texts)), 5)
    sets = [values[ends[i] : ends[i + 1]] for i in range(len(texts))]
    naive = [naive_shingles(text) for text in texts]
    for one, naive_one in zip(sets, naive, strict=True):
        assert len(one) == len(naive_one)
        for two, naive_two in zip(sets, naive, strict=True):
            both = minhash.overlap(one, two)
            assert both == (len(naive_one & naive_two), len(naive_one | naive_two))


def test_bands_of_equal_numbers_differ_by_band_and_folds_tell_rows_apart():
    same = np.full((3, 12), 7, np.uint32)
    same[2, 11] = 8
    values = minhash.band_values(same, 4, 3)
    assert len(set(values[0].tolist())) == 4
    assert np.array_equal(values[0], values[1])
    assert np.array_equal(values[0] == values[2], [True, True, True, False])
    folded = minhash.fold(values)
    assert folded[0] == folded[1] != folded[2]
    assert minhash.band_values(same[:0], 4, 3).shape == (0, 4)


def test_no_texts_and_texts_without_words():
    assert minhash.signatures(column([]), 14, 5).shape == (0, 14)
    values, ends = minhash.shingle_sets(words_of(column(["", " !", "x", ""])), 5)
    assert ends.tolist() == [0, 0, 0, 1, 1]
    assert len(values) == 1


def test_the_same_text_has_this_signature_for_ever():
    """Golden values: a change here needs a new version of the stage."""
    words = words_of(column(["To be, or not to be: that is the question.", "天地玄黄宇宙洪荒"]))
    assert minhash.signatures(words, 3, 5).tolist() == GOLDEN_SIGNATURES
    assert minhash.band_values(minhash.signatures(words, 4, 5), 2, 2).tolist() == GOLDEN_BANDS


def planted(count: int, seed: int, chinese: bool) -> list[tuple[str, str]]:
    """Pairs of texts; some words of the second text of each are replaced."""
    draw = random.Random(seed)
    vocabulary = [chr(0x4E00 + i) if chinese else f"w{i}" for i in range(5000)]
    pairs = []
    for _ in range(count):
        one = draw.choices(vocabulary, k=draw.randint(60, 300))
        two = list(one)
        for at in draw.sample(range(len(one)), draw.randint(0, len(one) // 14)):
            two[at] = draw.choice(vocabulary)
        glue = "" if chinese else " "
        pairs.append((glue.join(one), glue.join(two)))
    return pairs


def recall_by_bin(count, chinese, naive_shingles, bands=16, rows=7):
    """{bin of Jaccard: (pairs, found, expected, standard deviation)}, bins of 0.05."""
    pairs = planted(count, 5, chinese)
    words = [words_of(column(list(side))) for side in zip(*pairs, strict=True)]
    one, two = (
        minhash.band_values(minhash.signatures(w, bands * rows, 5), bands, rows) for w in words
    )
    hit = (one == two).any(axis=1)
    sets = [(naive_shingles(a), naive_shingles(b)) for a, b in pairs]
    near = np.array([len(a & b) / len(a | b) for a, b in sets])
    chance = np.array([minhash.recall_at(s, bands, rows) for s in near])
    bins: dict[float, tuple[int, int, float, float]] = {}
    for low in np.arange(0.3, 1.0, 0.05).round(2).tolist():
        mine = (near >= low) & (near < low + 0.05)
        spread = float(np.sqrt((chance[mine] * (1 - chance[mine])).sum()))
        bins[low] = int(mine.sum()), int(hit[mine].sum()), float(chance[mine].sum()), spread
    assert hit[near == 1].all()
    return bins


def check(bins, least):
    wide = [low for low, (pairs, *_) in bins.items() if pairs >= least]
    assert len(wide) >= 8, bins
    assert all(abs(found - hoped) <= 4 * spread + 1 for _, found, hoped, spread in bins.values()), (
        bins
    )
    found, hoped = (sum(row[i] for row in bins.values()) for i in (1, 2))
    assert abs(found - hoped) <= 4 * sum(row[3] ** 2 for row in bins.values()) ** 0.5


@pytest.mark.parametrize("chinese", [False, True])
def test_recall_follows_the_curve(chinese, naive_shingles):
    check(recall_by_bin(700, chinese, naive_shingles), least=15)


@pytest.mark.slow
@pytest.mark.parametrize("chinese", [False, True])
def test_recall_follows_the_curve_over_thousands_of_pairs(chinese, naive_shingles):
    check(recall_by_bin(12_000, chinese, naive_shingles), least=300)


def test_signatures_estimate_the_jaccard_similarity(naive_shingles):
    pairs = planted(200, 9, chinese=False)
    one, two = (
        minhash.signatures(words_of(column(list(side))), 112, 5)
        for side in zip(*pairs, strict=True)
    )
    sets = [(naive_shingles(a), naive_shingles(b)) for a, b in pairs]
    near = np.array([len(a & b) / len(a | b) for a, b in sets])
    error = (one == two).mean(axis=1) - near
    assert abs(error.mean()) < 0.01
    assert error.std() < 0.06  # sqrt(s (1 - s) / 112) is 0.047 at most


def test_long_and_short_texts_estimate_their_similarity_alike(naive_shingles):
    """A short text leaves places empty that a similar longer text fills in the first round."""
    draw = random.Random(3)
    short = [f"w{draw.randrange(10**6)}" for _ in range(160)]
    texts = [" ".join(short), " ".join(short + [f"v{i}" for i in range(640)])]
    near = len(naive_shingles(texts[0])) / len(naive_shingles(texts[1]))
    one, two = minhash.signatures(column(texts), 4000, 5)
    assert (one == two).mean() == pytest.approx(near, abs=5 * (near * (1 - near) / 4000) ** 0.5)


@settings(max_examples=40, deadline=None)
@given(texts=texts_st, hashes=st.integers(1, 40))
def test_texts_have_the_signature_of_their_words_and_none_without(texts, hashes):
    words = words_of(column(texts))
    found = minhash.signatures(column(texts), hashes, 5)
    assert np.array_equal(found, minhash.signatures(words, hashes, 5))
    assert minhash.has_words(found).tolist() == [word != "" for word in words.to_pylist()]


GOLDEN_SIGNATURES = [[162098256, 3733578026, 261401888], [171930613, 58822985, 2207066083]]
GOLDEN_BANDS = [
    [-4144250057564092238, 8198511747477294437],
    [-3504487297472278995, 165698503500548963],
]
