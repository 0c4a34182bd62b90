"""The rules against plain Python, a document at a time; limits; documents are independent."""

from __future__ import annotations

import gzip
import json
import math
import os
import pickle
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.heuristics_settings import CodeRules, EnglishRules, FormRules, HeuristicsSettings
from bc2.data.prep.stages.heuristic_rules.judgement import judge
from bc2.data.prep.stages.heuristic_rules.rules import RULES
from bc2.data.prep.stages.heuristic_rules.text_batch import TextBatch
from bc2.data.prep.stages.heuristics import HeuristicsStage, by_script
from bc2.data.prep.text import document_statistics as form_module
from bc2.data.prep.text import repetition
from bc2.errors import RecipeError

# -- the reference: the definitions as plain loops ------------------------------------------


def is_cjk(c: str) -> bool:
    return c in "々〆〇" or any(
        word in unicodedata.name(c, "") for word in ("CJK UNIFIED", "HIRAGANA LET", "KATAKANA LET")
    )


def is_letter(c: str) -> bool:
    return is_cjk(c) or unicodedata.category(c)[0] in "LM"


def is_digit(c: str) -> bool:
    return not is_cjk(c) and unicodedata.category(c)[0] == "N"


def tokens(line: str) -> list[tuple[str, bool]]:
    """Tokens of a line, and whether each is a word."""
    found: list[tuple[str, bool]] = []
    for piece in line.split():
        runs = [""]
        for c in piece:
            if is_cjk(c):
                runs += [c, ""]
            else:
                runs[-1] += c
        runs = [run for run in runs if run]
        for at, run in enumerate(runs):
            beside = runs[max(at - 1, 0) : at] + runs[at + 1 : at + 2]
            plain = not any(is_letter(c) or is_digit(c) for c in run)
            found.append((run, not (plain and any(map(is_cjk, "".join(beside))))))
    return found


