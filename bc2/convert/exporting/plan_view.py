"""What ``--dry-run`` shows: the files that a conversion will write, and who can read them."""

from __future__ import annotations

from typing import Any

from bc2.console import table
from bc2.convert.exporting.export_model import total_size
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan
from bc2.errors import Bc2Error


def plan_json(source: SourceModel, plan: ExportPlan, hindrance: Bc2Error | None) -> dict[str, Any]:
    """A plan as JSON data.

    Args:
        hindrance: why the proof that was asked for cannot be had here.
    """
    return {
        "checkpoint": source.artifact.ref,
        "format": plan.format,
        "dtype": plan.dtype,
        "files": _files(source, plan),
        "bytes": total_size(plan, source),
        "readers": [{"name": one.name, "reads": one.reads, "why": one.why} for one in plan.readers],
        "notes": list(plan.notes),
        "proof": None if hindrance is None else str(hindrance),
    }


def plan_table(source: SourceModel, plan: ExportPlan, hindrance: Bc2Error | None) -> Any:
    """The same for people."""
    from rich.console import Group

    files = [*_files(source, plan).items(), ("in all", total_size(plan, source))]
    readers = [(one.name, "yes" if one.reads else "no", one.why) for one in plan.readers]
    parts: list[Any] = [
        f"{source.artifact.title} as {plan.format}, {plan.dtype}",
        "",
        table(("file", "bytes"), files),
        "",
        table(("read by", "", ""), readers),
    ]
    if plan.notes:
        parts += ["", *plan.notes]
    if hindrance is not None:
        parts += ["", str(hindrance)]
    return Group(*parts)


def _files(source: SourceModel, plan: ExportPlan) -> dict[str, int]:
    """Bytes by name, the largest first; the card and the proof are not known before."""
    copied = {name: source.artifact.entry(name).size for name in plan.copied}
    texts = {name: len(data) for name, data in plan.texts.items()}
    return {**plan.sizes, **copied, **texts}
