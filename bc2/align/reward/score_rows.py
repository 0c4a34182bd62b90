"""The scores of answers as rows of JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bc2.align.reward.score_answers import ScoreScale
from bc2.align.reward.score_data import ScoredData
from bc2.align.reward.score_models import Scored
from bc2.align.reward.score_reader import prompt_of
from bc2.data.chats.conversation import Conversation


def score_rows(
    data: ScoredData, found: Scored, scales: Mapping[str, ScoreScale | None]
) -> Iterator[dict[str, Any]]:
    """A row of each answer that has scores, in their order.

    Args:
        scales: by the name of each model, in the order of `found`.
    """
    kept = found.kept
    for place, answer in enumerate(data.read()):
        if not kept[place]:
            continue
        prompt = Conversation(prompt_of(answer.messages), answer.source, answer.file, answer.row)
        yield {
            "answer": place,
            "source": answer.source,
            "file": answer.file,
            "row": answer.row,
            "prompt_digest": prompt.digest[:16],
            "answer_digest": answer.digest[:16],
            "scores": {
                name: _row(float(found.scores[at, place]), int(found.lengths[at, place]), scale)
                for at, (name, scale) in enumerate(scales.items())
            },
        }


def _row(score: float, tokens: int, scale: ScoreScale | None) -> dict[str, Any]:
    standard = None if scale is None else scale(score)
    return {"score": score, "standard_score": standard, "tokens": tokens}
