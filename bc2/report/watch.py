"""Watching a run: a live view on a terminal, a line an interval elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bc2.console import note
from bc2.report.number_format import NOTHING, amount, decimals, duration, figure, mfu, percent, rate
from bc2.report.status import Status
from bc2.train.metric import Metric, Metrics

#: Figures in one row of the table; more go on in the next.
_IN_A_ROW = 4

BLOCKS = "▁▂▃▄▅▆▇█"


def watch(status: Status, *, interval_s: float | None = None) -> None:
    """Follow a run until no process trains it, and show it on stderr meanwhile.

    Args:
        status: of the run; up to date when this returns.
        interval_s: seconds between two updates; None: 1 on a terminal, 10 elsewhere.
    """
    status.update()
    if not status.alive:
        return
    if sys.stderr.isatty():
        _live(status, interval_s or 1.0)
    else:
        _lines(status, interval_s or 10.0)


def _live(status: Status, interval_s: float) -> None:
    from rich.console import Console
    from rich.live import Live

    # It is removed at the end: the last state is the result, on stdout.
    with Live(
        status_view(status), console=Console(stderr=True), auto_refresh=False, transient=True
    ) as on:
        while status.alive:
            time.sleep(interval_s)
            status.update()
            on.update(status_view(status), refresh=True)


def _lines(status: Status, interval_s: float) -> None:
    shown = time.monotonic()
    note(status_line(status))
    while status.alive:
        # At least once a second, so that the end is seen soon whatever the interval.
        time.sleep(min(interval_s, 1.0))
        status.update()
        if status.alive and time.monotonic() - shown >= interval_s:
            shown = time.monotonic()
            note(status_line(status))


def status_line(status: Status) -> str:
    """One line for a log."""
    now = status.as_json()
    of = f"/{now['steps']:,}" if now["steps"] else ""
    parts = [
        f"{now['run']}: {status.state}",
        f"step {now['step']:,}{of}",
        *_headlines(status.metrics, now["metrics"]),
        f"|g| {decimals(now['grad_norm'], 2)}",
        *_norms(now["other_models"]),
        f"lr {rate(now['learning_rate'])}",
        f"{amount(now['tokens_per_s'])} tok/s",
        f"MFU {mfu(now['mfu'])}",
    ]
    if now["seconds_left"] is not None:
        parts.append(f"{duration(now['seconds_left'])} left")
    parts += [f"{now['restarts']} restarts"] if now["restarts"] else []
    parts += [f"{now['bad_steps']} bad steps"] if now["bad_steps"] else []
    parts += [row["code"] for row in now["warnings"]]
    return "  ".join(parts)


def _headlines(metrics: Metrics, measured: dict[str, Any]) -> list[str]:
    heads = (metrics.headline, metrics.evaluation_headline)
    return [f"{m.brief} {figure(measured[m.name]['value'])}" for m in heads if m is not None]


def _norms(models: dict[str, dict[str, Any]]) -> list[str]:
    norms = {role: model["grad_norm"] for role, model in models.items()}
    return [f"{role} |g| {decimals(n, 2)}" for role, n in norms.items() if n is not None]


def status_rows(status: Status) -> list[tuple[str, str]]:
    """The state as labels and values."""
    now = status.as_json()
    return [
        ("run", now["run"]),
        ("state", str(status.state)),
        ("step", _of(now["step"], now["steps"])),
        ("tokens", _of_tokens(now)),
        *_of_steps(status, now["metrics"]),
        *_of_evaluations(status.metrics, now["metrics"]),
        ("gradient norm", _norm(now, now["clip_norm"])),
        ("learning rate", rate(now["learning_rate"])),
        *_of_other_models(now["other_models"]),
        ("tokens/s", f"{amount(now['tokens_per_s'])}  MFU {mfu(now['mfu'], 1)}"),
        ("waiting", _waiting(now)),
        ("time", _time(now)),
        ("restarts", f"{now['restarts']:,}"),
        ("bad steps", _bad(now)),
        *(("warning", f"{row['code']}: {row['text']}") for row in now["warnings"]),
    ]


def _of(value: int, total: int | None) -> str:
    return f"{value:,} of {total:,}  ({percent(value / total)})" if total else f"{value:,}"


def _of_tokens(now: dict[str, Any]) -> str:
    total = now["tokens_total"]
    return amount(now["tokens"]) + (f" of {amount(total)}" if total else "")


def _of_steps(status: Status, measured: dict[str, Any]) -> list[tuple[str, str]]:
    """The headline over the run, and what else is shown of steps."""
    head = status.metrics.headline
    bars = sparkline(status.headline)
    others = [m for m in status.metrics.of_steps if m.shown != "log" and m != head]
    found = [_named(metric, measured) for metric in others]
    line = f"{figure(measured[head.name]['value'])}  {bars}".rstrip()
    return [(head.label, line), *_rows("other metrics", found)]


def _of_evaluations(metrics: Metrics, measured: dict[str, Any]) -> list[tuple[str, str]]:
    """The headline of evaluations, with its best value, and what else is shown of them."""
    head = metrics.evaluation_headline
    others = [m for m in metrics.of_evaluations if m.shown != "log" and m != head]
    label = head.label if head else "evaluations"
    if all(measured[metric.name]["value"] is None for metric in metrics.of_evaluations):
        return [(label, NOTHING)] if metrics.of_evaluations else []
    found = [_named(metric, measured) for metric in others]
    return _rows(label, [_with_best(head, measured), *found] if head else found)


def _with_best(metric: Metric, measured: dict[str, Any]) -> str:
    value, best = (measured[metric.name][name] for name in ("value", "best"))
    return figure(value) + (f"  (best {figure(best)})" if metric.better else "")


def _named(metric: Metric, measured: dict[str, Any]) -> str:
    return f"{figure(measured[metric.name]['value'])} {metric.brief}"


def _rows(label: str, found: Sequence[str]) -> list[tuple[str, str]]:
    """Figures, some in a row; only the first row has the label."""
    firsts = range(0, len(found), _IN_A_ROW)
    return [("" if at else label, "  ".join(found[at : at + _IN_A_ROW])) for at in firsts]


def _of_other_models(models: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """What the log has of them: by role, the gradient's norm and the learning rate."""
    rows = []
    for role, model in models.items():
        if model["grad_norm"] is not None:
            rows.append((f"{role} gradient norm", _norm(model, None)))
        if model["learning_rate"] is not None:
            rows.append((f"{role} learning rate", rate(model["learning_rate"])))
    return rows


