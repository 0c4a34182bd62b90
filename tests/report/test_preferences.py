"""Preferences and warnings: on a run's page, and in tables of facts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bc2.align.dpo.dpo_metrics import DPO_METRICS
from bc2.align.pairs.preference_rows import COLUMNS, accuracy_rows, accuracy_text
from bc2.align.pairs.preference_tables import preference_tables
from bc2.console import Output
from bc2.data.pairs.pairs import PairTable
from bc2.registry import Artifact, Draft, Position, Registry
from bc2.report.artifact_view import show_artifact
from bc2.report.history import History
from bc2.report.metric_panels import metric_panels
from bc2.report.page import MOST_WARNINGS, write_report
from bc2.report.preferences import preference_section
from bc2.train.logs.runs import RunFolder

LogRun = Callable[..., Path]

KEY = "0123456789ab" + 52 * "c"


def tables(pairs: int = 200, *, scored: bool = True, sources: int = 2) -> dict[str, Any]:
    rng, place = np.random.default_rng(0), np.arange(pairs)
    said = np.tile([3.0, 0.0], (pairs, 1)) + rng.integers(0, 4, (pairs, 1)) * [1, 0]
    said = said if scored else np.full_like(said, math.nan)
    of = rng.integers(0, sources, pairs)
    table = PairTable(place, place // 3, 2 * place, 2 * place + 1, of, said, said)
    lengths = rng.integers(1, 90, (pairs, 2)).astype(np.int32)
    return preference_tables(table, rng.normal((1, 0), size=(pairs, 2)), lengths, ("<zh>", "en"))


def registered(facts: dict[str, Any]) -> Artifact:
    draft = Draft("checkpoint", "made", KEY, position=Position(40, 20_480), facts=facts)
    with Registry.open().stage(draft) as staged:
        (staged.path / "data.bin").write_bytes(b"x")
        return staged.publish()


def page_of(folder: Path) -> str:
    return write_report(RunFolder(folder), Registry.open(), folder / "r.html").page.read_text()


def test_a_row_has_what_the_tables_say() -> None:
    found = tables()
    rows = list(accuracy_rows(found))
    assert [len(row) for row in rows] == [len(COLUMNS)] * (1 + 5 + 2 + 1)
    low, high = found["interval"]
    assert rows[0][:5] == (
        "all", "200", "67", f"{found['accuracy']:.1%}", f"{low:.1%} to {high:.1%}",
    )  # fmt: skip
    assert rows[0][6].replace("\N{MINUS SIGN}", "-") == f"{100 * found['above_length']:+.1f}"
    # Gaps of three and more, of a range of six: none is in the first two fifths.
    assert rows[1] == ("gap 0 to 20%", "0", "0", *5 * ("-",))
    assert accuracy_text(found) == f"{rows[0][3]} ({rows[0][4]}) of 200 pairs in order"
    one = tables(2)
    assert one["interval"] is None
    assert accuracy_text(one) == f"{one['accuracy']:.1%} of 2 pairs in order"


@pytest.mark.parametrize("scored", [True, False])
def test_a_page_has_the_preferences_of_its_checkpoint(log_run: LogRun, scored: bool) -> None:
    folder = log_run(end={"event": "finish"})
    assert "Preferences" not in page_of(folder)
    registered({"preference": tables(scored=scored), "score_centre": 0.5})
    page = page_of(folder)
    for title in ("Preferences", "Calibration", "Score over length", "Margins"):
        assert f">{title}</h" in page
    assert ("By gap" in page) == scored
    assert page.count("<svg") == 2 + (4 if scored else 3)
    assert "&lt;zh&gt;" in page
    assert "<zh>" not in page


def test_of_dpo_they_are_of_rewards_and_one_pair_is_enough() -> None:
    def titles(found: dict[str, Any]) -> list[str]:
        section = preference_section({"preference": found})
        assert section is not None
        assert section["what"] == "reward"
        return [title for title, _ in section["pictures"]]

    gap = "By gap of the data's scores"
    assert titles(tables()) == [gap, "Calibration", "Reward over length", "Margins"]
    # Of one length there is nothing to draw.
    assert titles(tables(1, sources=1)) == [gap, "Calibration", "Margins"]
    assert preference_section({"heldout_loss": 1.0}) is None


def test_warnings_are_on_the_page_and_not_too_many(log_run: LogRun) -> None:
    rows = [
        {"event": "warning", "step": at, "tokens": 512 * at, "code": "both-fall", "text": f"<{at}>"}
        for at in range(1, MOST_WARNINGS + 6)
    ]
    page = page_of(log_run(steps=50, total=50, more=rows))
    assert page.count('class="warning"') == MOST_WARNINGS
    assert "5 earlier ones are in metrics.jsonl" in page
    assert "&lt;45&gt;" in page
    assert "&lt;5&gt;" not in page
    assert "Warnings" not in page_of(log_run(name="calm"))


def test_log_probabilities_of_chosen_and_rejected_answers_share_a_panel() -> None:
    history = History(DPO_METRICS)
    for event, metrics in (("step", DPO_METRICS.of_steps), ("eval", DPO_METRICS.of_evaluations)):
        row = {metric.name: 1.0 for metric in metrics}
        history.add_metrics({"event": event, "step": 1, "tokens": 1, **row})
    shared = [[metric.name for metric in panel.metrics] for panel in metric_panels(history)]
    names = ("chosen_log_prob", "rejected_log_prob")
    assert [*names, *(f"heldout_{name}" for name in names)] in shared


def test_tables_of_facts_have_the_accuracy_alone(
    log_run: LogRun, capsys: pytest.CaptureFixture[str]
) -> None:
    from bc2.commands.registry import app

    log_run()
    found = tables()
    artifact = registered({"preference": found, "heldout_accuracy": 0.5})
    show_artifact(artifact, Output.of(json=False), made=True)
    shown = CliRunner().invoke(app, ["show", "checkpoint/made"]).stdout
    for text in (capsys.readouterr().out, shown):
        assert accuracy_text(found) in text
        assert "by_gap" not in text
    everything = CliRunner().invoke(app, ["show", "checkpoint/made", "--json"]).stdout
    assert "by_gap" in everything
