"""Scores of paragraphs and sentences, kept in step with a text that loses some of them."""

from __future__ import annotations

from itertools import chain, compress
from typing import Any

from bc2.data.prep.text.sentences import sentences_of, split_paragraphs

#: Columns with one score for each piece.
SCORES = ("paragraph_scores", "sentence_scores")


def scores_left(row: dict[str, Any], left: str, flags: list[list[bool]]) -> dict[str, Any]:
    """The columns of `SCORES` for what is left of a document's text.

    Args:
        row: the document as it was.
        flags: for each sentence of each paragraph whether it stays.
    """
    after = split_paragraphs(left)
    steps = {
        "paragraph_scores": ([any(of_piece) for of_piece in flags], len(after)),
        "sentence_scores": ([*chain(*flags)], sum(len(sentences_of(piece)) for piece in after)),
    }
    return {name: _in_step(row[name], *steps[name]) for name in SCORES if row.get(name) is not None}


def _in_step(scores: list[float], keep: list[bool], after: int) -> list[float] | None:
    """The scores of what is kept, if that is what the text splits into now."""
    if len(scores) != len(keep) or after != sum(keep):
        return None
    return list(compress(scores, keep))