def words_of(text: str) -> list[str]:
    return [word for line in text.split("\n") for word, real in tokens(line) if real]


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def paragraphs_of(text: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            found[-1].append(line.strip())
        elif found[-1]:
            found.append([])
    return [lines for lines in found if lines]


def ratio(part: float, whole: float) -> float:
    return part / max(whole, 1)


def repeated(spans: list[tuple[str, ...]]) -> tuple[int, int]:
    """How many spans repeat an earlier one, and how many characters these have."""
    seen: set[tuple[str, ...]] = set()
    count = characters = 0
    for span in spans:
        if span in seen:
            count += 1
            characters += sum(map(len, span))
        seen.add(span)
    return count, characters


def ngram_reference(text: str, n: int) -> tuple[int, int]:
    """The reference for `NGrams.top` and `NGrams.covered`."""
    words = words_of(text)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    counts = Counter(grams)
    often = [(times, sum(map(len, gram))) for gram, times in counts.items() if times >= 8]
    covered = {i + k for i, gram in enumerate(grams) if counts[gram] > 1 for k in range(n)}
    times, length = max(often, default=(0, 0))
    return times * length, sum(len(words[i]) for i in covered)


def ends_well(line: str) -> bool:
    return line[-1] in ".…⋯!?。！？；｡．‼⁇⁈⁉؟۔।॥\"'”’»」』〞＂）〕】》"


CLOSERS = ")\"'”’»」』〞＂）〕】》"


def ends_inside(line: str) -> bool:
    if line[-1] in ":：" and len(words_of(line)) >= 10:
        return True
    marks = re.finditer(r"[.!?。！？；｡．‼⁇⁈⁉؟۔।॥]\s|[。；．]", line)
    return any(
        match.start() and (is_letter(c := line[match.start() - 1]) or c in CLOSERS)
        for match in marks
    )


def is_marked(line: str) -> bool:
    return re.match(r"[-*•‣◦●○■□▪▫◆◇★·⁃–](?:\s|$)", line) is not None


def is_listed(line: str) -> bool:
    return line[0] in "-*•‣◦●○■□▪▫◆◇★·⁃–" and len(words_of(line)) < 10 and not ends_well(line)


def reference(text: str, short_line: int) -> dict[str, float]:
    words, lines, paragraphs = words_of(text), lines_of(text), paragraphs_of(text)
    solid = [c for c in text if not c.isspace()]
    letters, digits = sum(map(is_letter, solid)), sum(map(is_digit, solid))
    spelled = sum(map(len, words))
    by_line = repeated([tuple(words_of(line)) for line in lines])
    by_paragraph = repeated([tuple(words_of("\n".join(each))) for each in paragraphs])
    ellipses = len(re.findall(r"[…⋯]+|\.{3,}", text))
    known = ("the", "be", "to", "of", "and", "that", "have", "with")
    spellings = {s: word for word in known for s in (word, word.upper(), word.capitalize())}
    runs = [r for r in re.findall(r"[A-Za-z0-9+/]+", text) if len(r) >= 64]
    runs = [r for r in runs if (r.count("+") + r.count("/")) * 8 <= len(r)]
    return {
        "words": len(words),
        "word_length": ratio(spelled, len(words)),
        "symbol_ratio": ratio(max(len(re.findall(r"[#＃]+", text)), ellipses), len(words)),
        "digit_ratio": ratio(digits, len(solid)),
        "alphabetic_words": ratio(
            sum(any(map(is_letter, w)) for w in words), len(words) - sum(map(is_marked, lines))
        ),
        "alphanumeric_ratio": ratio(letters + digits, len(solid)),
        "stop_words": len({spellings[word] for word in words if word in spellings}),
        "mean_line": ratio(sum(map(len, lines)), len(lines)),
        "longest_line": max(map(len, lines), default=0),
        "terminal_lines": max(
            ratio(sum(ends_well(line) or ends_inside(line) for line in lines), len(lines)),
            ratio(sum(ends_well(each[-1]) for each in paragraphs), len(paragraphs)),
        ),
        "bullet_lines": ratio(sum(map(is_listed, lines)), len(lines)),
        "ellipsis_lines": ratio(
            sum(line.endswith(("...", "…", "⋯")) for line in lines), len(lines)
        ),
        "short_lines": ratio(
            sum(len(line) for line in lines if len(line) < short_line), sum(map(len, lines))
        ),
        "lines_per_word": ratio(len(lines), len(words)),
        "encoded_ratio": ratio(sum(map(len, runs)), len(solid)),
        "duplicate_lines": ratio(by_line[0], len(lines)),
        "duplicate_line_characters": ratio(by_line[1], spelled),
        "duplicate_paragraphs": ratio(by_paragraph[0], len(paragraphs)),
        "duplicate_paragraph_characters": ratio(by_paragraph[1], spelled),
    }


def check(texts: list[str]) -> None:
    rules = FormRules(short_line=7)
    batch = TextBatch(texts, rules)
    measured = {
        rule.name: rule.measure(batch) for rule in RULES if rule.name != "boilerplate_lines"
    }
    for at, text in enumerate(texts):
        expected = reference(text, rules.short_line)
        assert set(expected) == set(measured)
        for name, value in expected.items():
            assert measured[name][at] == value, (name, text)
    for found in repetition.ngrams(batch.form, [1, 2, 3, 5]):
        for at, text in enumerate(texts):
            assert (found.top[at], found.covered[at]) == ngram_reference(text, found.n), text


PIECES = [
    *("the", "The", "THE", "that", "be,", "of", "naïve", "x9", "12", "#", "##", "...", "....", "…"),
    *(
        "-",
        "•",
        "* a",
        "说",
        "天气很好",
        "，",
        "。",
        "（一）",
        "「是」",
        "かな",
        "カナ",
        "한국",
        "नमस्ते",
        "é",
    ),
    *(
        "\n",
        "\n",
        "\n\n",
        "\n \n",
        " ",
        " ",
        "\t",
        "\u3000",
        "\xa0",
        ".",
        "!",
        "？",
        '"',
        "”",
        "𠀀",
        "😀",
    ),
    *("a b c\n", "a b c\n\n", "同一行。\n", "A" * 64, "ab/+" * 16, "0f" * 40, "/" * 70, "A" * 63),
]
documents = st.one_of(
    st.text(alphabet='ab 1.#\n中文，。…\u3000-"', max_size=80),
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(documents, min_size=1, max_size=5))
def test_every_measure_is_what_plain_loops_give(texts):
    check(texts)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet="ab ", max_size=60), min_size=1, max_size=3))
