"""[corpus] -> corpus: sources read, taken through the stages of the funnel, split, written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bc2.data import versions
from bc2.data.corpus_config import CorpusConfig
from bc2.pipeline.stage import Stage, Task
from bc2.recipe import Recipe


def _identity(config: CorpusConfig, home: Path) -> Mapping[str, Any]:
    """The settings, the input files with their digests, and the version of every filter."""
    from bc2.data.inputs import inputs
    from bc2.data.prep.stage_table import build_stages, stage_digests

    filters = build_stages(config)
    return {
        **config.keyed(),
        "inputs": [file._asdict() for file in inputs(config, cache=home / "digests.json")],
        "stages": {each.name: each.version for each in filters},
        "files": stage_digests(filters),
        **versions.of_malformed(config.malformed),
    }


def _check(recipe: Recipe) -> None:
    from bc2.data.prep.stage_table import check_settings

    if recipe.has(CorpusConfig):
        check_settings(recipe.get(CorpusConfig))


def _make(task: Task[CorpusConfig]) -> Mapping[str, Any]:
    """Facts of the corpus, and under ``timings`` how long each filter took."""
    from bc2.console import progress
    from bc2.data.prep import prepare
    from bc2.data.prep.step_timings import TIMINGS

    options: prepare.PrepOptions | None = task.options
    facts = prepare.prepare(task.settings, task.out, work=task.work, options=options, bars=progress)
    return {**facts, "timings": json.loads((task.work / TIMINGS).read_bytes())}


STAGE = Stage(
    kind="corpus",
    version=versions.CORPUS,
    section=CorpusConfig,
    make=_make,
    identity=_identity,
    check=_check,
)
