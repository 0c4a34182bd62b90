"""The funnel: its numbers against a naive count, its tables, its picture and its page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.funnel import Funnel, Histogram
from bc2.report import funnel_page, funnel_picture, funnel_view
from bc2.report.funnel_rows import (
    PAPER,
    PAPER_KEPT,
    READING,
    as_json,
    funnel_slices,
    removal_reasons,
    stage_rows,
)

NAMES = ("exact", "heuristics", "quality", "passages", "near", "safety", "decontaminate")
NASTY = "<script>alert('x')</script>\u2028</td> & {{ 7 * 7 }} \x1b[31m\x00 \u202egnp.exe [red]"
SHOWN = "<script>alert('x')</script>\\u2028</td> & {{ 7 * 7 }} \\x1b[31m\\x00 \\u202egnp.exe [red]"

Document = tuple[str, str | None, int]


def groups(documents: list[Document]) -> list[dict[str, Any]]:
    counts, sizes = Counter[Any](), Counter[Any]()
    for source, lang, size in documents:
        counts[source, lang] += 1
        sizes[source, lang] += size
    return [
        {"source": s, "lang": lang, "documents": n, "bytes": sizes[s, lang]}
        for (s, lang), n in counts.items()
    ]


def removal(**counts: int) -> dict[str, int]:
    return {**dict.fromkeys(("documents", "bytes", "cut_documents", "cut_bytes"), 0), **counts}


@st.composite
def funnels(draw: st.DrawFn) -> tuple[dict[str, Any], list[Document], list[Document]]:
    """`funnel.json` as stages would write it, the documents read, and those that were left."""
    size = st.integers(0, 50)
    one = st.tuples(st.sampled_from("ab"), st.sampled_from(["en", "zh", None]), size)
    documents: list[Document] = draw(st.lists(one, max_size=12))
    raw, steps = list(documents), []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5)):
        before, after = documents, []
        found = {"drop": removal(), "cut": removal()}
        for source, lang, length in before:
            fate = draw(st.sampled_from(["keep", "drop", "cut", "rewrite"]))
            left = draw(st.integers(0, length)) if fate == "cut" else length
            if fate == "drop":
                found["drop"]["documents"] += 1
                found["drop"]["bytes"] += length
                continue
            if fate == "cut":
                found["cut"]["cut_documents"] += 1
                found["cut"]["cut_bytes"] += length - left
            # Another form of the same text may be shorter or longer.
            left = max(0, left + draw(st.integers(-2, 2))) if fate == "rewrite" else left
            after.append((source, lang, left))
        step = {"name": name, "removed": found, "in": groups(before), "out": groups(after)}
        steps.append({**step, "facts": {}})
        documents = after
    read = {"documents": len(raw), "bytes": sum(size for *_, size in raw)}
    return {"version": 1, "read": read, "stages": steps}, raw, documents


@settings(max_examples=60, deadline=None)
@given(funnels())
def test_what_is_removed_and_what_is_left_make_the_whole(
    made: tuple[dict[str, Any], list[Document], list[Document]],
) -> None:
    data, raw, left = made
    funnel = Funnel.of(data)
    assert (funnel.kept.documents, funnel.kept.bytes) == (len(left), sum(n for *_, n in left))
    found = stage_rows(funnel)
    for unit, whole, kept in (
        ("documents", len(raw), len(left)),
        ("bytes", sum(n for *_, n in raw), sum(n for *_, n in left)),
    ):
        gone = [getattr(row, f"{unit}_removed") for row in found]
        assert sum(gone) + kept == whole
        if whole:
            shares = [getattr(row, f"{unit}_removed_share") for row in found]
            assert sum(shares) + float(Fraction(kept, whole)) == pytest.approx(1)
            lefts = [getattr(row, f"{unit}_left_share") for row in found]
            assert all(one >= 0 for one in lefts)
        else:
            assert all(getattr(row, f"{unit}_removed_share") is None for row in found)
    json.dumps(as_json(funnel), allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(funnels())
def test_slices_are_counts_of_their_own_documents(
    made: tuple[dict[str, Any], list[Document], list[Document]],
) -> None:
    data, raw, left = made
    funnel = Funnel.of(data)
    for at, by in ((0, "source"), (1, "lang")):
        found = funnel_slices(funnel, by)  # type: ignore[arg-type]
        names = {one[at] for one in raw} if data["stages"] else set()
        assert {one.name for one in found} == {name or "not stated" for name in names}
        for one in found:
            mine = [d for d in raw if (d[at] or "not stated") == one.name]
            last = [d for d in left if (d[at] or "not stated") == one.name]
            assert one.read.documents == len(mine)
            assert one.kept.bytes == sum(size for *_, size in last)
            assert sum(row.documents_removed for row in one.rows) == len(mine) - len(last)


@settings(max_examples=30, deadline=None)
@given(funnels())
def test_bytes_are_for_a_reason_or_rewritten(
    made: tuple[dict[str, Any], list[Document], list[Document]],
) -> None:
    funnel = Funnel.of(made[0])
    counted = sum(one.bytes + one.cut_bytes for one in removal_reasons(funnel))
    rewritten = sum(stage.rewritten for stage in funnel.stages)
    assert counted + rewritten + funnel.kept.bytes == funnel.read.bytes


def test_the_papers_funnel_closes() -> None:
    left = 1.0
    for step in PAPER.values():
        left -= step.removed
        assert left == pytest.approx(step.left)
    assert left == pytest.approx(PAPER_KEPT)


def test_rows_of_a_small_funnel(tmp_path: Path) -> None:
    path = tmp_path / "funnel.json"
    path.write_text(json.dumps(sample()))
    found = stage_rows(Funnel.open(path, {"exact": 1.5}))
    assert [row.stage for row in found] == [READING, "exact", "quality"]
    reading, exact, quality = found
    assert (reading.documents_in, reading.documents_removed, reading.bytes_removed) == (10, 2, 200)
    assert (exact.documents_removed_share, exact.bytes_removed_share) == (0.3, 0.3)
    assert (exact.paper_removed_share, exact.paper_left_share) == (0.2989, 0.7011)
    assert (exact.seconds, quality.seconds) == (1.5, None)
    # It only cuts: no document goes.
    assert (quality.documents_removed, quality.bytes_removed) == (0, 100)
    assert quality.bytes_left_share == pytest.approx(0.4)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("edges", "documents"),
    [
        ((0, 1), (2, 1)),
        ((0, 1), (2,)),
        ((0, 1, 5), (0, 0, 1)),
        ((5, 9), (0, 3)),
        ((0, 3, 4), (1, 1)),
    ],
)
def test_a_histogram_draws_every_document(
    edges: tuple[float, ...], documents: tuple[int, ...], log: bool
) -> None:
    drawn = funnel_picture.histogram(Histogram(edges=edges, documents=documents), "x", log=log)
    [steps] = drawn.axes[0].patches
    data = steps.get_data()  # type: ignore[attr-defined]
    assert sum(data.values) == pytest.approx(100)
    assert all(b > a for a, b in pairwise(data.edges))
    assert data.edges[0] > 0 or not log


# -- tables, examples, picture -------------------------------------------------------------


def sample(**more: Any) -> dict[str, Any]:
    """Ten documents read, eight into `exact`, five left; `quality` only cuts."""
    a, b = ({"source": "web", "lang": "en"}, {"source": "书", "lang": "zh"})
    exact = {"duplicate": removal(documents=3, bytes=300), "never": removal()}
    return {
        "version": 1,
        "read": {"documents": 10, "bytes": 1000},
        "stages": [
            {"name": "exact", "removed": exact, "facts": {"note": "</pre>"},
             "in": [{**a, "documents": 6, "bytes": 500}, {**b, "documents": 2, "bytes": 300}],
             "out": [{**a, "documents": 3, "bytes": 200}, {**b, "documents": 2, "bytes": 300}]},
            {"name": "quality",
             "removed": {"low_score": removal(cut_documents=4, cut_bytes=90)}, "facts": {},
             "in": [{**a, "documents": 3, "bytes": 200}, {**b, "documents": 2, "bytes": 300}],
             "out": [{**a, "documents": 3, "bytes": 150}, {**b, "documents": 2, "bytes": 250}]},
        ],
        **more,
    }  # fmt: skip


def example(text: str = NASTY, **more: Any) -> dict[str, Any]:
    facts = {"stage": "exact", "reason": "duplicate", "source": "web", "lang": "en"}
    return {**facts, "origin": "a.jsonl.gz:12", "detail": None, "whole": True, "text": text, **more}


def drawn(renderable: Any, width: int = 80) -> str:
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=width).print(renderable)
    return out.getvalue()


EMPTY: list[dict[str, Any]] = [
    {"version": 1, "read": {"documents": 0, "bytes": 0}},
    {"version": 1, "read": {"documents": 3, "bytes": 9}, "stages": []},
    {"version": 1, "read": {"documents": 0, "bytes": 0},
     "stages": [{"name": "exact", "removed": {}, "in": [], "out": [], "facts": {}}]},
    {"version": 1, "read": {"documents": 1, "bytes": 3},
     "stages": [{"name": "exact", "removed": {"short": {"documents": 1, "bytes": 3}},
                 "in": [{"source": "a", "documents": 1, "bytes": 3}], "out": []}]},
]  # fmt: skip


@pytest.mark.parametrize("data", EMPTY)
def test_a_funnel_with_hardly_anything(data: dict[str, Any]) -> None:
    funnel = Funnel.of(data)
    assert "in all" in drawn(funnel_view.view(funnel))
    assert drawn(funnel_view.examples_view(funnel)).strip() == "No examples were kept."


@pytest.mark.parametrize("data", [EMPTY[0], EMPTY[2]])
def test_a_page_of_hardly_anything(data: dict[str, Any]) -> None:
    page = Page(funnel_page.render(Funnel.of(data), "empty"))
    assert page.count("svg") == 1
    assert "None were kept." in page.texts["p"]


def test_the_tables_say_it(tmp_path: Path) -> None:
    funnel = Funnel.of(sample(malformed={"web": {"bad_json": {"documents": 2, "bytes": 70}}}))
    words = drawn(funnel_view.view(funnel), 120)
    lines = [line.split() for line in words.splitlines()]
    assert ["exact", "8", "3", "30.00%", "50.00%", "29.89%", "70.11%"] in lines
    assert ["in", "all", "10", "5", "50.00%", "50.00%", "68.32%", "31.68%"] in lines
    assert ["quality", "low_score", "0", "0", "B", "4", "90", "B", "9.00%"] in lines
    assert ["quality", "(rewritten)", "0", "0", "10", "B", "1.00%"] in lines
    assert ["web", "bad_json", "2", "70", "B"] in lines
    assert any(line[:2] == ["书", "2"] for line in lines)
    assert "never" not in words, "a reason that removed nothing"


def test_what_was_lost_with_first_copies_is_said_only_if_there_is_any() -> None:
    data = sample()
    data["stages"][1] |= {"name": "passages"}
    for lost, said in ((None, False), ({"passages": 0, "bytes": 0}, False),
                       ({"passages": 1200, "bytes": 34500}, True)):  # fmt: skip
        data["stages"][1]["facts"] = {"lost_with_holder": lost} if lost else {}
        funnel = Funnel.of(data)
        words = " ".join(drawn(funnel_view.view(funnel), 100).split())
        page = " ".join(funnel_page.render(funnel, "made").split())
        for shown in (words, page):
            assert ("Passages lost with their first copy: 1,200 (34.50 kB)." in shown) == said
            assert ("first copy" in shown) == said
            assert ("leave out [corpus.passages]." in shown) == said
        assert as_json(funnel)["lost_passages"] == (lost or {"passages": 0, "bytes": 0})


def test_the_place_of_an_example_is_marked_on_a_terminal_and_on_the_page() -> None:
    found = [example("before [EMAIL] after", place=[7, 14]), example("no place", place=None)]
    funnel = Funnel.of(sample(examples=found))
    words = drawn(funnel_view.examples_view(funnel), 60)
    assert "before >>[EMAIL]<< after" in words
    assert words.count(">>") == 1
    page = Page(funnel_page.render(funnel, "made"))
    assert page.texts["mark"] == ["[EMAIL]"]
    assert page.quotes == ["before [EMAIL] after", "no place"]


def test_examples_on_a_terminal_act_on_nothing_and_keep_their_width() -> None:
    found = [example(f"document {n}") for n in range(15)]
    found += [example("汉字" * 100, lang="zh"), example(NASTY, detail="\x07ding", whole=False)]
    funnel = Funnel.of(sample(examples=[*found[:9], *found[15:], *found[9:15]]))
    words = drawn(funnel_view.examples_view(funnel), 60)
    assert words.isprintable() or set(filter(lambda c: not c.isprintable(), words)) == {"\n"}
    assert "[red]" in words, "text is no markup"
    assert words.count("document ") == 9, "ten of a reason and language"
    assert "exact: duplicate (zh)" in words
    assert "cut from web a.jsonl.gz:12" in words
    # Wide characters count for two.
    assert all(len(line) <= 60 - line.count("汉") - line.count("字") for line in words.splitlines())


@pytest.mark.parametrize("off", [False, True])
def test_the_picture_has_every_stage_and_the_papers(off: bool, tmp_path: Path) -> None:
    data = sample()
    if off:
        data["stages"] = []
    drawn = funnel_picture.figure(Funnel.of(data), "name")
    ours, _, paper = drawn.axes
    labels = [label.get_text() for label in ours.get_yticklabels()]
    reading = [] if off else [READING]
    assert labels == ["raw", *reading, *PAPER]
    words = [text.get_text() for text in ours.texts]
    assert words.count("off") == (5 if off else 3)
    said = [text.get_text() for text in paper.texts]
    assert said[-1] == "\N{MINUS SIGN}19.13%, 31.68% left"
    svg, png = funnel_picture.draw(Funnel.of(data), tmp_path)
    assert b"<svg" in svg.read_bytes()
    assert png.read_bytes().startswith(b"\x89PNG")


# -- the page ------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements of a page, and the text inside each kind of them."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.quotes: list[str] = []
        self.quoting = False
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if dict(attrs).get("class") == "quote":
            self.quotes.append("")
            self.quoting = True
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        self.quoting = self.quoting and tag == "mark"

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if self.quoting:
            self.quotes[-1] += data

    def count(self, tag: str) -> int:
        return sum(element == tag for element, _ in self.elements)


def full() -> Funnel:
    """Every part, with what a page must not obey in every place that text can reach."""
    histogram = {"edges": [0, 1, 10, 100], "documents": [0, 3, 2]}
    against = {"name": NASTY, "text": NASTY}
    found = [
        example(detail=NASTY, origin=NASTY, source=NASTY, lang=NASTY),
        example("y" * 5000, lang="zh"),
        example(stage="near", reason=NASTY, against=against),
        example(stage="decontaminate", reason="benchmark_overlap", against=against),
        example("x", stage="decontaminate", reason="benchmark_overlap", detail="mmlu: both"),
    ]
    data = sample(
        examples=found,
        lengths={NASTY: histogram, "empty": {"edges": [], "documents": []} | histogram},
        # The last bin without an end, as the pipeline writes it.
        scores={"zh": {"edges": [0.0, 0.5], "documents": [1, 4]}},
        malformed={NASTY: {NASTY: {"documents": 1, "bytes": 2}}},
    )
    for step in data["stages"]:
        for group in step["in"] + step["out"]:
            group["source"] = NASTY if group["source"] == "web" else group["source"]
    return Funnel.of(data, {"exact": 2.5, "quality": 70.0})


def test_a_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    path = funnel_page.write(full(), tmp_path / "p.html", NASTY, description=NASTY,
                             licences={NASTY: NASTY})  # fmt: skip
    html = path.read_bytes().decode()
    page = Page(html)
    assert page.count("script") == page.count("link") == page.count("img") == 0
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                assert value
                assert value.startswith("#")
    policies = [a["content"] for _, a in page.elements if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "http" not in html.replace("http-equiv", "")
    assert "@import" not in page.texts["style"][0]
    assert html.startswith("<!DOCTYPE html>")


def test_what_stood_in_the_text_is_shown_as_text() -> None:
    html = funnel_page.render(full(), "made")
    for character in "\x00\x1b\u2028\u202e":
        assert character not in html
    page = Page(html)
    quotes = page.quotes
    assert quotes.count(SHOWN) >= 5
    assert "y" * 1000 + "…" in quotes
    assert "mmlu: both" in quotes, "without the benchmark's text, what the stage says"
    assert [text for text in page.texts["b"] if text == SHOWN] == [SHOWN]
    assert any("</pre>" in text for text in page.texts["pre"])
    assert {a["lang"] for tag, a in page.elements if tag == "div" and "lang" in a} == {"en", "zh"}


def test_a_page_has_every_part() -> None:
    page = Page(funnel_page.render(full(), "made", licences={"书": "CC0"}))
    assert page.count("svg") == 1 + 2 + 1
    heads = page.texts["h2"]
    for head in ("Funnel", "By source", "By language", "Removed, by reason",
                 "Left out while reading", "Lengths of what is kept", "Quality scores",
                 "Matches with benchmarks", "Examples", "Facts of the stages"):  # fmt: skip
        assert head in heads
    cells = [text.strip() for text in page.texts["td"]]
    for cell in ("30.00%", "29.89%", "CC0", "not recorded", "00:01:10", "(rewritten)", "书"):
        assert cell in cells, cell
    for tile in ("1.00 kB", "400 B", "40.00%", "50.00%", "31.68%"):
        assert tile in page.texts["b"], tile


def test_both_texts_of_a_match_stand_side_by_side() -> None:
    detail = "ceval/val.csv:3 +1: “下列说法中” | “下列说法中，正确的是”"
    one = example("the beginning", stage="decontaminate", reason="overlap", detail=detail)
    page = Page(funnel_page.render(Funnel.of(sample(examples=[one])), "made"))
    assert page.quotes == ["下列说法中", "下列说法中，正确的是"]
    assert "ceval/val.csv:3 +1" in page.texts["b"]


def test_a_page_shows_ten_of_each_reason_and_language() -> None:
    many = [example(f"{lang} {n}", lang=lang) for lang in ("en", "zh") for n in range(14)]
    quotes = Page(funnel_page.render(Funnel.of(sample(examples=many)), "made")).quotes
    assert quotes == [f"{lang} {n}" for lang in ("en", "zh") for n in range(10)]


def test_a_funnel_imports_no_torch() -> None:
    script = (
        "import sys, bc2.report.funnel_page, bc2.report.description_view as d;"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True)
