import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.text.sentences import (
    NARROW,
    WIDE,
    cut_sentences,
    divide,
    prose_of,
    split_paragraphs,
    split_sentences,
)

#: Text in which everything that ends a sentence or a paragraph is common.
TEXT = st.text(st.sampled_from('ab Ab.!?…\n\n \t。！”"’)，一二中1．-#\u3000\r'), max_size=200)

LINE = "a line of prose that is wrapped near the margin by its writer"


@settings(max_examples=400, deadline=None)
@given(TEXT | st.text(max_size=100))
def test_splits_are_exact(text):
    paragraphs, sentences = split_paragraphs(text), split_sentences(text)
    assert "".join(paragraphs) == "".join(sentences) == text
    assert all(piece.strip() for piece in paragraphs + sentences) or not text.strip()
    assert all(paragraphs + sentences)
    assert sentences == [s for paragraph in divide(text) for s in paragraph.sentences]


@settings(max_examples=300, deadline=None)
@given(TEXT, st.randoms(use_true_random=False))
def test_cuts_leave_words_and_paragraphs_apart(text, chance):
    # Marks of list items stay when their first sentence is cut: markup/test_spans.py tries them.
    text = text.replace("-", "").replace("1", "").replace("#", "")
    sentences = split_sentences(text)
    keep = [chance.random() < 0.5 for _ in sentences]
    left = cut_sentences(text, keep)
    kept = [piece.strip() for piece, stays in zip(sentences, keep, strict=True) if stays]
    # naive reference: the kept pieces in order, with only white space between them
    rest = left
    for piece in kept:
        assert rest.lstrip().startswith(piece)
        rest = rest.lstrip()[len(piece) :]
    assert not rest.strip()
    assert left.split() == " ".join(kept).split() or any(c >= "\u2e80" or c in ".!?…" for c in text)


@given(TEXT)
def test_cutting_nothing_or_everything(text):
    count = len(split_sentences(text))
    assert cut_sentences(text, [True] * count) == text
    assert cut_sentences(text, [False] * count) == ""


@pytest.mark.parametrize(
    ("text", "keep", "left"),
    [
        ("一。\n二。\n\n---\n", [1, 0, 1], "一。\n\n---\n"),  # no title over its underline
        ("一。\n二。\n\n\tf(x);\n", [1, 0, 1], "一。\n\n\tf(x);\n"),
        ("1. 一。\n2. 二。\n3. 三。\n\n尾。\n", [1, 0, 0, 1], "1. 一。\n\n尾。\n"),
        ("一。\n\n二。\n三。\n", [1, 0, 1], "一。\n\n三。\n"),
    ],
)
def test_what_was_apart_stays_apart(text, keep, left):
    assert cut_sentences(text, [bool(each) for each in keep]) == left


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("设 $G$ 是图，则 **称** [它](a) 为图。\n", "设 $G$ 是图，则 称 它 为图。\n"),
        ("光阴似箭，日月如梭。\n    --《增广贤文》\n", "光阴似箭，日月如梭。\n"),
        ("<ruby>位<rt>bit</rt></ruby>的值。\n", "位bit的值。\n"),
        ("一段话。\n\n运行下面的命令\n\n```\nx\n```\n", "一段话。\n\n\n"),
        ("一段话。\n运行下面的命令\n```\nx\n```\n", "一段话。\n运行下面的命令\n\n"),
        (
            "一段话。\n\n运行下面的命令\n\n另一段话。\n",
            "一段话。\n\n运行下面的命令\n\n另一段话。\n",
        ),
    ],
)
def test_prose(text, prose):
    assert prose_of(text) == prose


def test_the_end_of_a_paragraph_stays():
    text = "One here. Two here.\n\nThree here. Four here.\n"
    assert cut_sentences(text, [True, False, False, True]) == "One here.\n\nFour here.\n"
    assert cut_sentences(text, [False, False, True, True]) == "Three here. Four here.\n"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (" \n", [" \n"]),
        ("One. Two!  Three?", ["One. ", "Two!  ", "Three?"]),
        ('He said "Go." She went.', ['He said "Go." ', "She went."]),
        ("Mr. Smith met Dr. J. R. Brown. They talked.", None),
        ("It costs 3.14 dollars, i.e. little. Buy it.", None),
        ("See fig. 3 for U.S. data, e.g. Texas. Done.", None),
        ("What is it … a bird? No.", ["What is it … a bird? ", "No."]),
        ("今天天气好。我们走吧！去哪儿？", ["今天天气好。", "我们走吧！", "去哪儿？"]),
        ("他说：“走吧。”然后走了。", ["他说：“走吧。”", "然后走了。"]),
        ("真的？！是的……对。", ["真的？！", "是的……对。"]),
        ("圆周率为３．１４，很有用．好吧．", ["圆周率为３．１４，很有用．", "好吧．"]),
        ("1. Press the button.\n2. Wait.", ["1. Press the button.\n", "2. Wait."]),
        (f"{LINE}\nand goes on here.", [f"{LINE}\nand goes on here."]),
        ("def f():\n    return 1\n", ["def f():\n", "    return 1\n"]),
        (f"{LINE}\n- item one\n- item two", [f"{LINE}\n", "- item one\n", "- item two"]),
    ],
)
def test_sentences(text, pieces):
    found = split_sentences(text)
    if pieces is None:
        first, _, rest = text.rpartition(". ")
        pieces = [f"{first}. ", rest]
    assert found == pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a\n\nb\n", ["a\n\n", "b\n"]),
        ("\n\na\n \t\n\n  b", ["\n\na\n \t\n\n", "  b"]),
        ("a\r\n\r\nb", ["a\r\n\r\n", "b"]),
        (f"{LINE}\n{LINE}\n", [f"{LINE}\n{LINE}\n"]),
        ("第一段。\n第二段\n第三段”\nx", ["第一段。\n", "第二段\n", "第三段”\n", "x"]),
        ("x" * WIDE + "\ny", ["x" * WIDE + "\n", "y"]),
        ("x" * (WIDE - 1) + "\ny", ["x" * (WIDE - 1) + "\ny"]),
    ],
)
def test_paragraphs(text, pieces):
    assert split_paragraphs(text) == pieces


def test_short_lines_are_sentences():
    assert split_sentences("x" * (NARROW - 1) + "\ny z") == ["x" * (NARROW - 1) + "\n", "y z"]
    assert split_sentences("x" * NARROW + "\ny z") == ["x" * NARROW + "\ny z"]


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("en_gutenberg", 60, 200), ("zh_law", 20, 80), ("zh_modern_translation", 15, 60)],
)
def test_lengths_of_real_sentences(name, least, most):
    folder = Path(os.environ.get("BC2_TEST_DATA", "../shared/data"))
    path = folder / "corpus" / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(next(lines))["text"] for _ in range(40)]
    pieces = [piece for text in texts for piece in split_sentences(text)]
    assert "".join(pieces) == "".join(texts)
    assert least < sum(map(len, pieces)) / len(pieces) < most
