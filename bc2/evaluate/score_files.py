"""Scores written to a file that a person names: by its ending JSON, CSV or Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bc2.errors import UsageError
from bc2.evaluate.scores import RESULTS
from bc2.evaluate.summary import Summary
from bc2.evaluate.tables import scores_csv, scores_markdown
from bc2.files import replace_durably
from bc2.options import output_file
from bc2.registry import Artifact

KINDS = (".json", ".csv", ".md")

#: Keys of lm-eval's results that hold something of each task.
_BY_TASK = (
    "results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better",
    "n-samples", "task_hashes",
)  # fmt: skip


def check_out(path: Path | None, kinds: Sequence[str] = KINDS) -> Path | None:
    """Find out whether a file can be written before anything is evaluated.

    Raises:
        UsageError: it has another ending, or cannot be written: see `output_file`.
    """
    if path is None:
        return None
    if path.suffix not in kinds:
        raise UsageError(
            f"--out ends in {path.suffix or 'nothing'}",
            where=str(path),
            todo=f"end it in {', '.join(kinds)}: JSON is in lm-eval's format",
        )
    return output_file(path, "--out")


def write_out(path: Path, found: Sequence[Artifact], summaries: Sequence[Summary]) -> None:
    """Write the scores of several suites to one file."""
    if path.suffix == ".csv":
        text = scores_csv(summaries)
    elif path.suffix == ".md":
        text = scores_markdown(summaries)
    else:
        text = json.dumps(lm_eval_results(found), indent=2, ensure_ascii=False)
    replace_durably(path, text.encode())


def write_text_out(path: Path, result: Mapping[str, Any]) -> None:
    """Write the likelihoods of texts to a file."""
    replace_durably(path, json.dumps(result, indent=2, ensure_ascii=False).encode())


def lm_eval_results(found: Sequence[Artifact]) -> dict[str, Any]:
    """The results of several suites as one file of lm-eval's."""
    merged: dict[str, Any] = {}
    for artifact in found:
        results = json.loads(artifact.file(RESULTS).read_bytes())
        for key in _BY_TASK:
            if key in results:
                merged.setdefault(key, {}).update(results.pop(key))
        merged = {**results, **merged}
        merged["date"] = datetime.fromisoformat(artifact.created).timestamp()
    return merged
