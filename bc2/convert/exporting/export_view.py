"""What is printed of a conversion: what it will write (``--dry-run``), and what it has proven."""

from __future__ import annotations

import json
from typing import Any

from bc2.console import Output, table
from bc2.convert.exporting.export_model import PROOF, total_size
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan
from bc2.convert.proof.shown import shown
from bc2.errors import Bc2Error
from bc2.registry import Artifact


def plan_json(source: SourceModel, plan: ExportPlan, hindrance: Bc2Error | None) -> dict[str, Any]:
    """A plan as JSON data.

    Args:
        hindrance: why the proof that was asked for cannot be had here.
    """
    return {
        "checkpoint": source.artifact.ref,
        "format": plan.format,
        "dtype": plan.numbers,
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
        f"{source.artifact.title} as {plan.format}, {plan.numbers}",
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


def show_export(export: Artifact, output: Output, *, made: bool) -> None:
    """Print an export and its proof in the form asked for.

    Args:
        made: by this command, and not found.
    """
    proof = json.loads(export.file(PROOF).read_bytes())
    facts = export.manifest.facts
    readers = [name for name, reads in facts["readers"].items() if reads]
    result = {
        "ref": export.ref,
        "name": export.name,
        "digest": export.digest,
        "path": str(export.path),
        "made": made,
        "format": facts["format"],
        "dtype": facts["dtype"],
        "params": facts["params"],
        "readers": facts["readers"],
        "proof": proof,
    }
    rows = [
        ("ref", export.ref),
        ("artifact", export.title),
        ("path", str(export.path)),
        ("format", f"{facts['format']}, {facts['dtype']}"),
        ("read by", ", ".join(readers)),
        *shown(proof),
    ]
    output.emit(result, table=table(("", ""), rows), quiet=[export.ref], kept=True)