def test_ngrams_of_few_words_repeat_and_overlap(texts):
    check(texts)


def test_single_characters_and_nothing():
    check(
        [
            "",
            " ",
            "\n",
            "a",
            "中",
            "。",
            "#",
            "1",
            "…",
            ".",
            "...",
            "-",
            "😀",
            "\u3000",
            "a中",
            "中。",
            "。a",
        ]
    )


def test_documents_do_not_touch_each_other():
    """A run of hashes, a line, a paragraph or an n-gram never spans two documents."""
    check(["a b c #", "# a b c", "a b c", "a b c", "...", "..", "A" * 40, "A" * 40])


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(documents, min_size=2, max_size=8), size=st.integers(1, 60))
def test_batches_do_not_matter(texts, size):
    rules = FormRules(min_words=3, max_duplicate_lines=0.2, max_top_ngrams={2: 0.3})
    whole = judge(texts, rules)
    before, form_module.BATCH = form_module.BATCH, size
    try:
        assert judge(texts, rules) == whole
        assert [judge([text], rules)[0] for text in texts] == whole
    finally:
        form_module.BATCH = before


def test_equal_hashes_in_two_documents_are_apart():
    hashes = np.array([5, 9, 5, 5, 9, 5], np.uint64) << np.uint64(22)
    found = repetition.equal(hashes, np.array([0, 0, 0, 1, 1, 1]))
    assert found.which.tolist() == [0, 2, 3, 5]
    assert found.first.tolist() == [True, False, True, False]


# -- limits --------------------------------------------------------------------------------

TEXT = (
    "# The weather of today... was fine, and 12 of us have been with the others.\n"
    "- one item ...\n- one item ...\n- an item\n\nA paragraph stands here twice.\n\n"
    "A paragraph stands here twice.\n\n" + "AbCdEf01" * 9 + "\nAll rights reserved\n中文也有。\n"
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.setting)
def test_a_limit_itself_is_kept_and_the_next_number_is_not(rule):
    value = float(rule.measure(TextBatch([TEXT], FormRules()))[0])
    assert value > 0
    whole = value == int(value) and rule.setting.split("_", 1)[1] in (
        "words",
        "stop_words",
        "longest_line",
    )
    away = 1 if rule.setting.startswith("min_") else -1
    beyond = int(value) + away if whole else math.nextafter(value, math.inf * away)
    limit = int(value) if whole else value
    assert judge([TEXT], FormRules(**{rule.setting: limit})) == [None]
    if beyond <= 1 or not rule.setting.endswith(("ratio", "lines", "characters", "paragraphs")):
        (verdict,) = judge([TEXT], FormRules(**{rule.setting: beyond}))
        assert verdict is not None
        assert verdict[0] == rule.setting
        assert verdict[1] is not None
        assert verdict[1].startswith(f"{rule.name} {value:.4g} {'<' if away > 0 else '>'} ")


@pytest.mark.parametrize("key", ["max_top_ngrams", "max_duplicate_ngrams"])
def test_ngram_limits(key):
    text = "a b " * 8 + "c d e f g h i j k l m n o p q r"
    value = 16 / 32
    assert judge([text], FormRules(**{key: {2: value}})) == [None]
    (verdict,) = judge([text], FormRules(**{key: {3: 0.0, 2: math.nextafter(value, 0)}}))
    assert verdict == (key, f"{key[4:]} 0.5 > 0.5 for n = 2")


