"""Two sets of answers, sample by sample."""

from __future__ import annotations

from typing import Any

from lm_eval_peer.answers import Answers

#: Samples that are named where answers differ.
NAMED = 5


def compare(ours: Answers, peer: Answers) -> dict[str, Any]:
    """How far bc2's answers are lm-eval's.

    Returns:
        ``samples``, compared; ``same``, of them with the same prediction or text;
        ``max_difference`` of a log-likelihood, in nats, None without any; ``greedy_differs``,
        choices of which only one side says that it is what greedy decoding writes; ``different``,
        the first samples that are not the same; ``missing``, samples that only one side has.
    """
    mine, theirs = _by_sample(ours), _by_sample(peer)
    both = [key for key in theirs if key in mine]
    different = [key for key in both if not _same(mine[key], theirs[key])]
    pairs = [(mine[key], theirs[key]) for key in both]
    gaps = [
        abs(a - b)
        for one, other in pairs
        for a, b in zip(one.get("lls", []), other.get("lls", []), strict=True)
    ]
    greedy = [
        a != b
        for one, other in pairs
        for a, b in zip(one.get("greedy", []), other.get("greedy", []), strict=True)
    ]
    return {
        "samples": len(both),
        "same": len(both) - len(different),
        "max_difference": max(gaps, default=None),
        "greedy_differs": sum(greedy),
        "different": [
            {
                "task": task,
                "doc_id": number,
                "ours": mine[task, number],
                "peer": theirs[task, number],
            }
            for task, number in different[:NAMED]
        ],
        "missing": sorted(map(list, mine.keys() ^ theirs.keys()))[:NAMED],
    }


def _by_sample(answers: Answers) -> dict[tuple[str, int], dict[str, Any]]:
    return {(task, row["doc_id"]): row for task, rows in answers.items() for row in rows}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    key = "text" if "text" in other else "prediction"
    return bool(one.get(key) == other[key])
