"""The curves of a run as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def plot_run(rows: Sequence[Row], folder: Path, title: str) -> list[Path]:
    """Draw loss, gradient norm and learning rate over tokens.

    Args:
        rows: of ``metrics.jsonl``.
        folder: where ``loss.png`` and ``loss.svg`` go.

    Returns:
        The two paths.
    """
    # The object interface: no global backend, nothing of pyplot's state.
    from matplotlib.figure import Figure

    steps = [row for row in rows if row.get("event") == "step"]
    evals = [row for row in rows if row.get("event") == "eval"]
    bad = [row for row in rows if row.get("event") in ("skip", "rollback")]
    figure = Figure(figsize=(9, 7), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])
    figure.suptitle(title)
    _line(top, steps, "ce", "training", color="#9db8d9", width=0.8)
    if len(steps) >= 20:
        _smooth(top, steps)
    _line(top, evals, "heldout_loss", "held-out", color="#d1495b", marker="o", width=1.5)
    for row in bad:
        top.axvline(row["tokens"] / 1e6, color="#edae49", linewidth=1, linestyle=":")
    top.set_ylabel("loss (nats per token)")
    top.legend(frameon=False)
    _line(middle, steps, "grad_norm", "gradient norm", color="#66666e")
    middle.set_ylabel("gradient norm")
    middle.set_yscale("log")
    _line(bottom, steps, "lr", "learning rate", color="#00798c")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("tokens (millions)")
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    paths = [folder / "loss.png", folder / "loss.svg"]
    figure.savefig(paths[0], dpi=130)
    figure.savefig(paths[1])
    return paths


def _line(
    axes: Any, rows: Sequence[Row], key: str, label: str, *, color: str, width: float = 1.0,
    marker: str = "",
) -> None:  # fmt: skip
    points = [(row["tokens"] / 1e6, row[key]) for row in rows if isinstance(row.get(key), float)]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=color, linewidth=width, marker=marker, markersize=4, label=label)


def _smooth(axes: Any, steps: Sequence[Row]) -> None:
    """A running median over about a thirtieth of the run, which spikes do not bend."""
    import statistics

    reach = max(2, len(steps) // 60)
    losses = [row["ce"] for row in steps if isinstance(row["ce"], float)]
    x = [row["tokens"] / 1e6 for row in steps if isinstance(row["ce"], float)]
    y = [statistics.median(losses[max(0, i - reach) : i + reach + 1]) for i in range(len(losses))]
    axes.plot(x, y, color="#2e5c8a", linewidth=1.8, label="training, running median")
