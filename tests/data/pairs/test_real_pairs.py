"""Comparisons that people share, as they are: counts against a naive reading, refusals."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bc2.data.pairs.make_pairs import make_pairs
from bc2.data.pairs.pairs import Pairs
from bc2.data.pairs.pairs_config import PairsConfig, PairSourceConfig
from bc2.errors import DataError

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "align"
HARMLESS = "hh_rlhf/harmless_base_test.jsonl.gz"
SCORED = "fbbench_scored_responses_zh.jsonl.gz"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/align, or BC2_TEST_DATA"),
]


def pairs_of(out: Path, name: str, **more: Any) -> Pairs:
    source = PairSourceConfig(name="s", path=str(DATA / name), **more)
    make_pairs(PairsConfig(sources=(source,)), out)
    return Pairs.open(out)


def texts(pairs: Pairs) -> Iterator[tuple[list[str], str, str]]:
    """What is asked, and both answers, of each pair."""
    for split in ("train", "heldout"):
        table = pairs.table(split)
        for chosen, rejected in zip(table.chosen, table.rejected, strict=True):
            both = [
                [one["content"] for one in pairs.answers.at(split, int(place)).messages]
                for place in (chosen, rejected)
            ]
            assert both[0][:-1] == both[1][:-1]
            yield both[0][:-1], both[0][-1], both[1][-1]


def test_harmless_pairs_are_those_of_a_naive_reading(tmp_path):
    made = pairs_of(tmp_path, HARMLESS)
    with gzip.open(DATA / HARMLESS, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    assert made.count("train") + made.count("heldout") == len(rows) == 2312

    def squeezed(text: str) -> str:  # without the marks of turns, blanks and line ends
        return re.sub(r"\s", "", re.sub(r"\n\n(Human|Assistant):", "", text))

    expected = Counter(tuple(squeezed(row[key]) for key in ("chosen", "rejected")) for row in rows)
    found = Counter(
        tuple(re.sub(r"\s", "", "".join([*asked, answer])) for answer in (good, bad))
        for asked, good, bad in texts(made)
    )
    assert found == expected
    shorter = [len(good) < len(bad) for _, good, bad in texts(made)]
    assert np.mean(shorter) == pytest.approx(0.552, abs=0.01)


def test_scored_answers_make_the_pairs_of_two_loops_in_every_gap(tmp_path):
    """66 pairs more are in the first gap where 0.6 and 0.6000000000000001 are two scores."""
    made = pairs_of(tmp_path, SCORED)
    tables = [made.table(split) for split in ("train", "heldout")]
    gaps = np.concatenate([table.gaps for table in tables])
    fifths = np.ceil(np.round(gaps * 5, 6)).astype(int)
    assert np.bincount(fifths)[1:].tolist() == [12_974 - 66, 18_790, 12_205, 6_096, 34_832 - 3]
    facts = made.facts["sources"][0]
    assert facts["scores"] == {"count": 15_957, "lowest": 0, "highest": 1, "range": None}
    assert facts["unpaired"]["identical"] == 3
    with gzip.open(DATA / SCORED, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    expected = Counter(
        (better["response"], worse["response"])
        for row in rows
        for better, worse in itertools.permutations(row["responses"], 2)
        if better["score"] - worse["score"] > 1e-6 and better["response"] != worse["response"]
    )
    assert Counter((good, bad) for _, good, bad in texts(made)) == expected


@pytest.mark.parametrize("name", ["dpo_en", "dpo_zh"])
def test_shared_conversations_with_two_answers(tmp_path, name):
    path = f"llamafactory/{name}_demo.json"
    made = pairs_of(tmp_path, path)
    rows = json.loads((DATA / path).read_text(encoding="utf-8"))
    expected = Counter(
        ("\0".join(one["value"] for one in row["conversations"]), row["chosen"]["value"],
         row["rejected"]["value"])
        for row in rows
    )  # fmt: skip
    assert sum(expected.values()) == 300
    asked = Counter(("\0".join(asked), good, bad) for asked, good, bad in texts(made))
    assert asked == expected


def test_answers_with_a_label_alone_are_refused(tmp_path):
    with pytest.raises(DataError, match="none to compare it with"):
        pairs_of(tmp_path, "llamafactory/kto_en_demo.json")
