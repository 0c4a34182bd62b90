"""What a model answered, taken from samples in lm-eval's format; imports nothing of lm-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Samples of each task: ``doc_id``; of multiple choice ``lls``, ``greedy`` and ``prediction``
#: (the number of the likeliest choice), else ``text``.
Answers = dict[str, list[dict[str, Any]]]


def answers_of(samples: Mapping[str, Sequence[dict[str, Any]]]) -> Answers:
    """Each sample once, in order: lm-eval lists it again for each filter of its task.

    Args:
        samples: of each task; a row has ``doc_id``, ``filter`` and ``resps``.
    """
    return {name: [_answer(row) for row in _once(rows)] for name, rows in samples.items()}


def _once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    first = rows[0]["filter"] if rows else None
    return sorted((r for r in rows if r["filter"] == first), key=lambda row: row["doc_id"])


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    responses = [given[0] for given in row["resps"]]
    if isinstance(responses[0], str):
        return {"doc_id": row["doc_id"], "text": responses[0]}
    lls = [float(number) for number, _ in responses]
    greedy = [is_greedy in (True, "True") for _, is_greedy in responses]
    found = {"lls": lls, "greedy": greedy, "prediction": lls.index(max(lls))}
    return {"doc_id": row["doc_id"], **found}
