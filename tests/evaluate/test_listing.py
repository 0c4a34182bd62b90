"""`bc2 eval --list`."""

from __future__ import annotations

import json

from rich.console import Console

from bc2.evaluate.listing import suites_json, suites_table
from bc2.harness.suites import SUITES


def test_every_suite_is_in_the_table() -> None:
    console = Console(width=160)
    with console.capture() as shown:
        console.print(suites_table())
    lines = shown.get().splitlines()
    for suite in SUITES.values():
        (line,) = [one for one in lines if one.split()[:1] == [suite.name]]
        assert suite.title in line
        assert f" {suite.shots} " in line
        assert str(suite.metric) in line
        assert ("--allow-code" in line) is suite.runs_code
        assert ("%" in line) is (suite.chance is not None)
    assert any(one.split()[:1] == ["text"] and "--data FILE" in one for one in lines)


def test_every_suite_is_in_the_json() -> None:
    found = json.loads(json.dumps(suites_json()))
    assert [one["name"] for one in found] == [*SUITES, "text"]
    assert {one["name"]: one.get("shots") for one in found}["bbh"] == 3
