"""Judge texts by the rules: the first rule that a text fails decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bc2.data.prep.heuristics_settings import FormRules
from bc2.data.prep.stages.heuristic_rules.rules import OF_TABLES, failures
from bc2.data.prep.stages.heuristic_rules.text_batch import TextBatch
from bc2.data.prep.text.document_statistics import document_batches
from bc2.data.prep.text.markup.unmarked_code import without_unmarked_code
from bc2.data.prep.text.sentences import listed_in

#: The reason and the detail of the first rule that a text fails, or None.
Verdict = tuple[str, str | None] | None


def judge(
    prose: Sequence[str], rules: FormRules, texts: Sequence[str] | None = None
) -> list[Verdict]:
    """For each text the reason and the detail of the first rule that it fails, or None.

    Args:
        prose: of each text; of source code, the text.
        texts: the whole texts, if these are not their prose.
    """
    texts = texts or prose
    verdicts: list[Verdict] = []
    for part in document_batches(prose):
        judged: list[Verdict] = [None] * (part.stop - part.start)
        batch = TextBatch(prose[part], rules, texts[part])
        for failure in failures(batch):
            for at in np.flatnonzero(failure.failed).tolist():
                judged[at] = judged[at] or (failure.reason, failure.detail(at))
        for at in batch.mostly_blocks:
            judged[at] = judged[at] or _judge_tables(batch.texts[at], batch.wholes[at], rules)
        verdicts += judged
    return verdicts


def judge_twice(prose: Sequence[str], rules: FormRules, texts: Sequence[str]) -> list[Verdict]:
    """`judge`, and again without lines of code that nothing marks, for each text that fails."""
    verdicts = judge(prose, rules, texts)
    for at, verdict in enumerate(verdicts):
        if verdict and (left := without_unmarked_code(prose[at])) != prose[at]:
            verdicts[at] = judge([left], rules, [texts[at]])[0] and verdict
    return verdicts


def _judge_tables(prose: str, text: str, rules: FormRules) -> Verdict:
    """The reason and the detail if a document of tables and headings with little prose fails."""
    listed = listed_in(text)
    if not listed.strip():
        return None
    for failure in failures(TextBatch([f"{prose}\n{listed}"], rules)):
        if failure.reason in OF_TABLES and failure.failed[0]:
            return failure.reason, failure.detail(0)
    return None
