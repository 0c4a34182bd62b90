"""Spans of markup: what belongs together, and what is prose."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.text.markup.blocks import blocks
from bc2.data.prep.text.markup.spans import find_spans, without
from bc2.data.prep.text.sentences import cut_sentences, prose_of, split_sentences

MARKUP = st.text(st.sampled_from("ab。. \n`[]()!*_$<>{}~\\:/|#-"), max_size=120)


@settings(max_examples=400, deadline=None)
@given(MARKUP)
def test_spans_are_apart_and_ascend(text):
    spans = find_spans(text)
    for ranges in (spans.together, spans.hidden):
        edges = [edge for span in ranges for edge in span]
        assert edges == sorted(edges)
        assert all(start < end <= len(text) for start, end in ranges)


@settings(max_examples=400, deadline=None)
@given(MARKUP, st.lists(st.integers(0, 120), min_size=2, max_size=2))
def test_without_is_what_a_loop_gives(text, places):
    hidden = find_spans(text).hidden
    start, end = sorted(min(place, len(text)) for place in places)
    naive = "".join(text[i] for i in range(start, end) if not any(a <= i < b for a, b in hidden))
    assert without(text, hidden, start, end) == naive


def test_many_spans_take_time_by_their_number():
    def seconds(lines, last=""):
        text = "> \n" * lines + last  # another each time: what was found is remembered
        begun = time.process_time()
        assert len(split_sentences(text)) > lines // 2
        return time.process_time() - begun

    short = min(seconds(5_000, f"{number}") for number in range(3))
    assert seconds(60_000) < 36 * short


@settings(max_examples=400, deadline=None)
@given(st.text(st.sampled_from("ab。. `[]()*_$\\/"), max_size=100).map("w{}".format))
def test_no_sentence_ends_inside_a_span(text):
    spans, at = find_spans(text), 0
    for piece in split_sentences(text):
        assert not any(start < at < end for start, end in spans.together)
        at += len(piece)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("See [the guide. It helps](https://e.org/a_(b)) now.", "See the guide. It helps now."),
        ('See ![a。b](c。png "t. u") now.', "See  now."),
        ("A [![badge](a)](b) here.", "A  here."),
        ("See [this][1] and [that][].", "See this and that."),
        ("**Note. Read it.** Then go.", "Note. Read it. Then go."),
        ("It is __very__ *nice* and ~~old~~.", "It is very nice and old."),
        ("snake_case and other_name stay.", "snake_case and other_name stay."),
        ("2 * 3 and 4*5*6 stay.", "2 * 3 and 4*5*6 stay."),
        ("Call `f(x). y` and ``a ` b`` twice.", "Call f(x). y and a ` b twice."),
        ("Use :func:`open` or `text <u>`_ here.", "Use open or text <u> here."),
        ("其中 $a_1$， $b$是数。", "其中 ， 是数。"),
        ("It costs $5, or $10 today.", "It costs $5, or $10 today."),
        ("Go to https://e.org/a?b=c, then www.e.org.", "Go to , then ."),
        ("网址是https://e.org/a，请看。", "网址是，请看。"),
        ("Write <a@example.org> or <https://e.org>.", "Write  or ."),
        ("Press <kbd>Ctrl</kbd> and <b>go</b>.", "Press Ctrl and go."),
        ("If a < b and c > d, go.", "If a < b and c > d, go."),
        ("A \\*star\\* and \\[brackets\\].", "A *star* and [brackets]."),
        ("It is said[^1] so.", "It is said so."),
        ("> quoted words\n> go on here.", "quoted words\ngo on here."),
        ("An ** unclosed [bracket and `tick.", "An ** unclosed [bracket and `tick."),
        ("XK9@@##qW%%zz^^Rt~~pL$$mN**bV##", "XK9@@##qW%%zz^^Rt~~pL$$mN**bV##"),
    ],
)
def test_what_a_reader_reads(text, shown):
    assert without(text, find_spans(text).hidden, 0, len(text)) == shown


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("看图 ![一。二](a。png) 就好。好了。", ["看图 ![一。二](a。png) 就好。", "好了。"]),
        ("**先。后。** 然后走。完。", ["**先。后。** ", "然后走。", "完。"]),
        ("Read [a. B c](u). Done.", ["Read [a. B c](u). ", "Done."]),
        ("Run `a. B`. Done.", ["Run `a. B`. ", "Done."]),
        ("Title\n=====\n\nFirst one. Next.\n", ["Title\n=====\n\n", "First one. ", "Next.\n"]),
        ("一段。\n\n    x = 1;\n    y = 2;\n", ["一段。\n\n", "    x = 1;\n    y = 2;\n"]),
        ("| a。b | c |\n|---|---|\n| d。e | f |\n", ["| a。b | c |\n|---|---|\n| d。e | f |\n"]),
    ],
)
def test_sentences_end_outside_markup(text, pieces):
    assert split_sentences(text) == pieces


@pytest.mark.parametrize(
    ("text", "keep", "left"),
    [
        ("- One here. Two here.\n", [False, True], "- Two here.\n"),
        ("1. 一。二。\n", [False, True], "1. 二。\n"),
        ("> One here. Two here.\n", [False, True], "> Two here.\n"),
        ("- [ ] One here. Two here.\n", [False, True], "- [ ] Two here.\n"),
        ("- One here. Two here.\n", [True, False], "- One here.\n"),
        ("- One here.\n- Two here.\n", [False, True], "- Two here.\n"),
        ("One here. Two here.\n", [False, True], "Two here.\n"),
    ],
)
def test_the_mark_of_an_item_stays_with_the_rest_of_it(text, keep, left):
    assert cut_sentences(text, keep) == left


PIECES = [
    "One sentence stands here, and it is long enough. Another one follows it.\n",
    "第一句在这里，写得够长。第二句跟着它。\n",
    "- An item with a [link. Yes](u). More of it.\n- Another item.\n",
    "> 引用一句。再引一句。\n",
    "```\ncode. More\n\ncode。\n```\n",
    "| a。 | b |\n|---|---|\n| c。 | d |\n",
    "    x = 1;\n",
    "Title\n=====\n",
    "## 标题\n",
    "![p。q](r)\n",
    "[1]: https://e.org\n",
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("\n".join),
    st.randoms(use_true_random=False),
)
def test_cuts_leave_whole_blocks(text, chance):
    """What is left has blocks of the text alone: no half of one, and none that was prose."""

    def structure(of: str) -> list[str]:
        return [of[a:b].strip("\n") for a, b, kind in blocks(of) if kind.value != "text"]

    keep = [chance.random() < 0.5 for _ in split_sentences(text)]
    left = iter(structure(text))
    assert all(any(block == one for one in left) for block in structure(cut_sentences(text, keep)))


def test_prose_has_no_blocks_and_no_addresses():
    text = (
        "# Title\n\nFirst, see [this](https://e.org) and what is said of it there.\n\n"
        "```\ncode\n```\nExample:\n\n"
        "- `name`: what it is, and why it is there at all\n- ![a](b)\n\n[1]: https://e.org\n"
    )
    assert [line for line in prose_of(text).split("\n") if line] == [
        "First, see this and what is said of it there.",
        "- name: what it is, and why it is there at all",
    ]
