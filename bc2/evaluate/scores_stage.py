"""A checkpoint in a suite -> scores: a stage without a recipe, whose parent is the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bc2.evaluate.eval_settings import EvalSettings
from bc2.pipeline.stage import Input, Stage, Task

if TYPE_CHECKING:
    from bc2.evaluate.text_run import TextEvalSettings

#: Raised when the same checkpoint, rows and settings would get other scores.
VERSION = 1


def _make(task: Task[EvalSettings | TextEvalSettings]) -> Mapping[str, Any]:
    from bc2.evaluate.scores import write_scores
    from bc2.evaluate.suite_run import SuiteRun
    from bc2.evaluate.text_run import TextRun

    run = task.options
    if isinstance(run, TextRun):
        return run.write(task.work, task.out)
    assert isinstance(run, SuiteRun)
    journal = run.answer_all(task.work)
    run.check_window()
    return write_scores(run, journal, task.work, task.out)


STAGE = Stage(
    kind="scores",
    version=VERSION,
    inputs=(Input("checkpoint", lambda settings: (), many=True),),
    make=_make,
)
