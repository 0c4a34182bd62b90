"""What a command that made or found an artifact prints of it."""

from __future__ import annotations

import json
from typing import Any

from bc2.align.pairs.preference_rows import PREFERENCE, accuracy_text
from bc2.console import Output, table
from bc2.registry import Artifact

#: Facts that have tables of their own (`bc2.convert.merging.merge_view`).
_BELOW = ("merged_from", "tensors")


def show_artifact(artifact: Artifact, output: Output, *, made: bool, below: Any = None) -> None:
    """Print one artifact in the form asked for.

    Args:
        made: by this command, and not found.
        below: what people are shown after it.
    """
    result = {
        "ref": artifact.ref,
        "kind": artifact.kind,
        "name": artifact.name,
        "digest": artifact.digest,
        "path": str(artifact.path),
        "made": made,
        "facts": dict(artifact.manifest.facts),
    }
    shown = _table(artifact)
    if below is not None:
        from rich.console import Group

        shown = Group(shown, "", below)
    output.emit(result, table=shown, quiet=[artifact.ref], kept=True)


def _table(artifact: Artifact) -> Any:
    """Ref, title, path and facts; below them how long each step took, if that is recorded."""
    facts = dict(artifact.manifest.facts)
    timings = facts.pop("timings", None)
    rows = [("ref", artifact.ref), ("artifact", artifact.title), ("path", str(artifact.path))]
    rows += [(name, _fact(name, value)) for name, value in facts.items() if name not in _BELOW]
    drawn = table(("", ""), rows)
    if not timings:
        return drawn
    from rich.console import Group

    from bc2.report.description_view import timing_table
    from bc2.report.timings import timings as read_timings

    return Group(drawn, "", timing_table(read_timings(timings)))


def _fact(name: str, value: Any) -> str:
    """A fact on one line; of the tables of pairs only how many are in order."""
    return accuracy_text(value) if name == PREFERENCE else _short(value)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
