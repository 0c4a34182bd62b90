"""What makes two models another one: differences, near ties, ends, and the text that is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from made_export import Held
from numpy.typing import NDArray

from bc2.convert.proof.bounds import FEW_BITS, Bounds
from bc2.convert.proof.compare_model import Questions, Said, compare
from bc2.errors import DataError, RunFailed

BOUNDS = Bounds(1e-4, 1e-4)
ENDS = {9}


class Table:
    """A model that looks only at the last token: a row of log-probabilities for each."""

    name, version = "table", "1"

    def __init__(self, rows: NDArray[np.float32]):
        self.rows = rows

    def log_probs(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return self.rows[list(ids)]

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        said = [*ids]
        for _ in range(count):
            said.append(int(self.rows[said[-1]].argmax()))
        return said[len(ids) :]


def drawn(seed: int = 0, width: int = 10) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(width, width)) * 3
    rows -= np.log(np.exp(rows).sum(1, keepdims=True))
    return rows.astype(np.float32)


QUESTIONS = Questions(((1, 2, 3, 4, 5, 6), (7, 8, 0, 1)), ((1,), (2, 3)), 12)


def compared(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], bounds: Bounds = BOUNDS
) -> tuple[dict[str, object], list[str]]:
    here = Said.by(Table(ours), QUESTIONS, margins=True)
    return compare(here, Said.by(Table(theirs), QUESTIONS), QUESTIONS, bounds, ENDS)


def test_the_same_model() -> None:
    facts, problems = compared(drawn(), drawn())
    assert problems == []
    assert facts["largest_difference"] == 0
    assert facts["greedy_tokens"] == 24
    rows = drawn().astype(float)
    said = [rows[a, b] for ids in QUESTIONS.windows for a, b in pairwise(ids)]
    assert facts["perplexity_here"] == pytest.approx(np.exp(-np.mean(said)), rel=1e-6)


def test_a_difference_is_found_where_it_is() -> None:
    theirs = drawn()
    theirs[8, 4] += 2e-4
    facts, problems = compared(drawn(), theirs)
    assert facts["largest_difference"] == pytest.approx(2e-4, rel=1e-2)
    assert problems == [
        "log-probabilities differ by 0.0002, and 0.0001 is the bound (of token 4 after 2 tokens "
        "of text 1)"
    ]
    assert compared(drawn(), theirs, Bounds(1e-3, 1e-3))[1] == []


def test_what_a_program_cannot_tell() -> None:
    ours, theirs = drawn(), drawn()
    ours[8, 4], theirs[8, 4] = -95, -87
    here, there = Said.by(Table(ours), QUESTIONS, margins=True), Said.by(Table(theirs), QUESTIONS)
    assert compare(here, there, QUESTIONS, BOUNDS, ENDS, -87.0)[1] == []
    assert compare(here, there, QUESTIONS, BOUNDS, ENDS)[1] != []


def test_few_bits_are_compared_by_perplexity() -> None:
    near, far = drawn(), drawn()
    near[2] += 0.02
    far[2] += 0.2
    assert compared(drawn(), near, FEW_BITS)[1] == []
    (said,) = compared(drawn(), far, FEW_BITS)[1]
    assert said.startswith("its perplexity is")


def test_another_vocabulary() -> None:
    here = Said.by(Table(drawn()), QUESTIONS, margins=True)
    there = Said.by(Table(drawn(width=12)), QUESTIONS)
    said = compare(here, there, QUESTIONS, BOUNDS, ENDS)[1]
    assert said == ["its vocabulary has 12 rows, and ours 10"]


def test_numbers_that_are_none() -> None:
    rows = drawn()
    rows[3, 3] = np.nan
    with pytest.raises(RunFailed, match="table computes what is no number"):
        Said.by(Table(rows), QUESTIONS)


def tied(margin: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two models of which the likeliest token after 1 is another one, by a margin here."""
    ours = drawn()
    best, second = np.argsort(ours[1])[::-1][:2]
    ours[1, second] = ours[1, best] - margin
    theirs = ours.copy()
    theirs[1, second] = ours[1, best] + 0.00005
    return ours, theirs


def test_a_near_tie_is_said_and_no_mismatch() -> None:
    facts, problems = compared(*tied(0.00004))
    assert problems == []
    (said,) = facts["near_ties"][:1]  # type: ignore[index]
    assert said == "token 0 after a prompt of 1: two are as likely within 4e-05"


def test_other_tokens_that_no_tie_explains() -> None:
    # The same numbers: as if generation itself were broken, such as its cache.
    here = Said.by(Table(drawn()), QUESTIONS, margins=True)
    there = Said(here.log_probs, [[*here.greedy[0][:3], 99, *here.greedy[0][4:]], here.greedy[1]])
    (said,) = compare(here, there, QUESTIONS, BOUNDS, ENDS)[1]
    assert said.startswith(f"token 3 after a prompt of 1 is 99, and ours {here.greedy[0][3]}")


@pytest.mark.parametrize("ends", [True, False])
def test_a_continuation_that_ends_early(ends: bool) -> None:
    here = Said.by(Table(drawn()), QUESTIONS, margins=True)
    there = Said(here.log_probs, [here.greedy[0][:5], here.greedy[1]])
    allowed = {here.greedy[0][5]} if ends else ENDS
    facts, problems = compare(here, there, QUESTIONS, BOUNDS, allowed)
    if ends:
        assert problems == []
        assert facts["greedy_tokens"] == 5 + 12
    else:
        assert problems[0].startswith("token 5 after a prompt of 1 is the end")


def test_questions_fit_the_model_and_the_disk(held: Callable[[str], Held]) -> None:
    tokenizer = held("llama3").source.tokenizer
    texts = ["One text, and some more of it. " * 20, "另一段文字。" * 40] * 30
    found = Questions.of(texts, tokenizer, 100, 1280)
    assert sum(map(len, found.windows)) == 4096
    assert {len(window) for window in found.windows[:-1]} == {100}
    assert found.windows[0][: len(tokenizer.begin_ids)] == tokenizer.begin_ids
    assert [len(prompt) for prompt in found.prompts] == [1, 8, 24, 50]
    assert all(len(prompt) + found.count <= 100 for prompt in found.prompts)
    large = Questions.of(texts, tokenizer, 2000, 125_696)
    assert 4 * 125_696 * sum(map(len, large.windows)) <= 256 << 20
    assert sum(map(len, large.windows)) == 533
    with pytest.raises(DataError, match="fewer than two tokens"):
        Questions.of([""], tokenizer, 100, 1280)