def test_the_first_rule_that_fails_is_the_reason():
    rules = FormRules(min_words=5, max_digit_ratio=0.1, lorem_ipsum=True)
    found = judge(["1 2", "1 2 3 4 5", "Lorem  ipsum", "Lorem Ipsum 1", "a b c d e"], rules)
    assert [each and each[0] for each in found] == [
        "min_words", "max_digit_ratio", "min_words", "lorem_ipsum", None
    ]  # fmt: skip


def test_a_rule_that_is_off_drops_nothing():
    assert judge(["", "#", "1" * 5000], FormRules()) == [None] * 3
    off = EnglishRules(
        **{name: False for name in EnglishRules.model_fields if name.startswith("min")}
    )
    assert off.min_words is False
    assert EnglishRules.model_validate_json('{"min_words": false}', strict=True).min_words is False
    assert (
        EnglishRules.model_validate_json('{"max_top_ngrams": {}}', strict=True).max_top_ngrams == {}
    )
    read = EnglishRules.model_validate_json('{"max_top_ngrams": {"3": 0.1}}', strict=True)
    assert read.max_top_ngrams == {3: 0.1}


# -- phrases and code ----------------------------------------------------------------------


def test_boilerplate_counts_short_lines_only():
    notice = "Please enable JavaScript to view this page."
    long = "In her speech she said all rights reserved to the states " + "were many and " * 20
    rules = FormRules(max_boilerplate_lines=0.4)
    found = judge(
        [f"{notice}\ntext", f"{notice}\na\nb", long, "版权所有 2020\n联系我们", ""], rules
    )
    assert [each is None for each in found] == [False, True, True, False, True]
    assert found[0] == ("max_boilerplate_lines", "boilerplate_lines 0.5 > 0.4")


def test_code_by_its_lines_letters_and_marker():
    good = "\n".join(f"def f{i}(x):\n    return x + {i}" for i in range(20))
    cases = {
        "max_mean_line": ("x = 1 " * 40 + "\n") * 3,
        "max_longest_line": good + "\n" + "x = 1 " * 200,
        "min_alphanumeric_ratio": "{} ; () [] <> :: && || ~~ == ++ -- a\n" * 5,
        "autogenerated": "// Code generated by protoc. DO NOT EDIT.\n" + good,
        "min_words": "import os",
        "max_encoded_ratio": good + "\n" + "\n".join(["k9Zq" * 19] * 40),
    }
    assert judge([good], CodeRules()) == [None]
    for reason, text in cases.items():
        (verdict,) = judge([text], CodeRules())
        assert verdict is not None, reason
        assert verdict[0] == reason
    assert judge(["x = 1\n" * 300 + "# do not edit\n"], CodeRules()) == [None]
    assert judge([cases["autogenerated"]], CodeRules()) == [("autogenerated", "Code generated by")]


# -- groups and the stage ------------------------------------------------------------------


def test_groups_by_script():
    texts = [
        "中文字ab",
        "中文字" + "a" * 7,
        "中文字" + "a" * 8,
        "",
        "123",
        "ひらがな",
        "안녕하세요",
        "plain",
    ]
    assert by_script(texts) == ["zh", "zh", "other", "other", "other", "zh", "other", "other"]


@pytest.mark.parametrize(
    ("lang", "text", "group"),
    [
        ("en", "中文", "en"),
        ("en-GB", "", "en"),
        ("zh_TW", "", "zh"),
        ("code", "", "code"),
        ("code-python", "中文", "code"),
        ("fr", "bonjour", "other"),
        ("ja", "日本語です", "zh"),
        (None, "中文", "zh"),
        (None, "text", "other"),
        ("english", "text", "other"),
    ],
)
def test_groups_by_stated_language(lang, text, group):
    stage = HeuristicsStage(HeuristicsSettings())
    assert stage._groups([text], [lang]) == [group]


