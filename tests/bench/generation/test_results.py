"""Results of generation: kept, found again, shown, and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bc2.bench.generation.render import (
    generation_comparison,
    generation_differences,
    generation_listing,
    generation_markdown,
    generation_setup,
    generation_tables,
)
from bc2.bench.generation.results import (
    DecodeResult,
    FamilyResult,
    GenerationResult,
    HostMemory,
    Pass,
    PrefixResult,
    ShareResult,
    find_generation,
    pass_of,
    read_generation,
    read_kept_generations,
)
from bc2.bench.results import Ratio, keep_result
from bc2.errors import DataError, RefError


def passes(*seconds: float) -> list[Pass]:
    return [Pass(seconds=s, first_median_s=s / 4, first_p95_s=s / 2) for s in seconds]


OURS = DecodeResult(
    name="bc2-fp32", kind="bc2", precision="fp32", rounds=passes(10.0, 8.0, 16.0),
    memory=HostMemory(baseline=10**8, peak=3 * 10**8, reserved=None),
)  # fmt: skip
PEER = DecodeResult(
    name="hf-static-fp32", kind="hf-static", precision="fp32", rounds=passes(20.0, 20.0, 20.0),
    size=32, tried={16: 3.0, 32: 4.0}, same_answers=0.75,
)  # fmt: skip
FAILED = DecodeResult(name="hf-sorted-fp32", kind="hf-sorted", precision="fp32", failed="a | b")


def result(name: str = "one", **changes: Any) -> GenerationResult:
    fields = {
        "id": name,
        "time": f"2026-01-01T00:00:{len(name):02}+00:00",
        "recipe": {"model": {"num_layers": 2}},
        "machine": {"cpu": "a CPU", "cores": 2, "device": "cpu", "load": 0.5, "packages": {}},
        "settings": {"device": "cpu", "rounds": 3},
        "work": {
            "requests": 4, "prompt_tokens": 9, "answer_tokens": 80, "score_requests": 6,
            "score_tokens": 60, "shots": 5,
        },
        "params": 10,
        "decode": [OURS, PEER, FAILED],
        "ratios": [Ratio(ours="bc2-fp32", peer="hf-static-fp32", rounds=[2.0, 2.5, 1.25])],
        "prefix": [
            PrefixResult(
                precision="fp32", requests=6, shared_s=[2.0, 3.0], apart_s=[12.0, 12.0],
                shared_tokens=20, apart_tokens=60, difference=1e-6,
            )
        ],
        "sampling": [
            ShareResult(precision="fp32", what="top-k", part_s=[1.0], seconds=[4.0], steps=8)
        ],
        "settle": [
            ShareResult(
                precision="bf16", what="near ties", part_s=[1.0], seconds=[10.0], steps=5, events=7
            )
        ],
        "n": [
            FamilyResult(
                precision="fp32", n=8, prompt=512, prompt_tokens=512, one_s=[2.0], all_s=[5.0]
            )
        ],
        "failed": {"n in bf16": "no room"},
    }  # fmt: skip
    return GenerationResult(**{**fields, **changes})


def test_a_pass_keeps_the_median_and_the_slowest_twentieth() -> None:
    made = pass_of({"seconds": 9.0, "first_s": [float(i) for i in range(100, 0, -1)]})
    assert made == Pass(seconds=9.0, first_median_s=50.5, first_p95_s=96.0)
    assert pass_of({"seconds": 1.0, "first_s": [0.5]}).first_p95_s == 0.5


def test_json_has_what_is_worked_out() -> None:
    shown = result().as_json()
    assert shown["decode"][0]["tokens_per_s"] == {"median": 8.0, "low": 5.0, "high": 10.0}
    assert "tokens_per_s" not in shown["decode"][2]
    assert shown["ratios"][0]["median"] == 2.0
    assert shown["prefix"][0]["times_as_fast"] == {"median": 5.0, "low": 4.0, "high": 6.0}
    assert shown["sampling"][0]["share"]["median"] == 0.25
    assert shown["settle"][0]["share"]["median"] == 0.1
    assert (shown["n"][0]["one_prefill"], shown["n"][0]["times_as_long"]["median"]) == (True, 2.5)
    json.dumps(shown)


def test_tables_show_every_part() -> None:
    made = {each.title: each for each in generation_tables(result())}
    assert made["Decoding"].rows == [
        ["bc2-fp32", "", "8", "5 to 10", "10.0", "200", ""],
        ["hf-static-fp32", "32", "4", "4 to 4", "20.0", "", "75%"],
    ]
    assert made["Against each other"].rows == [
        ["bc2-fp32", "hf-static-fp32", "2.00", "1.25 to 2.50"]
    ]
    assert made["Seconds to the first token, all prompts given at once"].rows[0][1:] == [
        "2.50", "5.00",
    ]  # fmt: skip
    assert made["Scoring with shared beginnings"].rows == [
        ["fp32", "2.4", "0.5", "5.00", "4.00 to 6.00", "20", "60", "1.0e-06"]
    ]
    assert made["Choosing tokens"].rows == [
        ["sampling: top-k", "fp32", "25.0%", "25.0% to 25.0%", "500.0"],
        ["settling: near ties (7 times)", "bf16", "10.0%", "10.0% to 10.0%", "2000.0"],
    ]
    assert made["Several continuations of one prompt"].rows == [
        ["fp32", "8", "512", "512", "2.00", "5.00", "2.50", "2.50 to 2.50"]
    ]
    assert made["Not measured"].rows == [["hf-sorted-fp32", "a | b"], ["n in bf16", "no room"]]
    alone = result(decode=[], ratios=[], prefix=[], sampling=[], settle=[], failed={})
    assert [each.title for each in generation_tables(alone)] == [
        "Several continuations of one prompt"
    ]


def test_markdown_has_the_setup_and_the_tables() -> None:
    page = generation_markdown(result())
    assert page.startswith("# bc2 bench generate: one\n\n- 10 parameters on cpu; 3 rounds")
    assert "| hf-sorted-fp32 | a \\| b |" in page
    lines = list(generation_setup(result()))
    assert all(f"- {line}" in page for line in lines)
    assert "4 prompts of 9 tokens, answers of 80" in lines
    # What was not measured is no part of the setup.
    assert len(list(generation_setup(result(decode=[], prefix=[])))) == len(lines) - 2


def test_results_are_kept_and_found_again(tmp_path: Path) -> None:
    one, other = result("one"), result("another")
    for each in (other, one):
        keep_result(each, tmp_path)
    assert read_kept_generations(tmp_path) == [one, other]
    assert find_generation("ano", tmp_path) == other
    assert find_generation(str(tmp_path / "one.json"), tmp_path) == one
    with pytest.raises(RefError, match="no kept result 'two'") as caught:
        find_generation("two", tmp_path)
    assert caught.value.todo is not None
    assert "bc2 bench generate --list" in caught.value.todo


def test_another_version_is_not_read(tmp_path: Path) -> None:
    path = keep_result(result(), tmp_path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(DataError, match="has version 9, not 1"):
        read_generation(path)
    assert read_kept_generations(tmp_path) == []
    path.write_text("[]")
    with pytest.raises(DataError, match="not an object"):
        read_generation(path)


def test_a_listing_shows_the_peer_that_is_nearest() -> None:
    near = Ratio(ours="bc2-fp32", peer="hf-sorted-fp32", rounds=[1.5])
    listed = generation_listing([result(ratios=[*result().ratios, near]), result("n", decode=[])])
    assert listed.rows[0][2:] == ["8", "1.50", "hf-sorted-fp32"]
    assert listed.rows[1][2] == ""


def test_two_results_are_compared_by_what_both_have() -> None:
    faster = OURS.model_copy(update={"rounds": passes(5.0)})
    second = result("two", decode=[faster], settings={"device": "cpu", "rounds": 1}, n=[])
    rows = {row[0]: row[1:] for row in generation_comparison(result(), second).rows}
    assert rows["bc2-fp32, tokens/s"] == ["8", "16", "2.000"]
    assert "hf-static-fp32, tokens/s" not in rows
    assert "n=8 fp32, times as long" not in rows
    assert rows["sampling: top-k fp32, share"][2] == "1.000"
    assert list(generation_differences(result(), second)) == [
        "they differ in settings rounds: 3 and 1"
    ]
