"""Points -> law: a stage without a recipe, whose parents are the runs that gave the points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bc2.pipeline.stage import Input, Stage, Task
from bc2.scaling.law_config import LawSettings

#: Raised when the same points would give another law.
VERSION = 1


def _make(task: Task[LawSettings]) -> Mapping[str, Any]:
    from bc2.scaling import isoflop_law, law

    if task.settings.form == isoflop_law.NAME:
        return isoflop_law.write(task.settings, task.out)
    return law.write(task.settings, task.out)


STAGE = Stage(
    kind="law",
    version=VERSION,
    inputs=(Input("checkpoint", lambda settings: (), many=True),),
    make=_make,
)
