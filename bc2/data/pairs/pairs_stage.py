"""[pairs] -> pairs: comparisons read from their sources, split by prompt, written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bc2.data import versions
from bc2.data.pairs.pairs_config import PairsConfig
from bc2.pipeline.stage import Stage, Task


def _identity(config: PairsConfig, home: Path) -> Mapping[str, Any]:
    """The settings, and the input files with their digests."""
    from bc2.data.inputs import inputs

    found = inputs(config, cache=home / "digests.json")
    return {
        **config.keyed(),
        "inputs": [file._asdict() for file in found],
        **versions.of_malformed(config.malformed),
    }


def _make(task: Task[PairsConfig]) -> Mapping[str, Any]:
    from bc2.data.pairs.make_pairs import make_pairs

    return make_pairs(task.settings, task.out)


STAGE = Stage(
    kind="pairs",
    version=versions.PAIRS,
    section=PairsConfig,
    make=_make,
    identity=_identity,
)
