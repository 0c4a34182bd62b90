"""Languages, copies, spelled control tokens and words of benchmarks, in this process and others."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_lints import asked, good, lint_task
from made_releases import made as made_sum
from made_releases import write_releases

from bc2.align.lint import text_scan
from bc2.align.lint.benchmark_texts import (
    SIZES,
    FoundBenchmarks,
    find_benchmarks,
    matches,
    saved_index,
)
from bc2.align.lint.text_scan import Scanner, scan_split
from bc2.console import Progress
from bc2.data.chats.conversation import Conversation
from bc2.data.prep.stages.decontamination.ngram_index import NgramIndex

ENGLISH = "The committee will meet again on Thursday to discuss the budget of the coming year."
CHINESE = "委员会将于星期四再次开会，讨论来年的预算，并听取各部门的意见。"


def said(question: str, answer: str) -> Conversation:
    return Conversation(tuple(asked(question, answer)["messages"]), "made", "made.jsonl", 1)


def test_each_conversation_has_a_language() -> None:
    rows = [said("Translate.", ENGLISH), said("翻译。", CHINESE), said("3 + 4 =", "7")]
    assert Scanner.of((), None)(rows).languages == ["en", "zh", "zxx"]


def test_copies_are_of_the_same_source_or_of_another() -> None:
    rows = [said("One?", "1"), said("Two?", "2"), said("One?", "1"), said("One?", "one")]
    found = Scanner.of((), None)([*rows, said("Two?", "2")])
    within, every = found.copies([0, 0, 0, 0, 1])
    assert within == [(0, 2)]
    assert every == 2


def test_copies_of_one_are_counted_each() -> None:
    found = Scanner.of((), None)([said("One?", "1")] * 4)
    assert found.copies([0, 0, 1, 1]) == ([(0, 1), (2, 3)], 3)


def test_spelled_control_tokens_are_named() -> None:
    names = ["<s>", "</s>", "<reserved_106>", ""]
    rows = [said("Say <s>.", "x"), said("a < b", "<reserved_10>"), said("x", "<reserved_106></s>")]
    assert Scanner.of(names, None)(rows, 7).spelled == [(7, "<s>"), (9, "<reserved_106>")]


def test_an_unanswered_user_is_counted() -> None:
    asks = Conversation(({"role": "user", "content": "And?"},), "made", "made.jsonl", 1)
    assert Scanner.of((), None)([said("a", "b"), asks]).unanswered == [1]


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    folder = tmp_path / "bench"
    folder.mkdir()
    write_releases(folder, ["gsm8k"])
    return folder


def test_only_what_lies_here_is_read_and_only_what_is_asked(
    benchmarks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BC2_BENCH_DATA", str(benchmarks))
    found = find_benchmarks()
    assert found.names == ["gsm8k"]
    assert "mmlu" in found.missing
    assert "gsm8k" not in found.missing
    assert all("train" not in one.place for one in found.texts)
    assert any(one.place.startswith("main/test:") for one in found.texts)


def test_without_benchmarks_none_is_searched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is not asked."""
    monkeypatch.delenv("BC2_BENCH_DATA", raising=False)
    monkeypatch.setenv("BC2_CACHE", str(tmp_path))
    found = find_benchmarks()
    assert found.texts == ()
    assert {"mmlu", "gsm8k"} <= set(found.missing)


def test_a_benchmark_that_cannot_be_read_says_so(benchmarks: Path) -> None:
    (test,) = benchmarks.rglob("test.jsonl")
    test.write_text("{\n")
    found = find_benchmarks(benchmarks)
    assert found.texts == ()
    assert list(found.unreadable) == ["gsm8k"]


def test_words_of_a_benchmark_are_found_in_a_message(benchmarks: Path) -> None:
    known = find_benchmarks(benchmarks)
    index, _ = NgramIndex.of([one.text for one in known.texts], SIZES)
    text = next(one for one in known.texts if one.text.startswith("Mira has"))
    rows = [said("Hello?", "No."), said("Solve:", f"Sure.\n{text.text.upper()} Easy!")]
    (overlap,) = Scanner.of((), index)(rows, 3).overlaps
    assert overlap.index == 4
    assert known.texts[overlap.benchmark_text] == text
    assert overlap.words == text.text.upper().rstrip("?")


def test_an_index_is_made_once_and_an_unfinished_one_again(
    tmp_path: Path, benchmarks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    assert saved_index(FoundBenchmarks((), (), {})) is None
    known = find_benchmarks(benchmarks)
    folder = saved_index(known)
    assert folder is not None
    made = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert saved_index(known) == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == made
    (folder / "whole").unlink()
    (folder / "hash.npy").write_bytes(b"")
    assert saved_index(known) == folder
    whole, _ = NgramIndex.of([one.text for one in known.texts], SIZES)
    assert (NgramIndex.load(folder).hash == whole.hash).all()


def test_words_across_messages_are_none() -> None:
    words = made_sum(1).english
    index, _ = NgramIndex.of([words], SIZES)
    half = len(words) // 2
    assert matches(index, [words])
    assert not Scanner.of((), index)([said(words[:half], words[half:])]).overlaps


def test_processes_find_what_one_finds(
    tmp_path: Path, benchmarks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    known = find_benchmarks(benchmarks)
    saved = saved_index(known)
    asks = next(one.text for one in known.texts if one.text.startswith("Mira has"))
    rows = [*good(30), asked(asks, ENGLISH), asked("</s>", CHINESE), *good(30)]
    folder = lint_task(tmp_path, {"made": rows}).source.folder
    monkeypatch.setattr(text_scan, "_CHUNK", 16)
    monkeypatch.setattr(text_scan, "_WORTH_A_PROCESS", 16)
    told: list[float] = []
    alone, many = (
        scan_split(folder, "train", ["</s>"], saved, workers=workers, progress=told_of(told))
        for workers in (1, 2)
    )
    assert alone == many
    assert sum(told) == 2 * len(alone.digests)
    assert alone.spelled
    assert alone.overlaps
    assert alone.copies([0] * len(alone.digests))[1] > 15


def told_of(told: list[float]) -> Progress:
    return lambda advance, detail="": told.append(advance)


def test_a_text_that_many_say_is_found_in_each(benchmarks: Path) -> None:
    known = find_benchmarks(benchmarks)
    index, _ = NgramIndex.of([one.text for one in known.texts], SIZES)
    asks = next(one.text for one in known.texts if one.text.startswith("Mira has"))
    rows = [said(asks, "Three."), said("Hello?", "No."), said(asks, "Four."), said("So?", asks)]
    scan = Scanner.of((), index)
    apart = [one for n, row in enumerate(rows) for one in scan([row], n).overlaps]
    assert scan(rows).overlaps == apart
    assert {one.index for one in apart} == {0, 2, 3}
