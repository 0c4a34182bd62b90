"""The result of a verification: as a file, and as an artifact made from its checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bc2.console import table
from bc2.errors import from_os_error
from bc2.files import make_directory, replace_durably
from bc2.registry import Artifact, Draft, Registry, stage_key
from bc2.registry.environment import code, environment
from bc2.verify.compare import Comparison

#: Raised when the same comparisons would give another certificate.
VERSION = 1

CERTIFICATE = "certificate.json"


@dataclass(frozen=True)
class Certificate:
    """What was compared, on which layouts, to which tolerance, and the differences."""

    about: dict[str, Any]
    """Recipe, shape, run, layout, inputs and machine."""
    comparisons: tuple[Comparison, ...]
    date: str = ""

    @classmethod
    def now(cls, about: dict[str, Any], comparisons: list[Comparison]) -> Certificate:
        return cls(about, tuple(comparisons), datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def holds(self) -> bool:
        """Whether nothing differs."""
        return all(one.same for one in self.comparisons)

    def first_difference(self) -> str | None:
        """The difference of the first comparison that failed; None if none did."""
        failed = (one for one in self.comparisons if one.difference is not None)
        return next((f"{one.what}, on {one.on}: {one.difference}" for one in failed), None)

    def as_json(self) -> dict[str, Any]:
        return {
            "certificate": "resume",
            "version": VERSION,
            "date": self.date,
            "holds": self.holds,
            "first_difference": self.first_difference(),
            **self.about,
            "code": code(),
            "environment": environment(),
            "comparisons": [one.as_json() for one in self.comparisons],
        }

    def as_bytes(self) -> bytes:
        return (json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n").encode()

    def as_table(self) -> Any:
        rows = [
            (one.what, one.on, one.by, _figures(one), "the same" if one.same else "DIFFERS")
            for one in self.comparisons
        ]
        return table(("compared with the straight run", "on", "to", "found", "verdict"), rows)


def _figures(one: Comparison) -> str:
    if one.difference is not None:
        return one.difference
    figures = one.figures
    if one.by == "bits":
        return (
            f"{figures['samples']:,} samples, {figures['rows']:,} rows, {figures['files']} files "
            f"of {figures['bytes'] / 1e6:,.1f} MB: {figures['digest'][:16]}"
        )
    return (
        f"{figures['samples']:,} samples the same; {figures['losses']} losses at most "
        f"{figures['largest_relative']:.1e} apart"
    )


def write_certificate(certificate: Certificate, path: Path) -> None:
    """Put it into a file. Raises: Bc2Error if it cannot be written."""
    try:
        make_directory(path.parent.absolute())
        replace_durably(path, certificate.as_bytes())
    except OSError as error:
        raise from_os_error(error, "writing the certificate") from error


def register_certificate(
    certificate: Certificate, registry: Registry, checkpoint: Artifact
) -> Artifact:
    """Register it as made from a checkpoint.

    An artifact does not change, so the certificate is a separate one, found by lineage; it is
    exported and checked like every artifact. Only a finished checkpoint gets one: an unfinished
    checkpoint with a child could not be removed when the next one is published.
    """
    assert checkpoint.finished
    key = stage_key("certificate", VERSION, {"verify": "resume"}, (checkpoint.digest,))
    draft = Draft(
        kind="certificate",
        name=f"resume-{checkpoint.name}",
        key=key,
        parents=(checkpoint.digest,),
        recipe=checkpoint.manifest.recipe,
        facts={"verify": "resume", "holds": certificate.holds, "date": certificate.date},
    )
    with registry.stage(draft) as staged:
        (staged.path / CERTIFICATE).write_bytes(certificate.as_bytes())
        return staged.publish()
