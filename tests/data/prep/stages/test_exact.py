"""Exact duplicates against a dictionary of texts, by the text and by the id it was read with."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bc2.data.prep.stages.exact import ExactStage


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parts=st.lists(st.lists(st.text("ab天", max_size=2), max_size=8), max_size=3))
@pytest.mark.parametrize("as_read", [False, True])
def test_the_first_of_equal_texts_stays(parts, as_read, run_stage, records):
    firsts = [sum(map(len, parts[:number])) for number in range(len(parts))]
    tables = [records(texts, first) for texts, first in zip(parts, firsts, strict=True)]
    outcomes, facts = run_stage(ExactStage(as_read), tables)
    seen: dict[str, int] = {}
    for number, text in enumerate(text for texts in parts for text in texts):
        seen.setdefault(text, number)
    stays = [pos for outcome in outcomes for pos in outcome.table["pos"].to_pylist()]
    gone = [pos for outcome in outcomes for pos in outcome.removed["pos"].to_pylist()]
    assert stays == sorted(seen.values())
    assert sorted(stays + gone) == list(range(sum(map(len, parts))))
    assert facts == {"duplicates": len(gone)}


def test_a_text_that_changed_is_not_known_by_its_id(run_stage, records):
    table = records(["one ", "one"])
    changed = table.set_column(2, table.schema.field(2), records(["one", "one"])["text"])
    for as_read, left in ((False, [0]), (True, [0, 1])):
        outcomes, _ = run_stage(ExactStage(as_read), [changed])
        assert outcomes[0].table["pos"].to_pylist() == left
