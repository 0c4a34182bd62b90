"""lm-eval's tasks by name, from a cached index: the same tasks, whatever the cache is like."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from bc2.errors import RecipeError, UsageError
from bc2.harness import task_index
from bc2.harness.suites import SUITES
from bc2.harness.task_index import (
    OWN_TASKS,
    data_of,
    has_task,
    manager_of,
    suite_manager,
    task_manager,
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A few tasks in the place of lm-eval's 15,000, and a cache folder of their own."""
    folder = tmp_path / "tasks"
    (folder / "quiz").mkdir(parents=True)
    (folder / "quiz" / "_template_yaml").write_text("dataset_path: some/quiz\n")
    for subject in ("law", "art"):
        (folder / "quiz" / f"{subject}.yaml").write_text(
            f"include: _template_yaml\ntask: quiz_{subject}\ntag: quiz_all\n"
        )
    (folder / "quiz" / "group.yaml").write_text("group: quiz\ntask: [quiz_all]\n")
    (folder / "broken.yaml").write_text("no task here\n")
    monkeypatch.setattr(lm_eval.tasks, "__file__", str(folder / "__init__.py"))
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    task_manager.cache_clear()
    yield folder
    task_manager.cache_clear()


def fresh() -> TaskManager:
    task_manager.cache_clear()
    return task_manager()


@pytest.fixture
def no_build(monkeypatch):
    """Use of lm-eval's own scan fails."""

    def build(paths, **_):
        assert not list(paths), "the index was built again"
        return {}

    return lambda: monkeypatch.setattr(TaskIndex, "build", staticmethod(build))


def cache_file(root: Path) -> Path:
    (found,) = (root.parent / "cache" / "lm-eval").glob("tasks-*.json")
    return found


def facts(manager: TaskManager) -> list[object]:
    entries = {
        name: (one.kind, one.yaml_path, one.tags) for name, one in manager.task_index.items()
    }
    lists = [manager.all_tasks, manager.all_subtasks, manager.all_groups, manager.all_tags]
    return [entries, *lists]


def test_a_cached_index_is_lm_evals(root, no_build):
    own = facts(TaskManager(include_path=str(root), include_defaults=False))
    assert own[1] == ["quiz", "quiz_all", "quiz_art", "quiz_law"]
    assert facts(fresh()) == own
    no_build()
    assert facts(fresh()) == own


@pytest.mark.slow
def test_the_whole_index_is_lm_evals():
    assert facts(fresh()) == facts(TaskManager())


def test_an_edited_added_or_removed_task_is_seen(root):
    fresh()
    law = root / "quiz" / "law.yaml"
    law.write_text(law.read_text().replace("quiz_law", "quiz_laws"))
    assert "quiz_laws" in fresh().all_tasks
    (root / "new.yaml").write_text("task: fresh\n")
    assert "fresh" in fresh().all_tasks
    (root / "new.yaml").unlink()
    assert "fresh" not in fresh().all_tasks


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"files": 1}',
        b'{"tasks": {}}',
        "cut",
        "kind",
        "fields",
    ],
)
def test_a_damaged_index_is_built_again(root, no_build, damage):
    right = facts(fresh())
    path = cache_file(root)
    kept = json.loads(path.read_bytes())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage in ("kind", "fields"):
        kept["tasks"]["quiz"] = ["TASKS", None, []] if damage == "kind" else ["TASK", None]
        path.write_text(json.dumps(kept))
    else:
        path.write_bytes(damage)
    assert facts(fresh()) == right
    no_build()  # and it was kept again
    assert facts(fresh()) == right


def test_a_cache_that_cannot_be_written_is_done_without(root, monkeypatch):
    right = facts(fresh())
    (root.parent / "file").write_text("")
    monkeypatch.setenv("BC2_CACHE", str(root.parent / "file" / "cache"))
    assert facts(fresh()) == right

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(task_index, "cache_folder", homeless)  # nor a place for it
    assert facts(fresh()) == right


def test_another_version_of_lm_eval_has_another_file(root, monkeypatch):
    fresh()
    monkeypatch.setattr(lm_eval, "__version__", "0.4.99")
    fresh()
    assert len(list((root.parent / "cache" / "lm-eval").iterdir())) == 2


def _build(start, answers) -> None:
    start.wait()
    answers.put(len(fresh().all_tasks))


def test_processes_that_start_at_once_all_have_it(root):
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_build, args=(start, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [4] * 4
    for process in processes:
        process.join()
    assert [path.suffix for path in cache_file(root).parent.iterdir()] == [".json"]
    assert json.loads(cache_file(root).read_bytes())["tasks"].keys() == {
        "quiz", "quiz_all", "quiz_art", "quiz_law",
    }  # fmt: skip


def test_unknown_names_have_a_nearest(root):
    with pytest.raises(UsageError, match=r"no task 'quiz_lav' \(--bench\).*'quiz_law'"):
        manager_of("quiz_lav", where="--bench")
    with pytest.raises(RecipeError, match="see `lm-eval ls tasks`"):
        manager_of("zzzzzz", where="here", error=RecipeError)


def test_a_folders_tasks_come_first_and_alone_if_they_have_the_name(root, tmp_path, no_build):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "mine.yaml").write_text("task: mine\n")
    (folder / "law.yaml").write_text("task: quiz_law\n")
    no_build_of = manager_of("mine", str(folder), where="here")
    assert no_build_of.all_tasks == ["mine", "quiz_law"]
    both = manager_of("quiz_art", str(folder), where="here")
    assert both.all_tasks == ["mine", "quiz", "quiz_all", "quiz_art", "quiz_law"]
    assert both.task_index["quiz_law"].yaml_path == folder / "law.yaml"


def test_the_data_of_a_task_group_or_tag(root):
    assert {data_of(name) for name in ("quiz", "quiz_all", "quiz_law")} == {"some/quiz"}
    assert data_of("bc2_gaokao") == "bc2/gaokao"
    assert data_of("nothing") is None
    assert has_task("bc2_humaneval")
    assert not has_task("nothing")


def test_own_tasks_replace_none_of_lm_evals():
    own = TaskManager(include_path=str(OWN_TASKS), include_defaults=False).all_tasks
    assert own
    assert not set(own) & set(task_manager().all_tasks)
    assert all(name.startswith("bc2_") for name in own)


def test_nothing_is_printed(root, capfd):
    fresh()
    assert capfd.readouterr() == ("", "")
    assert task_index.cache_folder() == Path(os.environ["BC2_CACHE"])


def test_the_suites_tasks_are_found_without_an_index(monkeypatch):
    def refuse():
        raise AssertionError("all of lm-eval's files are read")

    monkeypatch.setattr("bc2.harness.task_index._default_index", refuse)
    for suite in SUITES.values():
        assert suite.task in suite_manager(suite.task, suite.folder).all_tasks


def test_a_task_that_lm_eval_has_moved_is_found_in_its_index(monkeypatch):
    found = object()
    monkeypatch.setattr("bc2.harness.task_index.manager_of", lambda *_, **__: found)
    assert suite_manager("gsm8k", "cmmlu") is found
