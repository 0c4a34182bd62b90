"""A reward model in the program that it was written for: scores of whole conversations."""

from __future__ import annotations

import random
from itertools import cycle
from pathlib import Path
from typing import Any, cast

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan
from bc2.convert.proof.compare_texts import compare_chat, compare_texts
from bc2.convert.proof.consumer import Padding
from bc2.convert.proof.hard_texts import strings
from bc2.convert.proof.open_consumer import open_consumer
from bc2.convert.proof.our_model import Rounding
from bc2.convert.proof.program_proof import STRINGS, Found
from bc2.convert.proof.real_texts import RealTexts
from bc2.convert.proof.worker import Worker, open_worker
from bc2.tokenizer.chat import IGNORED

#: Conversations that are scored, and the most tokens of one.
TEXTS, _LONGEST = 200, 256

#: The largest difference of a score; of scores above 1 relative to the largest of them.
BOUND = 1e-5

_SEED = 20230906
_SIDES: tuple[Padding, ...] = ("right", "left")


class ScoreProof:
    """Scores of conversations that end as answers do, in batches that are filled on each side.

    Args:
        scratch: a folder of the proof's own.
    """

    def __init__(
        self, folder: Path, source: SourceModel, plan: ExportPlan, texts: RealTexts, scratch: Path
    ):
        self._folder, self._source, self._plan = folder, source, plan
        self._texts, self._scratch = texts, scratch
        self._conversations = conversations(source, texts)

    def run(self) -> Found:
        """Ask ours, then theirs, each alone in memory.

        Raises:
            RunFailed: an engine does not load what was written, or dies.
        """
        facts: dict[str, Any] = {"text": {"title": self._texts.title, "sha256": self._texts.digest}}
        rounding = Rounding.of(self._source, self._plan, self._folder)
        with open_worker("bc2", self._scratch, rounding=rounding.to_json()) as ours:
            here = ours.scores(self._conversations, "right")
        with open_consumer(self._plan, self._folder, self._scratch) as consumer:
            worker = cast("Worker", consumer)
            facts["program"] = {"name": worker.name, "version": worker.version}
            facts["tokenizer"], problems = self._compare_texts(worker)
            facts["chat"], more = compare_chat(self._source.chat, worker)
            there = {side: worker.scores(self._conversations, side) for side in _SIDES}
        facts["scores"], wrong = compare_scores(here, there)
        return facts, [*problems, *more, *wrong]

    def _compare_texts(self, worker: Worker) -> Found:
        tokenizer = self._source.tokenizer
        controls = [name for name in (*tokenizer.special_ids, *tokenizer.added_ids) if name]
        texts = strings(self._texts.texts, controls, STRINGS, _SEED)
        return compare_texts(tokenizer, worker, texts, "transformers")


def conversations(source: SourceModel, texts: RealTexts) -> list[list[int]]:
    """Ids of conversations of different lengths, each with the end of an answer last."""
    tokenizer, chat = source.tokenizer, source.chat
    chance = random.Random(_SEED)
    longest = max(1, min(_LONGEST, source.config.context_length) - 1)
    end = next(iter(chat.end_ids), tokenizer.eos_id) if chat else tokenizer.eos_id
    found: list[list[int]] = []
    for text in cycle(texts.texts):
        begin = chance.randrange(max(1, len(text) - 1))
        part = text[begin : begin + chance.randint(2, 4 * longest)]
        ids = tokenizer.encode(part)
        if chat is not None and len(part) > 1:
            half = len(part) // 2
            said = [("user", part[:half]), ("assistant", part[half:])]
            rendered = chat.render([{"role": role, "content": what} for role, what in said])
            ids = rendered.ids[: _last_learnt(rendered.labels)]
        found.append([*ids[:longest], end])
        if len(found) == TEXTS:
            return found
    raise AssertionError("texts of a proof are never empty")


def _last_learnt(labels: list[int]) -> int:
    """The place of the last label: that of the end of the answer."""
    return max(place for place, label in enumerate(labels) if label != IGNORED)


def compare_scores(here: list[float], there: dict[Padding, list[float]]) -> Found:
    """The largest difference on any side, and the texts whose scores differ too much."""
    bound = BOUND * max(1.0, *map(abs, here))
    problems, largest = [], 0.0
    for side, scores in there.items():
        for number, (ours, theirs) in enumerate(zip(here, scores, strict=True)):
            gap = abs(ours - theirs)
            if not gap <= bound:
                problems.append(
                    f"conversation {number} scores {theirs:.6g} in a batch filled {side}, and "
                    f"{ours:.6g} here"
                )
            largest = max(largest, gap)
    facts = {
        "texts": len(here), "largest_difference": largest, "difference_bound": bound,
        "lowest": min(here), "highest": max(here),
    }  # fmt: skip
    return facts, problems