def test_the_stage_drops_rows_with_reason_bytes_and_detail(records):
    good = "The cat sat with the dog, and that was the end of it.\n"
    table = records(["中文", good, "x"], first=7, lang="en")
    stage = HeuristicsStage(HeuristicsSettings(en=EnglishRules(min_words=3)))
    outcome = stage.apply(table, None)
    assert outcome.table["pos"].to_pylist() == [8]
    assert outcome.table.schema == table.schema
    assert list(map(tuple, map(dict.values, outcome.removed.to_pylist()))) == [
        (7, "min_words", 6, True, "words 2 < 3", None),
        (9, "min_words", 1, True, "words 1 < 3", None),
    ]
    assert set(outcome.removed["reason"].to_pylist()) <= set(stage.reasons)


def test_parts_of_any_size_and_a_pickled_stage_give_the_same(records):
    texts = [TEXT, "a", "中文" * 30, "", TEXT * 3, "the cat of that and with " * 20]
    stage = pickle.loads(pickle.dumps(HeuristicsStage(HeuristicsSettings())))
    whole = stage.apply(records(texts), None)
    parts = [stage.apply(records([text], first=at), None) for at, text in enumerate(texts)]
    assert whole.removed.to_pylist() == [row for part in parts for row in part.removed.to_pylist()]
    assert whole.table.to_pylist() == [row for part in parts for row in part.table.to_pylist()]


def test_an_empty_part(records):
    outcome = HeuristicsStage(HeuristicsSettings()).apply(records([]), None)
    assert outcome.table.num_rows == outcome.removed.num_rows == 0


def test_only_the_head_is_looked_at(records):
    text = "word " * 300 + "# " * 5000
    kept = HeuristicsSettings(head=1024, other={"max_top_ngrams": {}, "max_duplicate_ngrams": {}})
    assert HeuristicsStage(kept).apply(records([text]), None).table.num_rows == 1
    whole = kept.model_copy(update={"head": 1 << 20})
    assert HeuristicsStage(whole).apply(records([text]), None).removed["reason"][0].as_py() == (
        "max_symbol_ratio"
    )


def test_languages_are_the_last_rule_and_spare_code(records):
    english = "This is a plain English sentence about the weather and the people of the town. "
    french = "Ceci est une phrase française qui parle du temps et des habitants de la ville. "
    rules = HeuristicsSettings(languages=("en",))
    stage = HeuristicsStage(rules)
    same = {"max_top_ngrams": {}, "max_duplicate_ngrams": {}, "min_words": 5}
    stage.settings = rules.model_copy(update={"other": FormRules(**same)})
    found = stage.apply(records([english, french]), None)
    assert found.table["pos"].to_pylist() == [0]
    assert found.removed["reason"].to_pylist() == ["language"]
    assert found.removed["detail"][0].as_py().startswith("language fr, allowed 0.")
    stage.settings = stage.settings.model_copy(update={"code": FormRules()})
    assert stage.apply(records([french], lang="code"), None).table.num_rows == 1


def test_a_language_nobody_knows_is_refused():
    with pytest.raises(RecipeError, match="no language 'english' can be identified"):
        HeuristicsStage(HeuristicsSettings(languages=("english",)))


# -- real text -----------------------------------------------------------------------------

DATA = Path(os.environ.get("BC2_TEST_DATA", Path(__file__).parents[5] / "shared" / "data"))
#: Largest share of good text that the default rules may drop; stubs, indexes and tables are.
CLEAN = {"en_gutenberg": 0.03, "en_docs": 0.12, "zh_law": 0.03, "zh_classical": 0.02}


@pytest.mark.parametrize("name", CLEAN)
def test_good_text_stays(name, records):
    path = DATA / "corpus" / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt") as lines:
        texts = [json.loads(line)["text"] for at, line in enumerate(lines) if at % 12 == 0]
    outcome = HeuristicsStage(HeuristicsSettings()).apply(records(texts, lang=name[:2]), None)
    assert outcome.removed.num_rows <= CLEAN[name] * len(texts)
    check([text[:3000] for text in texts[:20]])
