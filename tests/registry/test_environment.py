from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bc2.registry.environment import _commit, code, environment


def git(root: Path, *args: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(root), *identity, *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("needs git")
    return done.stdout.strip()


def test_the_commit_of_a_checkout_and_of_nothing_else(tmp_path: Path) -> None:
    assert _commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    assert _commit(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert _commit(tmp_path) == f"{commit}-dirty"
    (tmp_path / "inside").mkdir()
    assert _commit(tmp_path / "inside") is None


def test_versions_are_read_without_importing() -> None:
    script = (
        "import sys; from bc2.registry.environment import code, environment;"
        "assert environment()['packages']['torch']; assert code()['bc2'];"
        "assert not {'torch', 'sentencepiece', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert environment()["python"] == sys.version.split()[0]
    assert code()["bc2"]
