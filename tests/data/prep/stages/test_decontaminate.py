"""Decontamination: windows against brute force, planted questions, files and lm-eval tasks."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pickle
import random
import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bc2.data.prep.settings import BenchmarkSettings, DecontaminateSettings
from bc2.data.prep.stages.decontaminate import DecontaminateStage
from bc2.data.prep.stages.decontamination.benchmark_texts import _without_template, read_benchmark
from bc2.data.prep.stages.decontamination.ngram_index import NgramIndex, Sizes, Units
from bc2.errors import DataError, RecipeError

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data"))

QUESTIONS = [
    "A farmer has seventeen sheep, and all but nine run away. How many are left on the farm?",
    "What is the capital of the country that borders both France and Portugal today?",
    "Which gas do plants take from the air?",
    "小明家的果园里一共有三百二十棵苹果树和一百八十棵梨树，请问苹果树比梨树多多少棵？",
    "在下列各项中属于可再生能源的是哪一项",
    "Is it?",
]
FILLER = "The harbour was quiet that morning, and the boats lay still under a grey sky. "


def naive_units(text):
    """Words and CJK characters, folded, with their places."""
    for match in re.finditer(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])[^\W_])+", text):
        yield unicodedata.normalize("NFKC", match[0]).casefold(), match.start(), match.end()


def naive_windows(text, sizes):
    words = [word for word, _, _ in naive_units(text)]
    is_cjk = [bool(re.match("[\u3400-\u9fff]", word)) for word in words]
    found = []
    for i in range(len(words)):
        mostly = 2 * sum(is_cjk[i : i + sizes.ngram]) > sizes.ngram
        size = sizes.cjk_ngram if mostly else sizes.ngram
        if i + size <= len(words):
            found.append(tuple(words[i : i + size]))
    least = sizes.min_cjk if 2 * sum(is_cjk) > len(words) else sizes.min_words
    if not found and len(words) >= least:
        found = [tuple(words)]
    return {window for window in found if 3 * len(set(window)) >= len(window)}


words_st = st.lists(
    st.sampled_from(["Red", "red", "fish", "two", "水", "火山", "Ｆish", ", ", "-", "\n", "3"]),
    max_size=25,
).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(
    wanted=st.lists(words_st, max_size=4),
    texts=st.lists(words_st, max_size=4),
    sizes=st.sampled_from([Sizes(5, 7, 3, 4), Sizes(5, 5, 5, 5), Sizes(6, 3, 2, 1)]),
)
def test_what_is_found_is_what_brute_force_finds(wanted, texts, sizes):
    windows = {window for text in wanted for window in naive_windows(text, sizes)}
    expected = set()
    for number, text in enumerate(texts):
        units = list(naive_units(text))
        for i in range(len(units)):
            for window in windows:
                if tuple(word for word, _, _ in units[i : i + len(window)]) == window:
                    expected.add((number, units[i][1], units[i + len(window) - 1][2]))
    index, short = NgramIndex.of(wanted, sizes)
    units = Units.of(texts)
    at, grams = index.find(units)
    stop = units.stop[at + index.size[grams] - 1]
    found = zip(units.text[at].tolist(), units.start[at].tolist(), stop.tolist(), strict=True)
    assert set(found) == expected
    assert short.tolist() == [not naive_windows(text, sizes) for text in wanted]


def test_format_characters_and_unknown_code_points_do_no_harm():
    units = Units.of(["so\u00adft hy\u200bphen\U0010ffff\U000e0100end", "", "下ー々ｶ 가나"])
    assert units.text.tolist() == [0, 0, 0, 2, 2, 2, 2, 2]
    assert units.is_cjk.tolist() == [False] * 3 + [True] * 4 + [False]


@pytest.fixture
def benchmark_file(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    return path


def stage_of(path, **more):
    benchmark = BenchmarkSettings(name="quiz", path=str(path), fields=("question",))
    return DecontaminateStage(DecontaminateSettings(benchmarks=(benchmark,), **more))


def disguised(text, kind):
    if kind == "case":
        return text.upper()
    if kind == "space":
        return re.sub(r"(?<=[一-鿿])|\s+", " \n", text)
    if kind == "punctuation":
        # Radicals are symbols by category, and read as the characters that they stand for.
        return re.sub(r"[^\w\s⺀-⿕]", " ", text).replace(" ", " -- ")
    if kind == "width":
        return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    return text


@pytest.mark.parametrize("kind", ["as it is", "case", "space", "punctuation", "width"])
def test_every_planted_question_is_found(run_stage, records, benchmark_file, kind):
    picks = random.Random(kind)
    texts = [FILLER * picks.randrange(4) for _ in range(20)]
    planted = {3: 0, 4: 1, 8: 2, 11: 3, 19: 4}
    for at, question in planted.items():
        texts[at] += f" {disguised(QUESTIONS[question], kind)} {FILLER}"
    table = records(texts)
    outcomes, facts = run_stage(stage_of(benchmark_file), [table.slice(0, 9), table.slice(9)])
    left = [pos for outcome in outcomes for pos in outcome.table["pos"].to_pylist()]
    assert left == [i for i in range(20) if i not in planted]
    assert facts["benchmarks"] == {"quiz": {"texts": 6, "too_short": 1, "found": 5, "documents": 5}}
    gone = pa.concat_tables([outcome.removed for outcome in outcomes]).to_pylist()
    assert all(row["whole"] and row["reason"] == "benchmark_overlap" for row in gone)
    assert [row["bytes"] for row in gone] == [len(texts[at].encode()) for at in planted]


def test_a_detail_names_the_item_and_shows_both_texts(run_stage, records, benchmark_file):
    texts = [FILLER, FILLER + QUESTIONS[0].upper() + QUESTIONS[1]]
    outcomes, _ = run_stage(stage_of(benchmark_file, action="report"), [records(texts)])
    (row,) = outcomes[0].removed.to_pylist()
    folder = benchmark_file.parent.name[: 80 - len("quiz//questions.jsonl:1")]
    assert row["detail"].startswith(f"quiz/{folder}/questions.jsonl:1 +1: “A farmer has")
    assert "| “A FARMER HAS" in row["detail"]
    assert len(row["detail"]) <= 200
    assert (row["whole"], row["bytes"]) == (False, 0)
    assert outcomes[0].table["text"].to_pylist() == texts


#: A question in which each form below changes something, and how texts may write it.
WRITTEN = (
    "The chief officer of a café in Zürich baked ½ of the fluffy naïve soufflés"
    " for 25 ℃ in the Straße. How long did 한글 ガス last?"
)
FORMS = {
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "NFKC": lambda text: unicodedata.normalize("NFKC", text).replace("\u2044", "/"),
    "NFKD": lambda text: unicodedata.normalize("NFKD", text),
    "ligatures": lambda text: text.replace("ffi", "ﬃ").replace("fl", "ﬂ").replace("ff", "ﬀ"),
    "capitals": str.upper,
    "soft hyphens": lambda text: text.replace("office", "of\u00adfi\u00adce"),
    "half width": lambda text: text.replace("ガス", "ｶﾞｽ"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_question_is_found_however_its_characters_are_written(run_stage, records, tmp_path, form):
    path = tmp_path / "written.jsonl"
    path.write_text(json.dumps({"question": WRITTEN}) + "\n")
    changed = FORMS[form](WRITTEN)
    assert changed != WRITTEN
    text = f"{FILLER}The ﬁrst ½ é {changed} {FILLER}"
    stage = stage_of(path, action="cut", margin=0)
    outcomes, facts = run_stage(stage, [records([text])])
    assert facts["matches"] == 17  # all: 29 words in windows of 13
    (row,) = annotations_of(outcomes)
    bare = changed.rstrip("?")
    assert row["text"][slice(*row["shared"])] == bare
    (removed,) = outcomes[0].removed.to_pylist()
    assert removed["place"] == text.index(bare)
    assert outcomes[0].table["text"].to_pylist() == [f"{FILLER}{FILLER}"]


def annotations_of(outcomes):
    return pa.concat_tables(
        [o.annotations for o in outcomes if o.annotations is not None]
    ).to_pylist()


def test_every_match_is_listed_with_both_texts(run_stage, records, benchmark_file):
    whole = QUESTIONS[0].upper().replace(" ", "  ")
    part = " ".join(QUESTIONS[1].split()[1:])
    short = QUESTIONS[2]
    texts = [FILLER, f"{FILLER * 3}{whole} {FILLER} {part} {FILLER}{whole}", QUESTIONS[3], short]
    outcomes, facts = run_stage(stage_of(benchmark_file), [records(texts, lang="en")])
    rows = annotations_of(outcomes)
    place = f"{benchmark_file.parent.name}/questions.jsonl"
    assert [(row["row"], row["item"], row["how"], row["words"]) for row in rows] == [
        (2, f"{place}:1", "text", 18),
        (2, f"{place}:2", "ngram", 13),
        (3, f"{place}:4", "text", len(list(naive_units(QUESTIONS[3])))),
        (4, f"{place}:3", "text", 8),
    ]
    assert {(r["file"], r["source"], r["lang"], r["benchmark"], r["done"]) for r in rows} == {
        ("file.jsonl", "s", "en", "quiz", "dropped")
    }
    assert (facts["pairs"], facts["not_listed"]) == (4, 0)
    shared = [row["text"][slice(*row["shared"])] for row in rows]
    bare = [text.rstrip("?？") for text in (whole, part, QUESTIONS[3], short)]
    assert shared == bare
    first = texts[1].index(whole)
    assert rows[0]["text"] == texts[1][first - 100 : first + len(whole) - 1 + 100]
    assert [row["benchmark_text"] for row in rows] == [QUESTIONS[i] for i in (0, 1, 3, 2)]


def test_long_matches_are_listed_in_part(run_stage, records, tmp_path):
    words = [f"word{number}" for number in range(400)]
    long = " ".join(words)
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"question": long}) + "\n")
    texts = [FILLER + long, FILLER + " ".join(words[200:213])]
    outcomes, _ = run_stage(stage_of(path), [records(texts)])
    rows = annotations_of(outcomes)
    assert [row["words"] for row in rows] == [400, 13]
    assert rows[0]["text"] == texts[0][: len(FILLER) + 400 + 100]
    assert rows[0]["shared"] == [len(FILLER), len(FILLER) + 400]
    assert rows[0]["benchmark_text"] == long[:600]
    at = long.index("word200")
    assert rows[1]["benchmark_text"] == long[at - 100 : at + 500]


@pytest.mark.parametrize("action", ["drop", "cut", "report"])
def test_what_was_done_is_listed(run_stage, records, benchmark_file, action):
    texts = [QUESTIONS[0], f"{FILLER} {QUESTIONS[0]} {FILLER}"]
    outcomes, _ = run_stage(stage_of(benchmark_file, action=action, margin=0), [records(texts)])
    done = [row["done"] for row in annotations_of(outcomes)]
    wanted = {"drop": ["dropped"] * 2, "cut": ["dropped", "cut"], "report": ["reported"] * 2}
    assert done == wanted[action]


@pytest.mark.parametrize("limit", [0, 1, 3, 100])
def test_the_first_documents_of_each_item_are_listed_and_the_rest_counted(
    run_stage, records, benchmark_file, limit
):
    picks = random.Random(limit)
    chosen = [picks.sample(QUESTIONS[:3], picks.randrange(4)) for _ in range(40)]
    texts = [FILLER + " ".join(questions) for questions in chosen]
    table = records(texts)
    stage = stage_of(benchmark_file, listed=limit, min_words=8)
    whole, facts = run_stage(stage, [table])
    listed, pairs = [], 0
    for row, questions in enumerate(chosen, 1):
        for question in questions:
            pairs += 1
            earlier = sum(question in others for others in chosen[: row - 1])
            listed += [(row, QUESTIONS.index(question) + 1)] if earlier < limit else []
    rows = annotations_of(whole)
    assert [(row["row"], int(row["item"].rpartition(":")[2])) for row in rows] == listed
    assert (facts["pairs"], facts["not_listed"]) == (pairs, pairs - len(listed))
    parts, parts_facts = run_stage(stage, [table.slice(a, 7) for a in range(0, 40, 7)])
    assert annotations_of(parts) == rows
    assert parts_facts == facts


def test_cutting_takes_the_sentences_near_a_match(run_stage, records, benchmark_file):
    before, after = "The first one stays. ", "This one is near. The last one stays, being far."
    text = before + QUESTIONS[0] + " " + after
    stage = stage_of(benchmark_file, action="cut", margin=10)
    table = records([text, QUESTIONS[0]], sentence_scores=[[0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.0]])
    outcomes, _ = run_stage(stage, [table])
    assert outcomes[0].table["text"].to_pylist() == ["The last one stays, being far."]
    assert outcomes[0].table["sentence_scores"].to_pylist() == [[4.0]]
    rows = outcomes[0].removed.to_pylist()
    assert [row["whole"] for row in rows] == [False, True]
    assert rows[0]["bytes"] == len(text) - len("The last one stays, being far.")
    stage = stage_of(benchmark_file, action="cut", margin=0)
    outcomes, _ = run_stage(stage, [table])
    assert outcomes[0].table["text"].to_pylist() == [before + after]


def test_common_phrases_are_no_evidence(run_stage, records, benchmark_file):
    texts = [QUESTIONS[0]] * 3 + [QUESTIONS[1]]
    outcomes, facts = run_stage(stage_of(benchmark_file, common=2), [records(texts)])
    assert outcomes[0].table["pos"].to_pylist() == [0, 1, 2]
    assert facts["common_grams"] > 0
    outcomes, facts = run_stage(stage_of(benchmark_file, common=3), [records(texts)])
    assert len(outcomes[0].table) == facts["common_grams"] == 0


def test_parts_and_processes_make_no_difference(run_stage, records, benchmark_file, tmp_path):
    picks = random.Random(3)
    texts = [picks.choice(QUESTIONS) + FILLER * picks.randrange(3) for _ in range(30)]
    table = records(texts)
    whole, facts = run_stage(stage_of(benchmark_file), [table])
    stage = stage_of(benchmark_file)
    stage.prepare(tmp_path / "index")
    stage = pickle.loads(pickle.dumps(stage))
    cut = [table.slice(a, b - a) for a, b in pairwise([0, 1, 7, 7, 20, 30])]
    parts, parts_facts = run_stage(stage, cut)
    assert parts_facts == facts
    assert pa.concat_tables([part.table for part in parts]).equals(whole[0].table)
    assert pa.concat_tables([part.removed for part in parts]).equals(whole[0].removed)


def test_a_question_is_found_inside_one_document_only(run_stage, records, benchmark_file):
    half = len(QUESTIONS[0]) // 2
    texts = [QUESTIONS[0][:half], QUESTIONS[0][half:]]
    outcomes, _ = run_stage(stage_of(benchmark_file), [records(texts)])
    assert len(outcomes[0].table) == 2


# -- benchmark files -----------------------------------------------------------------------

ROWS = [{"q": "One?", "o": {"A": "x", "B": "y"}}, {"q": None, "o": {"A": "", "B": "z"}}]


def write_rows(folder, kind):
    path = folder / f"bench{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == ".json":
        path.write_text(json.dumps({"examples": ROWS}))
    elif kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["q", "o.A", "o.B"])
            writer.writerows([row["q"], row["o"]["A"], row["o"]["B"]] for row in ROWS)
    else:
        path.write_text("\ufeff" + lines.replace("\n", "\n\n", 1))
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv"])
def test_every_kind_of_file_gives_the_same_texts(tmp_path, kind):
    path = write_rows(tmp_path, kind)
    fields = ("q", "o.A", "o.B") if kind == ".csv" else ("q", "o")
    settings = BenchmarkSettings(name="b", path=str(path), fields=fields, rows="examples")
    items = list(read_benchmark(settings))
    assert [item.text for item in items] == ["One?", "x", "y", "z"]
    last = 3 if kind == ".jsonl" else 2
    assert items[-1].place == f"{tmp_path.name}/bench{kind}:{last}"
    one = settings.model_copy(update={"fields": ("o.B",)})
    assert [item.text for item in read_benchmark(one)] == ["y", "z"]


def test_benchmark_files_that_cannot_be_read_are_told_under_a_glob_too(tmp_path):
    path = write_rows(tmp_path, ".jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="a pipe and not a file"):
        stage_of(tmp_path / "*.jsonl").check()
    (tmp_path / "pipe.jsonl").unlink()
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    for place in ("gone.jsonl", "*.jsonl"):
        with pytest.raises(DataError, match="a link that leads nowhere: nowhere"):
            stage_of(tmp_path / place).check()
    (tmp_path / "gone.jsonl").unlink()
    path.rename(tmp_path / "caf\udce9.jsonl")
    with pytest.raises(DataError, match="the name of a file is not UTF-8"):
        stage_of(tmp_path / "*.jsonl").check()


def test_what_is_wrong_with_a_benchmark_is_said_before_any_work(tmp_path, benchmark_file):
    with pytest.raises(DataError, match="has no files"):
        stage_of(tmp_path / "none*.jsonl").check()
    with pytest.raises(DataError, match=r"no field 'question'.*there is: q"):
        stage_of(write_rows(tmp_path, ".jsonl")).check()
    with pytest.raises(DataError, match=r"not a list of rows.*there is: examples"):
        stage_of(write_rows(tmp_path, ".json")).check()
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\n{')
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        stage_of(tmp_path / "bad.jsonl").check()
    (tmp_path / "bad.txt").write_text("a")
    with pytest.raises(DataError, match="cannot read a benchmark of this kind"):
        stage_of(tmp_path / "bad.txt").check()
    with pytest.raises(ValidationError, match="needs benchmarks or tasks"):
        DecontaminateSettings()
    stage_of(benchmark_file).check()


def test_digests_change_with_the_files(benchmark_file):
    before = stage_of(benchmark_file).digests()
    benchmark_file.write_text(benchmark_file.read_text() + '{"question": "new"}\n')
    after = stage_of(benchmark_file).digests()
    assert list(before) == list(after)
    assert before != after
    assert stage_of(benchmark_file).settings.keyed()["benchmarks"][0] == {
        "name": "quiz",
        "fields": ["question"],
        "rows": None,
    }


@pytest.fixture
def task_folder(tmp_path, benchmark_file, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "quiz.yaml").write_text(
        "task: bc2_quiz\ndataset_path: json\noutput_type: generate_until\n"
        f"dataset_kwargs:\n  data_files:\n    test: {benchmark_file}\n"
        'test_split: test\ndoc_to_text: "Question: {{question}}\\nAnswer:"\n'
        'doc_to_target: "{{question}}"\nmetric_list:\n  - metric: exact_match\n'
    )
    return folder


def test_questions_come_from_tasks_of_lm_eval(run_stage, records, task_folder):
    settings = DecontaminateSettings(tasks=("bc2_quiz",), task_path=str(task_folder))
    stage = DecontaminateStage(settings)
    stage.check()
    assert list(stage.digests()) == ["lm-eval:bc2_quiz"]
    texts = [FILLER, FILLER + QUESTIONS[0], QUESTIONS[3]]
    outcomes, facts = run_stage(stage, [records(texts)])
    assert outcomes[0].table["pos"].to_pylist() == [0]
    assert facts["benchmarks"]["bc2_quiz"]["found"] == 2
    assert outcomes[0].removed.to_pylist()[0]["detail"].startswith("bc2_quiz/bc2_quiz/test:1: “")


def test_a_short_question_of_a_task_is_found_without_its_template(
    run_stage, records, task_folder, tmp_path
):
    names = ["copper", "amber", "walnut", "linen", "basalt"]
    asked = [
        f"Which {one} bridge did the {two} merchants cross at dawn"
        for one in names
        for two in names
    ]
    rows = "".join(json.dumps({"q": f"{q}?", "o": ["yes", "no"], "a": 0}) + "\n" for q in asked)
    (tmp_path / "asked.jsonl").write_text(rows)
    (task_folder / "asked.yaml").write_text(
        "task: bc2_asked\ndataset_path: json\noutput_type: multiple_choice\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'asked.jsonl'}\n"
        'test_split: test\ndoc_to_text: "Question: {{q}}\\nAnswer:"\n'
        "doc_to_choice: o\ndoc_to_target: a\n"
    )
    (task_folder / "group.yaml").write_text("group: bc2_both\ntask: [bc2_quiz, bc2_asked]\n")
    stage = DecontaminateStage(
        DecontaminateSettings(tasks=("bc2_both",), task_path=str(task_folder))
    )
    texts = [FILLER, f"{FILLER} {asked[7]}, he wondered. {FILLER}", FILLER + QUESTIONS[0]]
    outcomes, _ = run_stage(stage, [records(texts)])
    assert outcomes[0].table["pos"].to_pylist() == [0]


def test_what_prompts_share_is_left_out_but_no_words_of_questions():
    prompts = [f"Question: Who was number {i}a?\nAnswer:" for i in range(20)]
    assert _without_template(prompts)[3] == "Who was number 3a?"
    assert _without_template(prompts[:19]) == prompts[:19]
    assert _without_template([f"题目：第{n}题\n答案：" for n in range(20)])[3] == "第3题"
    assert _without_template([f"unlike {n} ly?" for n in range(20)])[0] == "unlike 0 ly?"
    assert _without_template(["the:\nsame?"] * 20) == ["the:\nsame?"] * 20


@pytest.mark.slow
def test_an_unknown_task_is_named_with_its_nearest(task_folder):
    """Slow, because lm-eval reads all its tasks."""
    settings = DecontaminateSettings(tasks=("bc2_quis",), task_path=str(task_folder))
    with pytest.raises(RecipeError, match=r"no task 'bc2_quis'.*did you mean 'bc2_quiz'"):
        DecontaminateStage(settings).check()


@pytest.mark.skipif(not (DATA / "bench").is_dir(), reason="needs ../shared/data/bench")
def test_real_questions_planted_in_real_text_are_found(run_stage, records):
    benchmarks = (
        BenchmarkSettings(
            name="gsm8k", path=str(DATA / "bench/gsm8k/test.jsonl"), fields=("question",)
        ),
        BenchmarkSettings(
            name="cmmlu", path=str(DATA / "bench/cmmlu/data/dev/*.csv"), fields=("Question",)
        ),
    )
    stage = DecontaminateStage(DecontaminateSettings(benchmarks=benchmarks))
    items = [item.text for benchmark in benchmarks for item in read_benchmark(benchmark)]
    short = stage.prepared().items["short"].to_pylist()
    kinds = ["as it is", "case", "space", "punctuation", "width"]
    picks = random.Random(1)
    texts = [FILLER + disguised(text, picks.choice(kinds)) + "\n" + FILLER for text in items]
    outcomes, _ = run_stage(stage, [records(texts)])
    missed = set(outcomes[0].table["pos"].to_pylist())
    assert missed <= {number for number, is_short in enumerate(short) if is_short}
