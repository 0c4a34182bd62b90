"""What a funnel shows of documents: around what decided, and nothing personal."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from bc2.data.corpus_config import CorpusConfig
from bc2.data.language_tags import is_code
from bc2.data.prep import segment
from bc2.data.prep.dry_run import dry_run
from bc2.data.prep.funnel import Example, Funnel
from bc2.data.prep.part_files import write_part_file
from bc2.data.prep.prepare import PrepOptions, prepare
from bc2.data.prep.segment import AFTER, BEFORE, Segment, SegmentTask, run_part
from bc2.data.prep.settings import PersonalKind
from bc2.data.prep.stages.base import Outcome, PrepStage, RemovedRow, removed
from bc2.data.prep.stages.decontamination.matches import CONTAMINATION, read_matches
from bc2.data.prep.text.personal_data import IN_CODE, find_personal
from bc2.report import funnel_page, funnel_view

KINDS = get_args(PersonalKind)
TEXT = """the of and to with that have be river mountain village winter harvest market letter
captain garden evening story teacher window journey morning history island forest kitchen"""
WORDS = TEXT.split()
PERSONAL = ["jane.doe@harvestmail.net", "(212) 664-7665", "+44 20 7946 0958", "+86 138 1234 5678",
            "110101199003074610", "219-09-9999", "93.184.216.34"]  # fmt: skip
MASK = re.compile(r"\[(?:EMAIL|PHONE|ID_CARD|SSN|IP)\]")


def sentences(draw: random.Random, count: int) -> list[str]:
    return [f"{' '.join(draw.choices(WORDS, k=12)).capitalize()}." for _ in range(count)]


def mails(count: int) -> list[str]:
    """Mails with people's data in every other sentence; they quote one another, word for word."""
    draw, made = random.Random(8), []
    for number in range(count):
        often = 0.4 * (number % 4 > 1)
        body = [
            f"{sentence[:-1]} at {draw.choice(PERSONAL)}." if draw.random() < often else sentence
            for sentence in sentences(draw, 14)
        ]
        if number % 3 == 2:
            body[:0] = [f"> {line}" for line in made[draw.randrange(number)].split("\n\n")[:12]]
        if number % 5 == 4:
            body[7] += " Come to badplace.example/offer and bring forbiddenword."
        made.append("\n\n".join(body))
    return [*made, made[0], f"{made[1]} Once more.", *(made[n][:60] + "!" * 300 for n in (2, 3))]


def config(folder: Path, texts: list[str], **more: Any) -> CorpusConfig:
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "mails.jsonl").write_text("\n".join(lines), "utf-8")
    question = " ".join(texts[4].split()[20:50])
    (folder / "bench.jsonl").write_text(json.dumps({"question": question}))
    (folder / "urls.txt").write_text("badplace.example\n")
    benchmark = {"name": "b", "path": str(folder / "bench.jsonl"), "fields": ["question"]}
    tables = {
        "heuristics": {},
        "quality": {},
        "passages": {},
        "near": {},
        "safety": {},
        "decontaminate": {"benchmarks": [benchmark]},
    }
    base: dict[str, Any] = {
        "heldout_fraction": 0.0,
        "sources": [{"name": "mail", "path": str(folder / "mails.jsonl"), "lang": "en"}],
    }
    return CorpusConfig.model_validate_json(json.dumps(base | tables | more))


def personal_in(example: Example) -> list[Any]:
    kinds = IN_CODE if is_code(example.lang) else KINDS
    shown = [example.text, example.detail or ""]
    return [found for text in shown for found in find_personal(text, kinds)]


