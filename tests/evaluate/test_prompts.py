"""What is written of prompts is read again, in parts, and damage is seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bc2.errors import DataError
from bc2.evaluate.answer_journal import units_of
from bc2.evaluate.prompts import GROUP, Prompt, PromptFile, TaskPrompts, write_prompts


def prompt(number: int) -> Prompt:
    draw = random.Random(number)
    contexts = [[draw.randrange(99) for _ in range(draw.randrange(9))] for _ in range(number % 3)]
    asked = [(at, [draw.randrange(99)] * draw.randrange(3)) for at in range(len(contexts))] * 2
    return Prompt(number, f"{number:064x}", number % 7, contexts, asked)


@pytest.mark.parametrize("count", [1, GROUP, GROUP + 1, 2 * GROUP + 5])
def test_each_unit_is_read_alone(tmp_path: Path, count: int) -> None:
    prompts = [prompt(number) for number in range(count)]
    write_prompts(tmp_path / "p", iter(prompts))
    file = PromptFile(tmp_path / "p")
    for kind in ("score", "generate"):
        units = list(units_of(TaskPrompts("t", kind, count, {})))
        for unit in reversed(units):
            assert file.read(unit.first, unit.last) == prompts[unit.first : unit.last]
    assert list(file.heads()) == [(one.doc_id, one.digest, one.question_tokens) for one in prompts]


def test_prompts_are_written_as_they_are_made(tmp_path: Path) -> None:
    """They are not gathered first: a task may have more than memory holds."""
    held: list[int] = []

    def made() -> list[Prompt]:
        for number in range(3 * GROUP):
            held.append((tmp_path / "p").stat().st_size)
            yield prompt(number)

    write_prompts(tmp_path / "p", made())
    assert held[GROUP - 1] < held[GROUP] < held[2 * GROUP]


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.99])
def test_a_file_cut_short_is_damaged(tmp_path: Path, cut: float) -> None:
    path = tmp_path / "p"
    write_prompts(path, map(prompt, range(300)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(DataError, match=r"stored prompts are damaged.*delete the file") as info:
        PromptFile(path)
    assert info.value.where == str(path)


def test_a_changed_byte_changes_no_prompt_unseen(tmp_path: Path) -> None:
    path = tmp_path / "p"
    write_prompts(path, map(prompt, range(300)))
    whole = path.read_bytes()
    file = PromptFile(path)
    expected = file.read(0, GROUP), file.read(GROUP, 300)
    seen = 0
    for at in range(4, len(whole), len(whole) // 150):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            damaged = PromptFile(path)
            assert (damaged.read(0, GROUP), damaged.read(GROUP, 300)) == expected
        except DataError:
            seen += 1
    assert seen > 75


def test_a_file_that_is_not_there_is_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PromptFile(tmp_path / "p")