def _norm(model: dict[str, Any], clip_norm: float | None) -> str:
    if model["grad_norm"] is None:
        return NOTHING
    norm, share = decimals(model["grad_norm"], 3), model["clipped_share"]
    if share is None:
        return norm
    to = f" to {clip_norm:g}" if clip_norm else ""
    return f"{norm}  ({percent(share)} of recent steps clipped{to})"


def _waiting(now: dict[str, Any]) -> str:
    data, save = percent(now["data_share"], 1), percent(now["save_share"], 1)
    return f"{data} for data, {save} for saving"


def _time(now: dict[str, Any]) -> str:
    left = now["seconds_left"]
    return duration(now["seconds"]) + (f", {duration(left)} left" if left is not None else "")


def _bad(now: dict[str, Any]) -> str:
    last = now["last_bad"]
    if last is None:
        return "0"
    first, end = last["samples"]
    at = f"the last: step {last['step']}, samples {first} to {end}"
    return f"{now['bad_steps']:,}  ({at}: {last['reason']})"


def status_view(status: Status) -> Any:
    """The state as a rich renderable."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, show_header=False, pad_edge=False)
    drawn.add_column(style="dim", no_wrap=True)
    drawn.add_column(overflow="fold")
    for label, value in status_rows(status):
        drawn.add_row(label, Text(value))
    return drawn


def sparkline(values: Any, width: int = 40) -> str:
    """Means of equal stretches of a run as bars, the lowest to the highest."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if len(finite) < 2:
        return ""
    edges = np.linspace(0, len(finite), min(width, len(finite)) + 1).astype(np.intp)
    means = np.add.reduceat(finite, edges[:-1]) / np.diff(edges)
    low, high = means.min(), means.max()
    levels = (means - low) / (high - low) if high > low else np.zeros_like(means)
    return "".join(BLOCKS[round(level * (len(BLOCKS) - 1))] for level in levels)