@pytest.mark.parametrize("personal", ["mask", "keep", "drop"])
def test_examples_of_mails_show_no_personal_data_whatever_safety_does(personal, tmp_path):
    settings = config(tmp_path, mails(40), safety={
        "personal": personal, "url_lists": [str(tmp_path / "urls.txt")],
        "patterns": {"phone": r"\w+ \w+ at \(212.*"} if personal == "keep" else {},
    })  # fmt: skip
    prepare(settings, tmp_path / "out", options=PrepOptions(workers=1))
    funnel = Funnel.open(tmp_path / "out" / "funnel.json")
    assert len({(one.stage, one.reason) for one in funnel.examples}) >= 4
    assert [one for one in funnel.examples if personal_in(one)] == []
    assert sum(MASK.search(one.text) is not None for one in funnel.examples) > 3
    raw = (tmp_path / "out" / "funnel.json").read_text("utf-8")
    page = funnel_page.render(
        funnel, "mails", matches=read_matches(tmp_path / "out" / CONTAMINATION)
    )
    for text in (raw, page, str(dry_run(settings, PrepOptions(workers=1))["funnel"]["examples"])):
        assert not [one for one in PERSONAL[:4] if one in text]
    for match in read_matches(tmp_path / "out" / CONTAMINATION):
        assert find_personal(match.text, KINDS) == find_personal(match.benchmark_text, KINDS) == []


class Pointing(PrepStage):
    """Drops or cuts every text for its first "BAD", and says where it is."""

    name = "pointing"
    version = 1
    reasons = ("bad", "cut")

    def apply(self, table: Any, verdict: Any) -> Outcome:
        rows = zip(table["pos"].to_pylist(), table["text"].to_pylist(), strict=True)
        places = [(pos, text.find("BAD"), len(text)) for pos, text in rows]
        gone = [
            RemovedRow(pos, "bad" if pos % 2 else "cut", size, bool(pos % 2), "x", place)
            for pos, place, size in places
        ]
        return Outcome(table.filter([not pos % 2 for pos, *_ in places]), removed(gone))


def test_an_example_is_the_text_around_the_place_and_marks_it(records, tmp_path):
    draw = random.Random(3)
    texts = [
        " ".join([*sentences(draw, n), "BAD:wolf", *sentences(draw, 9)]) for n in (40, 0, 7, 90)
    ]
    texts = [text.replace("BAD", f"{PERSONAL[0]} BAD", n % 2) for n, text in enumerate(texts)]
    write_part_file(records(texts), tmp_path / "p.arrow")
    (tmp_path / "out").mkdir()
    task = SegmentTask(Segment((Pointing(),), None), tmp_path / "p.arrow", tmp_path / "out", "p",
                       None, None)  # fmt: skip
    found = [Example.model_validate(one) for one in run_part(task)["stages"][0]["examples"]]
    assert len(found) == 4
    for example in found:
        before, marked, after = example.pieces()
        assert marked == "BAD:wolf"
        assert len(after) == AFTER - len(marked)
        assert len(before.replace("[EMAIL]", PERSONAL[0])) <= BEFORE + len(PERSONAL[0])
        assert PERSONAL[0] not in example.text


def test_a_place_that_is_masked_is_shown_as_its_mask(records, tmp_path):
    stage = Pointing()
    text = f"{'word ' * 300}BAD@harvestmail.net, and more"
    write_part_file(records([text]), tmp_path / "p.arrow")
    (tmp_path / "out").mkdir()
    task = SegmentTask(
        Segment((stage,), None), tmp_path / "p.arrow", tmp_path / "out", "p", None, None
    )
    (example,) = (Example.model_validate(one) for one in run_part(task)["stages"][0]["examples"])
    assert example.pieces()[1:] == ("[EMAIL]", ", and more")
    words = funnel_view.examples_view(Funnel(version=1, read={}, examples=(example,)))
    assert any(">>[EMAIL]<<, and more" in str(getattr(part, "renderable", part))
               for part in words.renderables)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("one\n\n> > Once more", "> > Once"),
        (
            "x  天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余",
            "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏",
        ),
        ("x (212) 664-7665, or", "[PHONE]"),
        ("x    ", ""),
    ],
)
def test_what_is_marked_is_a_word_with_its_marks_or_a_mask(text, marked):
    shown = segment._shown(text, None, text.index("\n") if "\n" in text else 1)
    start, stop = shown["place"]
    assert shown["text"][start:stop] == marked


