"""A run's page: one HTML file that contains everything and loads nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import bc2
from bc2.files import replace_durably
from bc2.registry import Artifact, Registry
from bc2.registry.lineage import Lineage, trace
from bc2.report.curves import draw_run, inline_svg, run_figure
from bc2.report.history import History
from bc2.report.number_format import NOTHING, amount, duration, figure, moment, percent
from bc2.report.preferences import preference_section
from bc2.report.status import Status
from bc2.train.logs.log_rows import LogRow
from bc2.train.logs.runs import Attempt, RunFolder, State, latest_attempts, state_at_end
from bc2.train.metric import Metric, Metrics
from bc2.train.speed.mfu import IMPOSSIBLE, Floats, impossible

RUN_PAGE = "report.html"
#: Rows of one prompt's samples, of bad steps and of warnings that a page shows at most.
MOST_SAMPLES, MOST_BAD, MOST_WARNINGS = 40, 200, 40


class SummaryTile(NamedTuple):
    """One figure of the summary."""

    label: str
    value: str
    more: str = ""


class Node(NamedTuple):
    """One line of the lineage."""

    depth: int
    title: str
    ref: str
    again: bool
    """Whether its parents are shown further up already."""


@dataclass(frozen=True)
class WrittenReport:
    """The files that `write_report` wrote."""

    page: Path
    curves: tuple[Path, ...]
    state: State
    metrics: dict[str, Any]
    """As `Status.as_json` has them."""


def write_report(run: RunFolder, registry: Registry, out: Path | None = None) -> WrittenReport:
    """Write a run's page and curves; an older page is replaced atomically.

    Args:
        out: the page's path, and no curves beside it. None: report.html in the run's folder,
            with loss.svg and loss.png beside it.
    """
    status = Status(run, registry)
    history = History(status.metrics)
    status.update(on_metrics=history.add_metrics, on_timing=history.add_timing)
    page = render_page(run, registry, history, status).encode()
    target = out or run.path / RUN_PAGE
    replace_durably(target, page)
    curves = () if out else tuple(draw_run(run, history))
    return WrittenReport(target, curves, status.state, status.as_json()["metrics"])


def render_page(run: RunFolder, registry: Registry, history: History, status: Status) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    # Text that a model wrote is escaped, whatever it looks like.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files(__package__) / "page.html.j2").read_text("utf-8"))
    times = history.times()
    artifact = _checkpoint(run, registry)
    recipe = run.recipe()
    return template.render(
        title=run.path.name,
        description=recipe.get("description", ""),
        state=status.state,
        written=f"{moment(time.time())} UTC",
        version=bc2.__version__,
        tiles=list(_tiles(status, times)),
        curves=_curves(run, history) if len(history.steps) else {},
        warnings=history.warnings[-MOST_WARNINGS:],
        more_warnings=max(0, len(history.warnings) - MOST_WARNINGS),
        preferences=preference_section(artifact.manifest.facts) if artifact else None,
        parts=_parts(times),
        prompts=_samples(history.samples),
        bad=_bad(history)[-MOST_BAD:],
        more_bad=max(0, len(history.met) - MOST_BAD),
        attempts=list(_attempts(history.attempts, alive=status.alive)),
        settings=_settings(recipe),
        opened=[name for name in recipe if _is_of_training(name, recipe[name])],
        lineage=list(_lineage(run, registry, artifact)),
        environment=_environment(artifact),
    )


def _tiles(status: Status, times: Mapping[str, Floats]) -> Iterator[SummaryTile]:
    now = status.as_json()
    last = "final" if now["state"] == "finished" else "last"
    yield from _measured(status.metrics, now["metrics"], last)
    yield SummaryTile("tokens", amount(now["tokens"]), _of(now["tokens_total"]))
    yield SummaryTile("steps", f"{now['step']:,}", _of(now["steps"]))
    yield SummaryTile("tokens/s", amount(_median(times["tokens_per_s"])), "median of steps")
    if (computed := _computed(times["step_tokens"])) is not None:
        yield computed
    mfu = _median(times["mfu"])
    why = f"; {IMPOSSIBLE}" if impossible(mfu) else ""
    yield SummaryTile("MFU", percent(mfu, 1), f"median of steps{why}")
    yield SummaryTile("time", duration(now["seconds"]), "over all attempts")
    if now["seconds_left"] is not None:
        yield SummaryTile("time left", duration(now["seconds_left"]), "at the recent pace")
    yield SummaryTile("restarts", f"{now['restarts']:,}")
    yield SummaryTile("bad steps", f"{now['bad_steps']:,}", "skipped or rolled back")


def _measured(
    metrics: Metrics, values: Mapping[str, dict[str, Any]], last: str
) -> Iterator[SummaryTile]:
    """A tile for each metric that is shown and has a value; the headlines first, and anyway.

    Args:
        last: whether the last value of the run is its ``final`` one.
    """
    shown = [metric for metric in metrics.all if metric.shown != "log"]
    evaluated = [metric for metric in shown if values[metric.name]["value"] is not None]
    for metric in sorted(metrics.of_evaluations, key=lambda metric: not metric.headline):
        if metric in evaluated:
            label = f"{last} {metric.label}" if metric.headline else metric.label
            yield _measured_tile(metric, label, values[metric.name])
    head = metrics.headline
    yield _measured_tile(head, f"{last} training {head.label}", values[head.name])
    for metric in evaluated:
        if metric.of == "step" and metric != head:
            yield _measured_tile(metric, f"{last} {metric.label}", values[metric.name])


def _measured_tile(metric: Metric, label: str, of: Mapping[str, Any]) -> SummaryTile:
    best = [f"best {figure(of['best'])}"] if of.get("best") is not None else []
    # "bits per byte" says it already.
    unit = [metric.unit] if metric.unit and metric.unit not in metric.label else []
    return SummaryTile(label, figure(of["value"]), ", ".join(best + unit))


def _computed(tokens: Floats) -> SummaryTile | None:
    """What a step computed, where steps differ in it: then it is not what the settings say."""
    known = tokens[np.isfinite(tokens)]
    if not len(known) or known.min() == known.max():
        return None
    span = f"{amount(known.min())} to {amount(known.max())}"
    return SummaryTile("tokens a step", amount(float(np.median(known))), f"computed; {span}")


def _of(total: int | None) -> str:
    return f"of {amount(total)}" if total else ""


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if len(values) else None


def _curves(run: RunFolder, history: History) -> dict[str, Any]:
    from markupsafe import Markup

    facts = run.facts
    clip_norm = facts.clip_norm if facts else None
    tokens = inline_svg(run_figure(history, "tokens", clip_norm=clip_norm), "tokens")
    steps = inline_svg(run_figure(history, "step", clip_norm=clip_norm), "steps")
    # The only unescaped part: bc2 makes it, from numbers alone.
    return {"tokens": Markup(tokens), "steps": Markup(steps)}


def _parts(times: Mapping[str, Floats]) -> list[tuple[str, float, str]]:
    """Name, mean seconds a step, share of all parts."""
    means = {
        name.removeprefix("parts."): float(np.nanmean(values))
        for name, values in times.items()
        if name.startswith("parts.") and np.isfinite(values).any()
    }
    whole = sum(means.values())
    return [(name, mean, percent(mean / whole, 1)) for name, mean in means.items()]


def _samples(rows: Sequence[LogRow]) -> list[tuple[str, list[LogRow]]]:
    """Samples by prompt; of too many, some evenly spread from the first to the last."""
    prompts: dict[str, list[LogRow]] = {}
    for row in rows:
        prompts.setdefault(row["prompt"], []).append(row)
    return [(prompt, _spread(found, MOST_SAMPLES)) for prompt, found in prompts.items()]


def _bad(history: History) -> list[dict[str, Any]]:
    """Each bad step with its samples and what was done about it."""
    return [
        {
            "step": row["step"],
            "samples": row["samples"],
            "sources": row.get("sources", {}),
            "reason": row["reason"],
            "done": _done(row, history.bad),
        }
        for row in history.met.values()
    ]


def _done(bad: LogRow, answers: Sequence[LogRow]) -> str:
    first, last = bad["samples"]
    for row in answers:
        begin, end = row["samples"]
        if begin <= first and last <= end:
            if row["event"] == "rollback":
                return f"rolled back to step {row['step']}, samples {begin} to {end} left out"
            return "skipped" if row["event"] == "skip" else "ended the run"
    return "not in the run's history yet"


def _spread(rows: list[LogRow], most: int) -> list[LogRow]:
    if len(rows) <= most:
        return rows
    return [rows[at] for at in np.linspace(0, len(rows) - 1, most).astype(int)]


def _attempts(attempts: Sequence[Attempt], *, alive: bool) -> Iterator[dict[str, Any]]:
    restarted = len(attempts) - len(latest_attempts(attempts))
    for number, attempt in enumerate(attempts, 1):
        here = alive and number == len(attempts)
        yield {
            "number": number,
            "event": "began anew" if number - 1 == restarted > 0 else attempt.event,
            "first": attempt.step,
            "last": attempt.last_step,
            "began": moment(attempt.began),
            "took": duration(attempt.seconds),
            "end": State("running") if here else state_at_end(attempt.end),
            "facts": ", ".join(f"{name} {_value(value)}" for name, value in attempt.facts.items()),
        }


def _settings(recipe: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Every setting by section, nested ones by their dotted name."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            sections[name] = list(_flat(value))
    return sections


def _is_of_training(name: str, section: Any) -> bool:
    """Whether a section is of the run itself and not of what it was made from."""
    return name == "model" or (isinstance(section, dict) and "optimizer" in section)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{number}")
    else:
        yield name, _value(value)


def _value(value: Any) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _checkpoint(run: RunFolder, registry: Registry) -> Artifact | None:
    """The run's finished checkpoint, else its furthest."""
    mine = registry.list("checkpoint", key=run.key)
    ordered = sorted(
        mine, key=lambda one: (one.finished, one.position.tokens if one.position else 0)
    )
    return ordered[-1] if ordered else None


def _lineage(run: RunFolder, registry: Registry, artifact: Artifact | None) -> Iterator[Node]:
    drawn: set[str] = set()
    if artifact is not None:
        yield from _walk(trace(registry, artifact), artifact.digest, 0, drawn)
        return
    facts = run.facts
    for digest in facts.parents if facts else ():
        for parent in registry.with_prefix(digest):
            yield from _walk(trace(registry, parent), digest, 0, drawn)


def _walk(lineage: Lineage, digest: str, depth: int, drawn: set[str]) -> Iterator[Node]:
    found = lineage.nodes[digest]
    title = found.title if found else "not registered here"
    above = lineage.steps.get(digest, [])
    yield Node(depth, title, digest[:16], digest in drawn and bool(above))
    if digest not in drawn:
        drawn.add(digest)
        for parent in above:
            yield from _walk(lineage, parent, depth + 1, drawn)


def _environment(artifact: Artifact | None) -> list[tuple[str, str]]:
    """Code, Python, platform and packages, as the checkpoint's manifest has them."""
    if artifact is None:
        return []
    manifest = artifact.manifest
    return list(_flat({"code": manifest.code, **manifest.environment}))
