"""`funnel.json` is read, checked, and written in the order of its keys."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bc2.data.prep.funnel import Funnel, Histogram
from bc2.errors import DataError


def removal(**counts: int) -> dict[str, int]:
    return {**dict.fromkeys(("documents", "bytes", "cut_documents", "cut_bytes"), 0), **counts}


def sample(**more: Any) -> dict[str, Any]:
    """Ten documents are read, eight come to `exact`, five are left; `quality` only cuts."""
    a, b = ({"source": "web", "lang": "en"}, {"source": "书", "lang": "zh"})
    exact = {"duplicate": removal(documents=3, bytes=300), "never": removal()}
    return {
        "version": 1,
        "read": {"documents": 10, "bytes": 1000},
        "stages": [
            {"name": "exact", "removed": exact, "facts": {"note": "</pre>"},
             "in": [{**a, "documents": 6, "bytes": 500}, {**b, "documents": 2, "bytes": 300}],
             "out": [{**a, "documents": 3, "bytes": 200}, {**b, "documents": 2, "bytes": 300}]},
            {"name": "quality",
             "removed": {"low_score": removal(cut_documents=4, cut_bytes=90)}, "facts": {},
             "in": [{**a, "documents": 3, "bytes": 200}, {**b, "documents": 2, "bytes": 300}],
             "out": [{**a, "documents": 3, "bytes": 150}, {**b, "documents": 2, "bytes": 250}]},
        ],
        **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": 2}, "version"),
        ({"read": {"documents": 7, "bytes": 9}}, "more documents than were read"),
        ({"read": {"documents": -1, "bytes": 0}}, "read.documents"),
        ({"lengths": {"en": {"edges": [1, 2], "documents": [1, 1, 1]}}}, "2 edges for 3 counts"),
        ({"lengths": {"en": {"edges": [2, 1], "documents": [1]}}}, "do not rise"),
        ({"examples": [{"stage": "exact"}]}, "examples.0.reason"),
    ],
)
def test_what_is_no_funnel_is_told(change: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        Funnel.of({**sample(), **change})


def test_documents_that_nobody_counted_are_told() -> None:
    data = sample()
    data["stages"][0]["removed"]["duplicate"]["documents"] = 2
    with pytest.raises(DataError, match="exact lost 3 documents and counted 2"):
        Funnel.of(data)
    data = sample()
    data["stages"][1]["in"][0]["bytes"] += 1
    with pytest.raises(DataError, match="what exact left is not what quality got"):
        Funnel.of(data)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"null"])
def test_a_broken_file_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "funnel.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no valid funnel"):
        Funnel.open(path)


def test_bins_begin_and_end_where_there_are_documents() -> None:
    closed = Histogram(edges=(0, 1, 2, 5), documents=(0, 3, 0))
    assert closed.bins() == [(1, 2, 3)]
    still_open = Histogram(edges=(0, 1, 2), documents=(0, 3, 1))
    assert still_open.bins() == [(1, 2, 3), (2, math.inf, 1)]
    assert Histogram(edges=(0, 1), documents=(0, 0)).bins() == []


def test_what_is_read_is_written_in_the_same_order() -> None:
    data = sample(
        malformed={"web": {"bad_json": {"documents": 2, "bytes": 70}}},
        lengths={"en": {"edges": [0, 1, 2.5], "documents": [0, 3, 1]}},
        scores={},
        examples=[
            {"stage": "exact", "reason": "duplicate", "source": "web", "lang": None,
             "origin": "a.jsonl:1", "detail": None, "text": "once more",
             "place": [5, 9], "whole": True}
        ],
    )  # fmt: skip
    for number, stage in enumerate(data["stages"]):
        keys = ("name", "version", "removed", "in", "out", "facts")
        data["stages"][number] = {key: stage.get(key, 1) for key in keys}
    timed = Funnel.of(data, {"exact": 1.5})
    assert json.dumps(timed.as_json()) == json.dumps(data)
