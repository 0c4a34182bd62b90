"""The harness's version changes when a task of ours may have changed."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from bc2.harness import versions
from bc2.harness.suites import SUITES, Suite


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(versions.OWN_TASKS, tmp_path / "tasks")
    monkeypatch.setattr(versions, "OWN_TASKS", tmp_path / "tasks")
    return tmp_path / "tasks"


OWN = SUITES["medqa"]


def fresh(suite: Suite = OWN) -> str:
    versions._own_digest.cache_clear()
    versions._digest_below.cache_clear()
    return versions.harness_version(suite)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    versions._own_digest.cache_clear()
    versions._digest_below.cache_clear()


def test_it_names_lm_eval_and_its_and_our_tasks(tasks: Path) -> None:
    named = rf"lm-eval {re.escape(version('lm-eval'))}, tasks [0-9a-f]{{16}}"
    assert re.fullmatch(named, fresh())
    assert re.fullmatch(rf"{named}, its files [0-9a-f]{{16}}", fresh(SUITES["gsm8k"]))
    assert fresh() == fresh()


def test_any_change_of_a_task_is_seen(tasks: Path) -> None:
    found = [fresh()]
    path = tasks / "medqa.yaml"
    path.write_bytes(path.read_bytes() + b"\n")
    found.append(fresh())
    path.rename(tasks / "medqa5.yaml")
    found.append(fresh())
    (tasks / "medqa5.yaml").unlink()
    found.append(fresh())
    assert len(set(found)) == 4


def test_what_python_leaves_behind_is_no_change(tasks: Path) -> None:
    before = fresh()
    (tasks / "__pycache__").mkdir(exist_ok=True)
    (tasks / "__pycache__" / "utils.pyc").write_bytes(b"compiled")
    assert fresh() == before


def test_the_programs_of_code_tasks_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fresh()
    changed = tmp_path / "code_tasks.py"
    changed.write_bytes(versions.CODE_TASKS.read_bytes() + b"\n")
    monkeypatch.setattr(versions, "CODE_TASKS", changed)
    assert fresh() != before


@pytest.fixture
def lm_eval_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another lm-eval, with tasks of two folders."""
    for name in ("gsm8k/gsm8k.yaml", "gsm8k/utils.py", "quiz/quiz.yaml"):
        path = tmp_path / "lm_eval" / "tasks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("task: one\n")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "lm_eval")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return tmp_path / "lm_eval" / "tasks"


@pytest.mark.parametrize("name", ["gsm8k/gsm8k.yaml", "gsm8k/utils.py", "quiz/quiz.yaml"])
def test_an_edited_task_of_lm_eval_is_seen(lm_eval_tasks: Path, name: str) -> None:
    """Of its own folder where a suite's task is in one, else of any."""
    suites = SUITES["gsm8k"], Suite("quiz", "Quiz", None, "quiz", None, None), OWN
    before = [fresh(suite) for suite in suites]
    (lm_eval_tasks / name).write_text("task: another\n")
    after = [fresh(suite) for suite in suites]
    changed = [one != other for one, other in zip(before, after, strict=True)]
    assert changed == [name.startswith("gsm8k"), True, False]
