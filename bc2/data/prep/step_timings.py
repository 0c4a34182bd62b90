"""How long each step of making a corpus took; it is recorded beside the corpus, never in it.

Seconds are summed over all workers, and over all attempts that finished parts. Settling is measured
as elapsed time, although it may use workers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from bc2.data.prep.funnel import Funnel, total
from bc2.data.prep.pipeline import StageResults
from bc2.data.prep.segment import PartFacts
from bc2.data.prep.write_corpus import WrittenSource

#: The file, in the work directory of a finished run.
TIMINGS = "timings.json"


def step_timings(
    funnel: Funnel,
    read: Sequence[Mapping[str, Any]],
    results: StageResults,
    written: Sequence[WrittenSource],
) -> list[dict[str, Any]]:
    """A row for each step, in order.

    Returns:
        ``{"step", "bytes", "seconds", "settling"}``: UTF-8 bytes of text before the step (None for
        ``parts``), its seconds, and how many of these the decision over the whole corpus took
        (keys and settling). Steps are ``reading``, the stages by name, ``parts`` (reading,
        counting and writing parts between stages) and ``writing``.
    """
    settling, apply = _by_stage(results)
    rows = [_row("reading", funnel.read.bytes, sum(u.get("seconds", 0.0) for u in read))]
    for stage in funnel.stages:
        name, size = stage.name, total(stage.before).bytes
        rows.append(_row(name, size, settling[name] + apply[name], settling[name]))
    rows.append(_row("parts", None, sum(part["seconds"]["rest"] for part in _timed(results))))
    seconds = sum(made.seconds for made in written)
    return [*rows, _row("writing", funnel.kept.bytes, seconds)]


def _by_stage(results: StageResults) -> tuple[defaultdict[str, float], defaultdict[str, float]]:
    """Seconds of keys and settling, and of applying, by stage."""
    settling, apply = defaultdict(float, results.seconds), defaultdict[str, float](float)
    for part in results.facts:
        for entry in part["stages"]:
            apply[entry["name"]] += entry["seconds"]
    for part in _timed(results):
        for name, seconds in part["seconds"]["keys"].items():
            settling[name] += seconds
    return settling, apply


def _timed(results: StageResults) -> list[PartFacts]:
    """Parts whose seconds are known: older versions did not record them."""
    return [part for part in results.facts if "seconds" in part]


def _row(step: str, size: int | None, seconds: float, settling: float = 0.0) -> dict[str, Any]:
    found = {"seconds": round(seconds, 3), "settling": round(settling, 3)}
    return {"step": step, "bytes": size, **found}
