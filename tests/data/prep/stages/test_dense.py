"""The dense stage against brute force over exact products, against theory, and in any parts."""

from __future__ import annotations

import hashlib
import math
import random
import sys
import types
from contextlib import contextmanager
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bc2.data.prep.open_engine import open_engine
from bc2.data.prep.part_files import SUFFIX, read_part_file, write_part_file
from bc2.data.prep.pipeline import Parts, run_stages
from bc2.data.prep.settings import DenseSettings, NearSettings
from bc2.data.prep.stages import dense
from bc2.data.prep.stages.base import REMOVED
from bc2.data.prep.stages.deduplication.connected_components import equal_groups
from bc2.data.prep.stages.dense import DenseStage
from bc2.data.prep.stages.near import NearStage
from bc2.data.prep.text import embedding, minhash
from bc2.data.prep.text.word_hashes import words_of
from bc2.errors import DataError, RecipeError, UsageError

ENGLISH = [f"word{i}" for i in range(3000)]
CHINESE = [chr(0x4E00 + i) for i in range(3000)]
VOCABULARIES = pytest.mark.parametrize("vocabulary", [ENGLISH, CHINESE], ids=["en", "zh"])


@pytest.fixture
def stage() -> DenseStage:
    return DenseStage(DenseSettings())


def sentences_of(draw: random.Random, count: int, vocabulary: list[str] = ENGLISH) -> list[str]:
    glue = "" if vocabulary is CHINESE else " "
    return [glue.join(draw.choices(vocabulary, k=15)) for _ in range(count)]


def text_of(sentences: list[str], vocabulary: list[str] = ENGLISH) -> str:
    return "".join(f"{one}。" if vocabulary is CHINESE else f"{one}. " for one in sentences)


