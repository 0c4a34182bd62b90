"""A suite as lm-eval's tasks, with rows that are given, and shots and seed as lm-eval sets them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bc2.errors import DataError, UsageError, nearest
from bc2.harness.suites import Suite
from bc2.harness.task_index import suite_manager

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

    from bc2.harness.bound_tasks import Datasets

#: lm-eval's own default of the seed that draws shots.
SEED = 1234


@dataclass(frozen=True)
class LoadedSuite:
    """The tasks of a suite, ready to build prompts."""

    suite: Suite
    tasks: dict[str, Task]
    """By name, in the order of lm-eval."""
    groups: dict[str, Group]
    group_map: dict[str, list[str]]
    """A group's name to the names of its direct members."""


def load_suite(
    suite: Suite,
    datasets: Datasets | None,
    *,
    shots: int | None = None,
    seed: int = SEED,
    only: Sequence[str] | None = None,
) -> LoadedSuite:
    """Build the tasks of a suite.

    Args:
        datasets: rows of a release; None: the hub's, fetched by lm-eval.
        shots: instead of the suite's.
        seed: of the shots that a task draws.
        only: names of tasks to build; None: all.

    Raises:
        UsageError: no such task, one that cannot be evaluated here, or one without a choice of
            shots.
        DataError: rows or shots are missing, or the hub's rows cannot be had.
    """
    manager = copy(suite_manager(suite.task, suite.folder))
    from bc2.harness.bound_tasks import BoundFactory

    manager._factory = BoundFactory(datasets, only)
    found = manager.load(suite.task)
    tasks, groups = found["tasks"], found.get("groups", {})
    for name in only or ():
        if name not in tasks:
            guess = nearest(name, manager.all_tasks)
            raise UsageError(
                f"{suite.title} has no task {name!r}",
                where=suite.task,
                todo=f"did you mean {guess!r}?" if guess else None,
            )
    for task in tasks.values():
        _set_shots(task, suite, shots)
        task.set_fewshot_seed(seed=seed)
    return LoadedSuite(suite, tasks, groups, found.get("group_map", {}))


def _set_shots(task: Task, suite: Suite, asked: int | None) -> None:
    """Set the shots as lm-eval's ``--num_fewshot`` does, and see that there are so many."""
    shots = suite.shots if asked is None else asked
    own = task.get_config("num_fewshot")
    if shots is None:
        shots = own or 0
    elif own == 0 and shots:  # lm-eval goes on without shots and says nothing
        raise UsageError(
            f"{task.task_name} is a task without shots, {shots} were asked for",
            where="--shots",
            todo="leave --shots out for it",
        )
    task.set_config(key="num_fewshot", value=shots)
    sampler = getattr(task, "sampler", None)
    if not shots or sampler is None:
        return
    there = len(sampler.df)
    if task.fewshot_cfg.split == task.config.test_split:
        there -= 1  # the question itself is never a shot
    if there < shots:
        raise DataError(
            f"{task.task_name} has {max(there, 0)} rows for shots, {shots} were asked for",
            where=task.fewshot_cfg.split or task.DATASET_PATH,
            todo="ask for fewer with --shots, or give the whole release",
        )
