"""The harness's version changes when a task of ours may have changed."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from bc2.harness import versions


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(versions.OWN_TASKS, tmp_path / "tasks")
    monkeypatch.setattr(versions, "OWN_TASKS", tmp_path / "tasks")
    return tmp_path / "tasks"


def fresh() -> str:
    return versions.harness_version.__wrapped__()


def test_it_names_lm_eval_and_our_tasks(tasks: Path) -> None:
    assert fresh() == versions.harness_version()
    assert fresh().startswith(f"lm-eval {version('lm-eval')}, tasks ")


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
