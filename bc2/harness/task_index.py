"""lm-eval's tasks by name, without reading its 15,000 files each time.

lm-eval parses every YAML file of its own when it is asked for one task, which takes 8 to 10 s. What
it finds (name, kind, file, tags) is kept in bc2's cache folder as JSON, for one version of lm-eval
in one place. The files' sizes and times are compared, so that an edited task is seen; a task's
contents are always read from its file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.cache_folder import cache_folder
from bc2.errors import UsageError, nearest
from bc2.files import canonical_json, replace_durably
from bc2.harness.quiet import quieten

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

#: Raised when the cached file's layout changes.
_LAYOUT = 1

#: Tasks of bc2, for benchmarks that lm-eval has not or has in another form.
OWN_TASKS = Path(__file__).parent / "tasks"


def manager_of(
    name: str,
    folder: str | None = None,
    *,
    where: str,
    error: type[UsageError] = UsageError,
) -> TaskManager:
    """An lm-eval TaskManager that knows a task, group or tag; the folder's come first.

    lm-eval's own tasks are not looked at if the folder has the name.

    Args:
        folder: of YAML files that describe further tasks.
        where: the option or key that gave the name, for the error.

    Raises:
        UsageError: there is no such task. It is of the class `error`.
    """
    known: list[str] = []
    for with_defaults in [False, True] if folder else [True]:
        manager = task_manager(folder, with_defaults)
        if name in manager.all_tasks:
            return manager
        known = manager.all_tasks
    guess = nearest(name, known)
    raise error(
        f"lm-eval has no task {name!r}",
        where=where,
        todo=f"did you mean {guess!r}?" if guess else "see `lm-eval ls tasks`",
    )


def suite_manager(task: str, folder: str | None) -> TaskManager:
    """A TaskManager for a suite's task, of one folder of lm-eval's if the task is there.

    It takes no index of all tasks, which the first command on a machine would wait for.
    """
    if folder is not None:
        manager = _folder_manager(folder)
        if task in manager.all_tasks:
            return manager
    return manager_of(task, str(OWN_TASKS), where="--bench")


@lru_cache
def _folder_manager(folder: str) -> TaskManager:
    quieten()
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    path = Path(lm_eval.tasks.__file__).parent / folder
    return TaskManager(include_path=str(path), include_defaults=False)


def has_task(name: str) -> bool:
    """Whether bc2 or lm-eval has a task, group or tag of this name."""
    return name in task_manager(str(OWN_TASKS)).all_tasks


def data_of(name: str) -> str | None:
    """lm-eval's dataset path of a task, or of the first one in a group or tag."""
    from lm_eval.tasks._yaml_loader import load_yaml

    index = task_manager(str(OWN_TASKS)).task_index
    while True:
        entry = index.get(name)
        if entry is None:  # a task that is written inside of a group
            return None
        settings = load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else {}
        members = settings.get("task") if "group" in settings else sorted(entry.tags)
        if entry.kind.name in ("TASK", "PY_TASK") or not members:
            path = settings.get("dataset_path")
            return str(path) if path else None
        name = _first_of(members)


def _first_of(members: Any) -> str:
    """The first task, group or tag that is named; groups may be written inside of groups."""
    while not isinstance(members, str):
        if isinstance(members, list):
            members = members[0]
        else:
            members = members.get("task") or members.get("group") or ""
    return members


@lru_cache(maxsize=4)
def task_manager(folder: str | None = None, with_defaults: bool = True) -> TaskManager:
    """An lm-eval TaskManager of a folder's tasks, and of lm-eval's own, which they replace."""
    quieten()
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder, include_defaults=False)
    if with_defaults:
        _know(manager, {**_default_index(), **manager.task_index})
    return manager


def _know(manager: TaskManager, index: dict[str, Any]) -> None:
    """Give a manager an index, as its constructor does with the one that it built."""
    from lm_eval.tasks._index import Kind

    def names(*kinds: Kind) -> list[str]:
        return sorted(name for name, entry in index.items() if entry.kind in kinds)

    manager._index = index
    manager._all_tasks = sorted(index)
    manager._all_subtasks = names(Kind.TASK, Kind.PY_TASK)
    manager._all_groups = names(Kind.GROUP)
    manager._all_tags = names(Kind.TAG)


# -- lm-eval's own tasks -------------------------------------------------------------------


def _default_index() -> dict[str, Any]:
    """lm-eval's own index: name to Entry, from the cache if it is of these files."""
    import lm_eval
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    files = _fingerprint(root)
    place = hashlib.sha256(canonical_json([_LAYOUT, lm_eval.__version__, str(root)]).encode())
    path: Path | None = None
    with contextlib.suppress(RuntimeError):  # a user without a home directory
        path = cache_folder() / "lm-eval" / f"tasks-{place.hexdigest()[:16]}.json"
    index = _read(path, files, root) if path else None
    if index is None:
        from lm_eval.tasks._index import TaskIndex

        index = TaskIndex.build([root])
        if path:
            _write(path, files, root, index)
    return index


def _fingerprint(root: Path) -> str:
    """Hex digest of names, sizes and times of all files that may describe tasks."""
    found: list[str] = []
    folders = [str(root)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.name.endswith((".py", ".pyc")):  # included templates have any name
                    stat = entry.stat()
                    found.append(f"{entry.path}\0{stat.st_size}\0{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()


def _read(path: Path, files: str, root: Path) -> dict[str, Any] | None:
    """The index in a cached file; None if there is none, or it is damaged or of other files."""
    from lm_eval.tasks._index import Entry, Kind

    try:
        kept = json.loads(path.read_bytes())
        if kept["files"] != files:
            return None
        return {
            name: Entry(name, Kind[kind], root / file if file else None, tags=set(tags))
            for name, (kind, file, tags) in kept["tasks"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write(path: Path, files: str, root: Path, index: Mapping[str, Any]) -> None:
    """Keep an index. Where the cache cannot be written, the next process builds it again."""
    tasks = {
        name: (
            entry.kind.name,
            str(entry.yaml_path.relative_to(root)) if entry.yaml_path else None,
            sorted(entry.tags),
        )
        for name, entry in index.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(path, canonical_json({"files": files, "tasks": tasks}).encode())
    except OSError:
        pass
