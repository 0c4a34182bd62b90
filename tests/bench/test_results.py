"""Figures that are worked out, and results that are kept and found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from bc2.bench.render import comparison, differences, result_markdown, tables
from bc2.bench.results import (
    BenchResult,
    Checkpoint,
    ContenderResult,
    Memory,
    Peak,
    Ratio,
    find_result,
    keep_result,
    new_id,
    read_kept_results,
    read_result,
)
from bc2.errors import DataError, RefError

FOUND = ContenderResult(
    name="bc2-eager",
    kind="bc2",
    rounds=[[0.5, 0.5, 0.7], [1.0, 0.4, 0.5]],
    parts={"forward": 0.2, "backward": 0.3},
    parts_step_s=0.6,
    memory=Memory(baseline=100, peak=900, allocated=700, reserved=None, estimate={"total": 1000}),
)
FAILED = ContenderResult(name="hf-bf16-eager", kind="hf", failed="MemoryError: a | b")
SLOWER = FOUND.model_copy(
    update={"name": "hf-fp32-eager", "kind": "hf", "rounds": [[1.0] * 3, [1.0] * 3]}
)


def result(name: str = "one", **changes: object) -> BenchResult:
    fields = {
        "id": name,
        "time": f"2026-01-01T00:00:{len(name):02}+00:00",
        "recipe": {"model": {"num_layers": 2}},
        "machine": {"cpu": "a CPU", "cores": 2, "device": "cpu", "load": 0.5, "packages": {}},
        "settings": {"precision": "bf16", "device": "cpu", "steps": 3, "rounds": 2},
        "params": 10,
        "batch_tokens": 1000,
        "flops_per_token": 60,
        "peak": Peak(before=1.2e6, after=1e6, datasheet=None),
        "contenders": [FOUND, FAILED, SLOWER],
        "ratios": [Ratio(ours="bc2-eager", peer="hf-fp32-eager", rounds=[2.0, 1.9, 2.2])],
    }
    return BenchResult(**{**fields, **changes})


def test_speed_is_the_median_step_and_its_spread_is_over_rounds() -> None:
    assert FOUND.step_s.model_dump() == {"median": 0.5, "low": 0.5, "high": 0.5}
    speed = result().tokens_per_s(SLOWER)
    assert speed.model_dump() == {"median": 1000.0, "low": 1000.0, "high": 1000.0}


def test_mfu_is_of_the_larger_peak() -> None:
    one = result()
    # 2,000 tokens/s of 60 FLOPs over 1.2 MFLOP/s
    assert one.mfu(FOUND, one.peak.measured) == pytest.approx(0.1)
    derived = one.as_json()["contenders"]
    assert derived[0]["mfu_measured"] == pytest.approx(0.1)
    assert derived[0]["mfu_datasheet"] is None
    assert "step_s" not in derived[1]


def test_ratio_and_best_peer() -> None:
    shown = result().as_json()
    assert (shown["ratios"][0]["median"], shown["ratios"][0]["low"]) == (2.0, 1.9)
    assert shown["best_peer"] == "hf-fp32-eager"


def test_a_kept_result_is_found_by_id_prefix_and_path(tmp_path: Path) -> None:
    path = keep_result(result("bench-1"), tmp_path)
    keep_result(result("other-22"), tmp_path)
    assert read_result(path) == result("bench-1")
    assert (
        find_result("bench-1", tmp_path)
        == find_result("ben", tmp_path)
        == find_result(str(path), tmp_path)
    )
    assert [each.id for each in read_kept_results(tmp_path)] == ["bench-1", "other-22"]


def test_one_broken_result_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_result(result("bench-1"), tmp_path)
    (tmp_path / "broken.json").write_text('{"version": 1}')
    assert [each.id for each in read_kept_results(tmp_path)] == ["bench-1"]
    assert "warning: this is no benchmark result: id: Field required" in capsys.readouterr().err


def test_refs_that_name_none_or_several(tmp_path: Path) -> None:
    keep_result(result("bench-1"), tmp_path)
    keep_result(result("bench-2"), tmp_path)
    with pytest.raises(RefError, match="several results"):
        find_result("bench", tmp_path)
    with pytest.raises(RefError, match="no kept result 'bnch-1'") as caught:
        find_result("bnch-1", tmp_path)
    assert caught.value.todo == "did you mean 'bench-1'?"
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("text", ["", "[1]", '{"version": 1}', '{"version": 99}'])
def test_a_file_that_is_no_result(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_result(path)
    assert caught.value.where == str(path)


def test_a_result_of_version_1_is_read_with_its_names_of_then(tmp_path: Path) -> None:
    path = keep_result(result(), tmp_path)
    text = path.read_text().replace('"version": 2', '"version": 1')
    path.write_text(text.replace('"batch_tokens"', '"tokens_per_step"'))
    assert "tokens_per_step" in path.read_text()
    assert read_result(path) == result()


def test_ids_do_not_repeat(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        name, _ = new_id("ladder/11m", tmp_path)
        keep_result(result(name), tmp_path)
        names.add(name)
    assert len(names) == 3
    assert all(name.startswith("ladder-11m-") for name in names)


def test_tables_have_a_cell_for_each_column_and_say_why_one_failed() -> None:
    made = tables(result())
    for table in made:
        assert table.rows, table.title
        assert all(len(row) == len(table.columns) for row in table.rows), table.title
    assert made[0].rows[1][1] == "failed: MemoryError: a | b"
    assert made[1].rows == [
        ["bc2-eager", "hf-fp32-eager", "2.000", "1.900 to 2.200", "the peer's best"]
    ]


def test_markdown_escapes_what_would_be_a_cell() -> None:
    page = result_markdown(result())
    assert "failed: MemoryError: a \\| b" in page
    assert "| bc2-eager | 500.0 |" in page


def test_comparison_and_what_differs() -> None:
    other = result("two", machine={**result().machine, "cores": 4, "load": 9.0})
    assert list(differences(result(), other)) == ["they differ in machine cores: 2 and 4"]
    table = comparison(result(), other)
    # the one that failed is in neither
    assert [row[0] for row in table.rows] == ["bc2-eager", "hf-fp32-eager"]
    assert table.rows[0][3] == "1.000"


def test_no_mfu_is_above_100_percent_of_what_was_measured() -> None:
    # A peak that was measured while the machine was busy: a step of 0.4 s shows 150 kFLOP/s.
    busy = result(peak=Peak(before=1e5, after=0.9e5, datasheet=None))
    assert busy.peak_flops == pytest.approx(1.5e5)
    assert busy.mfu(FOUND, busy.peak_flops) == pytest.approx(0.8)
    assert busy.as_json()["peak"]["measured"] == pytest.approx(1.5e5)
    assert ", 0.000 by the fastest step)" in result_markdown(busy)
    known = result(peak=Peak(before=1e5, after=1e5, datasheet=None, kept=1.2e6))
    assert known.mfu(FOUND, known.peak_flops) == pytest.approx(0.1)
    assert ", 0.000 earlier on this machine)" in result_markdown(known)


def test_more_than_a_datasheet_promises_is_said_to_be_impossible() -> None:
    wrong = result(peak=Peak(before=1.2e6, after=1e6, datasheet=1e5))
    said = "cannot be: the datasheet is of another device"
    derived = wrong.as_json()["contenders"]
    assert (derived[0]["mfu_datasheet"], derived[0]["mfu_note"]) == (pytest.approx(1.2), said)
    assert derived[2]["mfu_note"] is None
    assert tables(wrong)[0].rows[0][-1] == f"120.0% ({said})"


def cells(one: ContenderResult, title: str) -> dict[str, str]:
    """The only row of a table, by column."""
    (table,) = [made for made in tables(result(contenders=[one], ratios=[])) if title in made.title]
    (row,) = table.rows
    return dict(zip(table.columns, row, strict=True))


SAVED = Checkpoint(wait_s=0.001, save_s=1.5, bytes=2_000_000, before_s=[0.5, 0.5], during_s=[0.75])


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ({}, ""),  # a result of before it was measured
        ({"lost_s": 0.25, "losses_s": [0.25]}, "250 ms, 50.0%"),
        ({"lost_s": 0.25, "losses_s": [0.2, 0.3]}, "250 ms, 50.0% (200 to 300 ms)"),
    ],
)
def test_what_a_save_costs_is_told_with_its_range(lost: dict[str, object], said: str) -> None:
    saved = FOUND.model_copy(update={"checkpoint": SAVED.model_copy(update=lost)})
    row = cells(saved, "A checkpoint")
    assert row["lost in all, of a step"] == said
    assert (row["saved after, s"], row["MB"], row["during a save"]) == ("1.50", "2", "750.0")


def test_a_save_that_failed_says_why() -> None:
    failed = FOUND.model_copy(update={"checkpoint_failed": "the disk is full"})
    row = cells(failed, "A checkpoint")
    assert row["loop waits, ms"] == "failed: the disk is full"
    assert not any(list(row.values())[2:])


def test_recomputing_contenders_are_compared_in_memory_and_speed() -> None:
    parts = {"total": 1000, "activations": 3_000_000, "recomputed": 2_000_000}
    assert FOUND.memory is not None
    memory = FOUND.memory.model_copy(update={"estimate": parts})
    kept = FOUND.model_copy(update={"memory": memory})
    recomputed = kept.model_copy(update={"name": "bc2-recomputed", "checkpointing": 1})
    unknown = kept.model_copy(update={"name": "bc2-unknown", "memory": None})
    ran = [kept, recomputed, unknown, SLOWER]
    (table,) = [
        made for made in tables(result(contenders=ran)) if "Activation checkpointing" in made.title
    ]
    assert [row[:3] for row in table.rows] == [
        ["bc2-eager", "3", "2"],
        ["bc2-recomputed", "3", "2"],
    ]
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_memory_of_a_gpu_has_what_was_reserved() -> None:
    assert FOUND.memory is not None
    memory = FOUND.memory.model_copy(update={"reserved": 5_000_000})
    reserved = FOUND.model_copy(update={"memory": memory})
    with_it, without = cells(reserved, "Memory"), cells(FOUND, "Memory")
    (column,) = set(with_it) - set(without)
    assert with_it[column] == "5"