def replaced(draw: random.Random, sentences: list[str], every: int, vocabulary: list[str]):
    """The text with one word in `every` replaced."""
    glue = "" if vocabulary is CHINESE else " "
    words = [list(one) if vocabulary is CHINESE else one.split(" ") for one in sentences]
    places = [(i, j) for i, row in enumerate(words) for j in range(len(row))]
    for i, j in places[every // 2 :: every]:
        words[i][j] = draw.choice(vocabulary)
    return [glue.join(row) for row in words]


def dropped_rows(outcomes) -> dict[int, str]:
    """pos -> detail of the dropped documents; checks that no document is lost or out of order."""
    gone: dict[int, str] = {}
    for outcome in outcomes:
        assert outcome.removed.schema == REMOVED
        assert outcome.removed["whole"].to_pylist() == [True] * len(outcome.removed)
        assert set(outcome.removed["reason"].to_pylist()) <= {"dense_duplicate"}
        kept = outcome.table["pos"].to_pylist()
        assert kept == sorted(kept)
        rows = zip(*(outcome.removed[name].to_pylist() for name in ("pos", "detail")), strict=True)
        gone |= dict(rows)
        assert not gone.keys() & set(kept)
    return gone


# -- theory --------------------------------------------------------------------------------


def test_bands_follow_from_threshold_and_recall():
    assert dense.bit_bands_for(0.95, 0.97, 1024) == (44, 23)
    assert dense.bit_chance(1) == 1
    assert dense.bit_chance(0) == 0.5
    assert dense.bit_chance(0.5) == pytest.approx(2 / 3)
    assert dense.bit_recall_at(0.95, 44, 23) == pytest.approx(0.98, abs=0.002)
    assert dense.bit_bands_for(1.0, 0.97, 1024) == (32, 32)  # a band is 32 bits at most


@settings(max_examples=60, deadline=None)
@given(threshold=st.floats(0.05, 1), recall=st.floats(0.01, 0.999), bits=st.integers(1, 300))
def test_bands_are_the_most_rows_that_reach_the_recall(threshold, recall, bits):
    same = 1 - math.acos(threshold) / math.pi
    reach = [
        rows for rows in range(1, min(bits, 32) + 1)
        if 1 - (1 - same**rows) ** (bits // rows) >= recall
    ]  # fmt: skip
    if reach:
        assert dense.bit_bands_for(threshold, recall, bits) == (bits // max(reach), max(reach))
    else:
        with pytest.raises(RecipeError, match="cannot find"):
            dense.bit_bands_for(threshold, recall, bits)


def test_planes_are_close_to_normal_and_whole_numbers():
    planes = dense.hyperplanes(256, 500, 3)
    assert np.array_equal(planes, np.rint(planes))
    assert np.abs(planes).max() * 127 * 4096 < 2**53
    unit = planes / 2**16
    assert abs(unit.mean()) < 0.01
    assert abs(unit.std() - 1) < 0.01
    assert 2.8 < (unit**4).mean() < 3
    assert abs(np.corrcoef(unit[:, :50].T) - np.eye(50)).max() < 0.3
    assert not np.array_equal(planes, dense.hyperplanes(256, 500, 4))


def at_cosines(wanted: np.ndarray, dimensions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of unit vectors of given cosines."""
    rng = np.random.default_rng(seed)
    one, other = rng.standard_normal((2, len(wanted), dimensions))
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    other -= (other * one).sum(axis=1, keepdims=True) * one
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return one, wanted[:, None] * one + np.sqrt(1 - wanted[:, None] ** 2) * other


def test_the_recall_of_pairs_is_that_of_the_theory():
    wanted = np.repeat([0.8, 0.9, 0.95, 0.98], 500)
    vectors = [
        embedding.quantise(np.rint(side * 4096).astype(np.int64))
        for side in at_cosines(wanted, 256, 1)
    ]
    planes = dense.hyperplanes(256, 44 * 23, 0)
    one, two = (dense.bit_band_values(side, planes, 44) for side in vectors)
    cosines = dense.cosines(*vectors)
    assert np.abs(cosines - wanted).max() < 0.002  # the error of rounding to bytes
    hit = (one == two).any(axis=1)
    for low in (0.8, 0.9, 0.95, 0.98):
        mine = wanted == low
        chance = np.array([dense.bit_recall_at(c, 44, 23) for c in cosines[mine]])
        spread = np.sqrt((chance * (1 - chance)).sum())
        assert abs(hit[mine].sum() - chance.sum()) <= 4 * spread + 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 64))
def test_bands_and_cosines_one_at_a_time_in_plain_python(seed, dimensions):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-127, 128, (4, dimensions)).astype(np.int8)
    vectors[:, 0] = 1
    planes = dense.hyperplanes(dimensions, 12, seed)
    found = dense.bit_band_values(vectors, planes, 3)
    for row, vector in zip(found.tolist(), vectors.tolist(), strict=True):
        sums = [sum(v * int(p) for v, p in zip(vector, plane, strict=True)) for plane in planes.T]
        bits = [total > 0 for total in sums]
        assert row == [sum(bits[4 * b + i] << i for i in range(4)) for b in range(3)]
        alone = dense.bit_band_values(np.array([vector], np.int8), planes, 3)
        assert alone[0].tolist() == row
    for one, two in combinations(vectors.tolist(), 2):
        product = sum(a * b for a, b in zip(one, two, strict=True))
        square = Fraction(product**2, sum(a * a for a in one) * sum(b * b for b in two))
        cosine = dense.cosines(np.array([one], np.int8), np.array([two], np.int8))[0]
        assert cosine == pytest.approx(math.copysign(math.sqrt(square), product), abs=1e-15)
    assert dense.cosines(vectors, vectors).tolist() == [1.0] * 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=40))
def test_groups_of_equal_values_are_those_of_plain_python(values):
    members, ends = equal_groups(np.array(values, np.uint32))
    groups = [[i for i, v in enumerate(values) if v == value] for value in sorted(set(values))]
    found = [members[a:b].tolist() for a, b in pairwise(ends.tolist())]
    assert found == [group for group in groups if len(group) > 1]


# -- a model with given vectors ------------------------------------------------------------


@pytest.fixture
def fake_model(monkeypatch):
    """``fake_model(encode, width)``: a stub of sentence-transformers; `encode`: text -> vector."""

    def install(encode, width: int) -> None:
        class Model:
            def __init__(self, name: str, device: str):
                assert device == "cpu"

            def encode(self, text: str, normalize_embeddings: bool, show_progress_bar: bool):
                assert normalize_embeddings
                vector = np.array(encode(text), np.float32)
                return vector / max(np.float32(np.linalg.norm(vector)), np.float32(1e-9))

            def get_sentence_embedding_dimension(self) -> int:
                return width

        fake = types.ModuleType("sentence_transformers")
        fake.SentenceTransformer = Model
        fake.__spec__ = types.SimpleNamespace()
        monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
        embedding._model.cache_clear()

    yield install
    embedding._model.cache_clear()


def numbered(count: int) -> list[str]:
    return [f"{i} " + "word " * 20 for i in range(count)]


def stored(stage: DenseStage, table: pa.Table) -> np.ndarray:
    rows = stage.keys(table)["vector"].to_pylist()
    return np.frombuffer(b"".join(rows), np.int8).reshape(len(rows), -1).astype(np.int64)


def true_edges(vectors: np.ndarray, threshold: float) -> dict[tuple[int, int], float]:
    """Every pair that reaches the threshold, from the whole matrix of integer products."""
    products = vectors @ vectors.T
    sizes = np.sqrt((np.diag(products)[:, None] * np.diag(products)[None, :]).astype(np.float64))
    near = products / sizes
    one, two = np.nonzero(np.triu(near >= threshold, 1))
    pairs = zip(one.tolist(), two.tolist(), strict=True)
    return dict(zip(pairs, near[one, two].tolist(), strict=True))


def groups_of(count: int, edges) -> list[set[int]]:
    group = [{i} for i in range(count)]
    for i, j in edges:
        if group[i] is not group[j]:
            group[i] |= group[j]
            for member in group[j]:
                group[member] = group[i]
    return group


@pytest.mark.parametrize("threshold", [0.85, 0.95])
def test_pairs_and_components_against_brute_force(threshold, fake_model, records, run_stage):
    one, two = at_cosines(np.random.default_rng(5).uniform(0.75, 1, 400), 64, 2)
    _, third = at_cosines(np.full(400, threshold + 0.02), 64, 2)
    vectors = np.concatenate([one, two, third])[np.random.default_rng(6).permutation(1200)]
    fake_model(lambda text: vectors[int(text.split()[0])], 64)
    stage = DenseStage(DenseSettings(model="fake", threshold=threshold))
    table = records(numbered(len(vectors)))
    outcomes, facts = run_stage(stage, [table.slice(0, 500), table.slice(500)])
    edges = true_edges(stored(stage, table), threshold)
    groups = groups_of(len(vectors), edges)
    gone = dropped_rows(outcomes)
    for pos, detail in gone.items():
        keeper = int(detail.split(" ")[1].split(":")[1]) - 1  # origin rows count from 1
        assert keeper in groups[pos]
        assert keeper < pos
        assert keeper not in gone
    chance = np.array([dense.bit_recall_at(c, stage.bands, stage.rows) for c in edges.values()])
    assert facts["passed_over"] == 0
    assert len(edges) > 300
    assert facts["pairs"] <= len(edges)
    spread = np.sqrt((chance * (1 - chance)).sum())
    assert abs(facts["pairs"] - chance.sum()) <= 4 * spread + 1
    most = len(vectors) - len({id(group) for group in groups})
    assert 0.97 * most <= len(gone) == facts["dropped"] <= most


def test_a_chain_is_one_component_and_says_how_near_its_ends_are(fake_model, records, run_stage):
    angles = [0, 0.3, 0.6]  # cosines 0.955, and 0.825 from end to end
    fake_model(lambda text: [math.cos(a := angles[int(text[0])]), math.sin(a)], 2)
    stage = DenseStage(DenseSettings(model="fake"))
    table = records(numbered(3))
    outcomes, facts = run_stage(stage, [table])
    end = true_edges(stored(stage, table), 0.5)[0, 2]
    assert dropped_rows(outcomes)[2] == f"of file.jsonl:1 cosine {end:.3f}"
    assert end == pytest.approx(0.825, abs=0.01)
    assert (facts["dropped"], facts["chained"], facts["components"]) == (2, 1, 1)


def test_a_vector_of_nothing_is_left_alone(fake_model, records, run_stage):
    fake_model(lambda text: [0, 0, 0], 3)
    outcomes, facts = run_stage(DenseStage(DenseSettings(model="fake")), [records(numbered(5))])
    assert dropped_rows(outcomes) == {}
    assert facts["documents"] == 0


def test_a_long_text_is_the_mean_of_its_spans(fake_model):
    fake_model(lambda text: [text.count("a"), text.count("b")], 2)
    texts = ["a" * 16 + "b" * 4, "", "a" * 7, "b" * 32]
    found = embedding.embed_spans("fake", texts, 16)
    assert found.tolist() == [[16 * 4096, 4 * 4096], [0, 0], [7 * 4096, 0], [0, 32 * 4096]]
    for text, row in zip(texts, found.tolist(), strict=True):
        assert embedding.embed_spans("fake", [text], 16).tolist() == [row]
    assert embedding.embed_spans("fake", [], 16).shape == (0, 2)


def test_a_model_without_its_library(monkeypatch):
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"corpus\.dense\.model needs sentence-transformers"):
        DenseStage(DenseSettings(model="a/b")).check()
    monkeypatch.setattr(embedding, "find_spec", lambda name: object())
    with pytest.raises(DataError, match="no such model") as caught:
        DenseStage(DenseSettings(model="./none")).check()
    assert caught.value.todo == "check corpus.dense.model"
    DenseStage(DenseSettings()).check()


def test_the_files_of_a_model_are_keyed(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"x")
    found = DenseStage(DenseSettings(model=str(tmp_path))).digests()
    assert found == {"w.bin": hashlib.sha256(b"x").hexdigest()}
    assert DenseStage(DenseSettings()).digests() == {}


# -- the embedding of words ----------------------------------------------------------------


def naive_projection(words: list[str], dimensions: int, seed: int) -> list[int]:
    """The projection computed term by term."""
    terms = {(word,) for word in words} | set(pairwise(words))
    found = [0] * dimensions
    for term in terms:
        text = pa.array([" ".join(term)], pa.large_string())
        values, _ = minhash.shingle_sets(text, len(term))
        mixed = int(embedding.mix(values ^ embedding.mix(np.uint64(seed)))[0])
        found[mixed % dimensions] += 1 if mixed >> 63 else -1
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdeé天地玄"), min_size=2, max_size=30), max_size=4),
    st.integers(8, 40),
    st.integers(0, 9),
)
def test_a_projection_is_the_sum_of_its_terms(lists, dimensions, seed):
    words = pa.array([" ".join(words) for words in lists], pa.large_string())
    found = embedding.project(words, dimensions, seed)
    assert found.tolist() == [naive_projection(words, dimensions, seed) for words in lists]


def test_projections_estimate_the_cosine_of_sets(naive_words):
    draw = random.Random(2)
    firsts = [sentences_of(draw, 20) for _ in range(200)]
    seconds = [replaced(draw, one, draw.randint(3, 60), ENGLISH) for one in firsts]
    texts = [text_of(one) for one in (*firsts, *seconds)]
    words = words_of(pa.array(texts, pa.large_string()))
    found = embedding.project(words, 256, 0)
    sets = [{(w,) for w in ws} | set(pairwise(ws)) for ws in map(naive_words, texts)]
    error = []
    for i in range(200):
        one, two = sets[i], sets[i + 200]
        true = len(one & two) / math.sqrt(len(one) * len(two))
        near = found[i] @ found[i + 200] / math.sqrt(found[i] @ found[i] * found[i + 200] @ found[i + 200])  # noqa: E501  # fmt: skip
        error.append((near - true) / ((1 - true**2) / 16))
    assert abs(np.mean(error)) < 0.3
    assert 0.8 < np.std(error) < 1.25


def test_vectors_of_bytes_point_where_they_did():
    vectors = np.random.default_rng(0).integers(-50, 50, (40, 256))
    found = embedding.quantise(vectors)
    assert (np.abs(found.astype(int)).max(axis=1) == 127).all()
    norms = [np.linalg.norm(side.astype(float), axis=1) for side in (vectors, found)]
    assert ((vectors * found.astype(int)).sum(axis=1) / norms[0] / norms[1]).min() > 0.9998
    assert embedding.quantise(np.zeros((2, 3), np.int64)).tolist() == [[0, 0, 0]] * 2
    assert embedding.quantise(np.zeros((0, 3), np.int64)).shape == (0, 3)


def test_the_same_text_has_this_vector_for_ever(records):
    """Golden values: a change here needs a new version of the stage."""
    texts = ["To be, or not to be: that is the question. " * 2, "天地玄黄宇宙洪荒" * 3]
    stage = DenseStage(DenseSettings(dimensions=8, bits=128))
    keys = stage.keys(records(texts))
    assert [list(map(int, np.frombuffer(v, np.int8))) for v in keys["vector"].to_pylist()] == GOLDEN
    assert [keys[name][0].as_py() for name in ("band_00", "band_04")] == GOLDEN_BANDS
    assert keys.schema.field("band_00").type == pa.uint32()


GOLDEN = [[0, 0, -127, 95, 0, 64, 32, 95], [-64, 127, 0, 64, -127, 0, 0, 0]]
GOLDEN_BANDS = [1336, 1788]


@VOCABULARIES
def test_what_shingles_miss_and_words_find(vocabulary, run_stage, records):
    stage = DenseStage(DenseSettings(dimensions=1024))
    draw = random.Random(1)
    sentences = sentences_of(draw, 30, vocabulary)
    changed = [
        sorted(sentences),
        replaced(draw, sentences, 40, vocabulary),
        sentences_of(draw, 30, vocabulary),
    ]
    texts = [text_of(one, vocabulary) for one in (sentences, *changed)]
    near, _ = run_stage(NearStage(NearSettings()), [records(texts)])
    assert len(near[0].removed) == 0
    outcomes, facts = run_stage(stage, [records(texts[:2]), records(texts[2:], first=2)])
    gone = dropped_rows(outcomes)
    assert gone.keys() == {0, 1}, "the text in which words were replaced has more distinct ones"
    assert gone[0].startswith("of file.jsonl:3 cosine 0.9")
    sizes = [size for outcome in outcomes for size in outcome.removed["bytes"].to_pylist()]
    assert sizes == [len(texts[i].encode()) for i in (0, 1)]
    assert all(type(value) is int for value in facts.values())
    assert facts["dropped"] == 2


def test_short_and_empty_documents_are_left_alone(run_stage, records, stage):
    texts = ["", "", " \n", "!?", "。", "a b c", "a b c", "word " * 19, "word " * 19, "天" * 19]
    outcomes, facts = run_stage(stage, [records([*texts, "天" * 19])])
    assert dropped_rows(outcomes) == {}
    assert facts["documents"] == 0
    outcomes, facts = run_stage(stage, [records(["a " * 20, "天" * 20, "天" * 20, "A\n" * 20])])
    assert dropped_rows(outcomes).keys() == {2, 3}
    loose = DenseStage(DenseSettings(min_words=1))
    outcomes, facts = run_stage(loose, [records([*texts, "天" * 19])])
    assert dropped_rows(outcomes).keys() == {6, 8, 10}
    assert facts["documents"] == 6


def test_nothing_at_all(run_stage, records, stage):
    assert run_stage(stage, [])[1]["documents"] == 0
    outcomes, facts = run_stage(stage, [records([]), records(["", "..."]), records([], first=9)])
    assert dropped_rows(outcomes) == {}
    assert sum(len(outcome.table) for outcome in outcomes) == 2
    assert set(facts.values()) == {0}


def test_the_best_stays_and_of_equals_the_first(run_stage, records, stage):
    draw = random.Random(4)
    one, two, three = (text_of(sentences_of(draw, 4)) for _ in range(3))
    scores = np.array([0.1, 0.5, 0.9, 0.5, 0.2, np.nan, 0.0], np.float32)
    table = records([one, two, one, two, two, three, three], quality=scores)
    outcomes, _ = run_stage(stage, [table.slice(0, 4), table.slice(4)])
    assert dropped_rows(outcomes).keys() == {0, 3, 4, 5}
    outcomes, _ = run_stage(stage, [table.drop_columns(["quality"])])
    assert dropped_rows(outcomes) == {
        pos: f"of file.jsonl:{keeper + 1} cosine 1.000"
        for pos, keeper in {2: 0, 3: 1, 4: 1, 6: 5}.items()
    }


def test_of_a_near_pair_the_one_with_more_words_of_its_own_stays(run_stage, records):
    """Repeated words are no more text; quality decides only where it differs."""
    draw = random.Random(6)
    mail = text_of(sentences_of(draw, 20))
    reply = f"{text_of(sentences_of(draw, 1))}\n\n{mail}"
    stage = DenseStage(DenseSettings(threshold=0.9))
    for texts, gone in (([mail, reply], {0}), ([f"{mail} {mail}", reply], {0})):
        assert dropped_rows(run_stage(stage, [records(texts)])[0]).keys() == gone
        for scores, better in (([0.8, 0.71], gone), ([0.9, 0.75], {1})):
            table = records(texts, quality=np.array(scores, np.float32))
            assert dropped_rows(run_stage(stage, [table])[0]).keys() == better


def test_a_long_file_name_does_not_cut_how_near(run_stage, records, stage):
    table = records(["天" * 30] * 2)
    at = table.schema.get_field_index("origin_file")
    names = pa.array(["x" * 500 + "/name.jsonl"] * 2)
    outcomes, _ = run_stage(stage, [table.set_column(at, table.schema.field(at), names)])
    detail = dropped_rows(outcomes)[1]
    assert len(detail) == 200
    assert detail.endswith("xx/name.jsonl:1 cosine 1.000")


def test_a_crowd_of_near_copies_leaves_one(run_stage, records, stage):
    """In buckets above 64 not all pairs are tried, but all near copies are joined all the same."""
    draw = random.Random(5)
    text = text_of(sentences_of(draw, 20))
    texts = [f"{text} {draw.choice(ENGLISH)}" for _ in range(300)]
    outcomes, facts = run_stage(stage, [records(texts[:120]), records(texts[120:], first=120)])
    assert len(dropped_rows(outcomes)) == 299
    assert facts["passed_over"] > 0


# -- parts and workers do not change results -----------------------------------------------


def families(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    texts = []
    for number in range(count):
        vocabulary = CHINESE if number % 2 else ENGLISH
        first = sentences_of(draw, draw.randint(1, 12), vocabulary)
        texts.append(text_of(first, vocabulary))
        for _ in range(draw.randint(0, 3)):
            changed = replaced(draw, first, draw.choice([20, 40, 80]), vocabulary)
            texts.append(text_of(draw.sample(changed, len(changed)), vocabulary))
    draw.shuffle(texts)
    return texts


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 60), max_size=5).map(sorted),
    backwards=st.booleans(),
)
def test_parts_and_their_order_change_nothing(seed, cuts, backwards, run_stage, records):
    table, stage = records(families(seed, 25)), DenseStage(DenseSettings(threshold=0.9))
    whole, facts = run_stage(stage, [table])
    assert facts["dropped"] > 0
    edges = [0, *cuts, len(table)]
    parts = [table.slice(a, max(b - a, 0)) for a, b in pairwise(edges)]
    outcomes, same = run_stage(stage, parts[::-1] if backwards else parts)
    assert same == facts
    for name in ("table", "removed"):
        joined = pa.concat_tables([getattr(o, name) for o in outcomes]).sort_by("pos")
        assert joined.equals(getattr(whole[0], name))


def test_neighbours_change_no_vector(records, stage, monkeypatch):
    texts = families(3, 20)
    whole = stage.keys(records(texts))
    for limit in (1, 300):
        monkeypatch.setattr(dense, "SLICE_BYTES", limit)
        assert stage.keys(records(texts)).equals(whole)
    monkeypatch.setattr(dense, "_AT_ONCE", 3)
    assert stage.keys(records(texts)).equals(whole)
    alone = [stage.keys(records([text], first=i)) for i, text in enumerate(texts)]
    assert pa.concat_tables([one for one in alone if len(one)]).equals(whole)


@contextmanager
def silent(*_):
    yield lambda *_: None


def test_one_process_and_two_with_small_parts(records, tmp_path):
    """Runs the pipeline, with workers that verify few pairs at a time."""
    table, found = records(families(9, 40)), {}
    for workers, size in ((1, len(table)), (2, 7)):
        folder = tmp_path / str(workers)
        (folder / "in").mkdir(parents=True)
        names = [f"{first:05d}" for first in range(0, len(table), size)]
        for name in names:
            write_part_file(table.slice(int(name), size), folder / "in" / f"{name}{SUFFIX}")
        with open_engine("local", workers, 0) as engine:
            stages = [DenseStage(DenseSettings())]
            funnel = run_stages(stages, Parts(folder / "in", names), folder, engine, silent)
        left = [read_part_file(funnel.parts.path(name)) for name in names]
        found[workers] = pa.concat_tables(left).combine_chunks(), funnel.settled
    assert found[1][1] == found[2][1]
    assert found[1][0].equals(found[2][0])
    assert found[1][1]["dense"]["dropped"] > 0


# -- wrong settings ------------------------------------------------------------------------


def test_impossible_settings():
    with pytest.raises(RecipeError, match="2 bits cannot find 99") as caught:
        DenseStage(DenseSettings(threshold=0.1, recall=0.99, bits=2))
    assert caught.value.where == "corpus.dense.threshold"
    assert "a recall of at most 0.7" in str(caught.value.todo)


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": 0.0}, {"threshold": 1.1}, {"recall": 1.0}, {"bits": 0}, {"dimensions": 4},
     {"span": 1}, {"min_words": 0}, {"model": ""}, {"seed": -1}, {"shingle": 5}],
)  # fmt: skip
def test_wrong_settings(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DenseSettings(**wrong)
