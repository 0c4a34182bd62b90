"""Figures as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from bc2.report.picture_files import save_figure


def drawn() -> Figure:
    figure = Figure(layout="constrained")
    figure.subplots().plot([1, 2, 3], label="line")
    return figure


def test_a_figure_is_written_in_both_forms_with_the_same_bytes(tmp_path: Path) -> None:
    made = save_figure(drawn(), tmp_path / "a.b")
    assert made == [tmp_path / "a.b.svg", tmp_path / "a.b.png"]
    assert b"<svg" in made[0].read_bytes()
    assert made[1].read_bytes().startswith(b"\x89PNG")
    for one, other in zip(made, save_figure(drawn(), tmp_path / "again"), strict=True):
        assert one.read_bytes() == other.read_bytes()
