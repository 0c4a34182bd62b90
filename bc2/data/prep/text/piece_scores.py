"""Remove the scores of paragraphs and sentences that are cut out of a text."""

from __future__ import annotations

from itertools import chain, compress
from typing import Any

from bc2.data.prep.text.sentences import divide

#: Columns with one score for each piece.
SCORES = ("paragraph_scores", "sentence_scores")


def scores_left(row: dict[str, Any], left: str, flags: list[list[bool]]) -> dict[str, Any]:
    """The columns of `SCORES` for a document of which some sentences were cut.

    Args:
        row: the document before the cut.
        left: its text after the cut.
        flags: for each sentence of each paragraph, whether it stays.

    Returns:
        Column -> scores; None where the pieces of `left` are not exactly those that stay.
    """
    after = divide(left)
    steps = {
        "paragraph_scores": ([any(of_piece) for of_piece in flags], len(after)),
        "sentence_scores": ([*chain(*flags)], sum(len(each.sentences) for each in after)),
    }
    return {name: _in_step(row[name], *steps[name]) for name in SCORES if row.get(name) is not None}


def _in_step(scores: list[float], keep: list[bool], after: int) -> list[float] | None:
    """The scores of the pieces that are kept; None if the text now has another number of pieces."""
    if len(scores) != len(keep) or after != sum(keep):
        return None
    return list(compress(scores, keep))