def test_places_of_cut_passages_are_where_they_begin(tmp_path):
    draw = random.Random(2)
    shared, twice = " ".join(sentences(draw, 4)), " ".join(sentences(draw, 2))
    own = [" ".join(sentences(draw, 30)) for _ in range(3)]
    texts = [
        f"{text}\n\n{shared}\n\n{' '.join([*sentences(draw, 1), twice, *sentences(draw, 1)])}"
        for text in own
    ]
    settings = config(
        tmp_path,
        [*texts, *mails(9)],
        heuristics=None,
        quality=None,
        near=None,
        safety=None,
        passages={"sentence_bytes": 40},
    )
    prepare(settings, tmp_path / "out", options=PrepOptions(workers=1))
    examples = Funnel.open(tmp_path / "out" / "funnel.json").examples
    mine = {
        one.reason: one
        for one in examples
        if one.origin == "mails.jsonl:2" and one.stage == "passages"
    }
    _, word, after = mine["duplicate_paragraph"].pieces()
    assert f"{word}{after}".startswith(shared[:250])
    _, word, after = mine["duplicate_sentence"].pieces()
    assert f"{word}{after}".startswith(twice[:60])
    assert (mine["duplicate_paragraph"].detail, mine["duplicate_sentence"].detail) == (
        "1 paragraph",
        "2 sentences",
    )


def test_matches_with_benchmarks_show_masks_and_still_say_what_is_shared(tmp_path):
    question = (
        f"Which river is it that {PERSONAL[0]} crossed with the old captain by night and day?"
    )
    texts = [f"{PERSONAL[1]} called. {question} Call {PERSONAL[3]} back.", *mails(9)]
    settings = config(tmp_path, texts, heuristics=None, quality=None, safety={"personal": "keep"})
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": f"{question} {PERSONAL[2]}"}))
    prepare(settings, tmp_path / "out", options=PrepOptions(workers=1))
    (match,) = read_matches(tmp_path / "out" / CONTAMINATION)
    masked = question.replace(PERSONAL[0], "[EMAIL]")
    assert match.pieces() == ("[PHONE] called. ", masked[:-1], "? Call [PHONE] back.")
    assert match.benchmark_text == f"{masked} [PHONE]"
    examples = Funnel.open(tmp_path / "out" / "funnel.json").examples
    (detail,) = (one.detail for one in examples if one.stage == "decontaminate")
    assert "that [EMAIL] crossed" in detail
    assert find_personal(detail, KINDS) == []


@pytest.mark.slow
def test_examples_of_real_corpora_show_no_personal_data(tmp_path):
    folder = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "corpus"
    names = {
        "code": "code",
        "en_docs": "en",
        "zh_tech_wiki_docs": "zh",
        "en_gutenberg": "en",
        "zh_law": "zh",
    }
    if not all((folder / f"{name}.jsonl.gz").exists() for name in names):
        pytest.skip(f"no {folder}")
    sources = [
        {"name": name, "path": str(folder / f"{name}.jsonl.gz"), "lang": lang, "max_bytes": 6 << 20}
        for name, lang in names.items()
    ]
    settings = config(tmp_path, mails(9), sources=sources)
    prepare(settings, tmp_path / "out", options=PrepOptions(workers=1))
    examples = Funnel.open(tmp_path / "out" / "funnel.json").examples
    assert len(examples) > 100
    assert [one for one in examples if personal_in(one)] == []


def test_every_example_of_safety_shows_what_decided(tmp_path):
    lists = {"url_lists": [str(tmp_path / "urls.txt")], "patterns": {"call": r"Once more"}}
    settings = config(tmp_path, mails(40), safety=lists, passages=None, near=None)
    prepare(settings, tmp_path / "out", options=PrepOptions(workers=1))
    examples = Funnel.open(tmp_path / "out" / "funnel.json").examples
    mine = [one for one in examples if one.stage == "safety"]
    assert len({one.reason for one in mine}) >= 5
    for one in mine:
        kind = one.reason.removeprefix("personal_").upper()
        shown = {"url_list": "badplace.example/offer", "pattern:call": "Once"}
        assert one.pieces()[1] == shown.get(one.reason, f"[{kind}]")
