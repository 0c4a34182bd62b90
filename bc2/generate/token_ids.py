"""Checking token ids that a caller gives. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from bc2.errors import DataError


def check_ids(ids: Sequence[int], vocab_size: int, where: str, what: str = "the prompt") -> None:
    """Raise DataError unless there are ids, all of the vocabulary.

    Args:
        what: the text that they are.
    """
    if not len(ids):
        raise DataError(f"{what} is empty", where=where, todo="begin with some text")
    other = next((i for i in ids if not isinstance(i, Integral) or isinstance(i, bool)), None)
    if other is not None:
        raise DataError(
            f"{what} holds {other!r}, which is no token id", where=where, todo="give integers"
        )
    wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise DataError(
            f"token id {wrong} is outside the model's vocabulary of {vocab_size}",
            where=where,
            todo="use the tokenizer that the model was trained with",
        )
