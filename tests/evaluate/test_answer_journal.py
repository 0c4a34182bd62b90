"""What an interrupted evaluation goes on from: cut anywhere, and shared by ranks."""

from __future__ import annotations

import math
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.evaluate.answer_journal import Answered, AnswerJournal, Unit, units_of
from bc2.evaluate.prompts import GROUP, TaskPrompts
from bc2.evaluate.samples import Answer

UNIT = Unit("gsm8k", 16, 20)


def said(doc_id: int, text: str = "答 42\n") -> Answered:
    return Answered(doc_id, (Answer(text=text, new_tokens=3), Answer(text="", met_limit=True)))


def path_of(journal: AnswerJournal) -> Path:
    (path,) = journal.folder.iterdir()
    return path


def append(journal: AnswerJournal, *answered: Answered) -> None:
    with journal.appending(UNIT) as write:
        for one in answered:
            write(one)


answers = st.builds(
    Answer,
    log_prob=st.none() | st.floats(max_value=0, allow_nan=False),
    greedy=st.none() | st.booleans(),
    text=st.none() | st.text(),
    cut=st.integers(0, 9),
    new_tokens=st.integers(0, 9),
    met_limit=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(answers, min_size=1, max_size=3).map(tuple), min_size=4, max_size=4))
def test_any_answers_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, given_: list[tuple[Answer, ...]]
) -> None:
    journal = AnswerJournal(tmp_path_factory.mktemp("work"), "claims")
    answered = [Answered(16 + at, one) for at, one in enumerate(given_)]
    journal.write(UNIT, answered)
    assert journal.read(UNIT) == {one.doc_id: one for one in answered}
    assert journal.is_done(UNIT)


def test_numbers_at_the_ends_come_back(tmp_path: Path) -> None:
    """Zero is not the same as none, and the worst there is has no number in JSON."""
    journal = AnswerJournal(tmp_path, "claims")
    kept = tuple(
        Answer(log_prob=value, greedy=greedy)
        for value in (0.0, -1e-300, -math.inf, None)
        for greedy in (None, False, True)
    )
    journal.write(UNIT, [Answered(16, kept)])
    found = journal.read(UNIT)[16].answers
    assert found == kept
    assert [type(one.log_prob) for one in found] == [type(one.log_prob) for one in kept]


def test_a_crash_at_any_byte_loses_no_answer_but_the_last(tmp_path: Path) -> None:
    """The next start goes on behind what is left, and can die there too."""
    journal = AnswerJournal(tmp_path, "claims")
    first = [said(16), said(17), said(18, "三")]
    append(journal, *first)
    path = path_of(journal)
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = sum(end <= size for end in ends)
        assert list(journal.read(UNIT).values()) == first[:kept]
        append(journal, said(19))
        found = list(journal.read(UNIT).values())
        # A line that had all but its end is whole when another follows.
        assert found[:-1] in (first[:kept], first[: kept + 1])
        assert found[-1] == said(19)
        path.write_bytes(path.read_bytes()[:-3])
        append(journal, *first[kept:])
        assert not journal.is_done(UNIT)
        append(journal, said(19))
        assert journal.is_done(UNIT)
        assert list(map(journal.read(UNIT).get, (16, 17, 18, 19))) == [*first, said(19)]


@pytest.mark.parametrize(
    "torn",
    [
        b"\0" * 40, b"\xff\xfe{", b'{"doc_id": 18, "ans', b"{}{}", b"{}", b"18", b"[]",
        b'{"doc_id": 18, "answers": null}', b'{"doc_id": 18, "answers": [{"unknown": 1}]}',
    ],
)  # fmt: skip
def test_a_torn_line_is_no_answer(tmp_path: Path, torn: bytes) -> None:
    journal = AnswerJournal(tmp_path, "claims")
    append(journal, said(16))
    path = path_of(journal)
    path.write_bytes(path.read_bytes() + torn)
    append(journal, said(17))
    assert sorted(journal.read(UNIT)) == [16, 17]
    assert not journal.is_done(UNIT)


def test_a_full_disk_is_an_error_at_once(tmp_path: Path) -> None:
    """`write` without a buffer writes what there is room for, and raises nothing."""
    journal = AnswerJournal(tmp_path, "claims")
    append(journal, said(16))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with journal.appending(UNIT) as write:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path_of(journal).stat().st_size + 20, hard))
        try:
            with pytest.raises(OSError, match="too large"):
                write(said(17))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append(journal, said(18))
    assert sorted(journal.read(UNIT)) == [16, 18]


def claims_of(folder: Path, units: list[Unit]) -> list[Unit]:
    journal = AnswerJournal(folder, "claims-1")
    return [unit for unit in units if journal.claim(unit)]


def test_each_unit_is_taken_by_one_of_several_processes(tmp_path: Path) -> None:
    units = list(units_of(TaskPrompts("cmmlu_a/b", "generate", 3000, {})))
    readers = []
    for _ in range(3):
        read, write = os.pipe()
        if os.fork() == 0:
            try:
                taken = claims_of(tmp_path, units)
                os.write(write, b"".join(b"%d\n" % unit.first for unit in taken))
            finally:
                os._exit(0)
        os.close(write)
        readers.append(read)
    with ThreadPoolExecutor() as pool:
        told = list(pool.map(lambda fd: Path(f"/dev/fd/{fd}").read_bytes(), readers))
    for read in readers:
        os.close(read)
        os.wait()
    taken = [int(line) for one in told for line in one.split()]
    assert sorted(taken) == [unit.first for unit in units]
    assert claims_of(tmp_path, units) == []


def test_another_start_takes_units_again(tmp_path: Path) -> None:
    """Who took a unit and died does not hold it."""
    assert AnswerJournal(tmp_path, "claims-1").claim(UNIT)
    assert not AnswerJournal(tmp_path, "claims-1").claim(UNIT)
    assert AnswerJournal(tmp_path, "claims-2").claim(UNIT)


def test_units_cover_a_task_and_cross_no_group() -> None:
    for kind in ("score", "generate", "rolling"):
        for samples in (1, 16, 17, GROUP, GROUP + 1, 3 * GROUP - 1):
            units = list(units_of(TaskPrompts("a/ü", kind, samples, {})))
            covered = [doc for unit in units for doc in range(unit.first, unit.last)]
            assert covered == list(range(samples))
            assert all(unit.first // GROUP == (unit.last - 1) // GROUP for unit in units)
            assert len({unit.name for unit in units}) == len(units)
            assert not any("/" in unit.name for unit in units)


def test_a_unit_of_another_task_is_not_taken_for_it(tmp_path: Path) -> None:
    """Names are quoted, so that no two tasks share a file."""
    journal = AnswerJournal(tmp_path, "claims")
    for number, task in enumerate(("a/b", "a%2Fb", "a_b", "a b")):
        journal.write(Unit(task, 0, 1), [said(0, str(number))])
    assert [
        journal.read(Unit(task, 0, 1))[0].answers[0].text for task in ("a/b", "a%2Fb", "a_b", "a b")
    ] == list("0123")
