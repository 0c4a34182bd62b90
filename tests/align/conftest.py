"""A small base model and conversations to fine-tune it on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from preference_runs import DPO, REWARD, comparisons
from sft_runs import CHAT, conversations, write_rows

from bc2 import recipe
from bc2.pipeline.session import Session
from bc2.registry import Registry


@pytest.fixture(scope="session")
def base_home(prepared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the model of `SMALL`, trained for four steps."""
    home = tmp_path_factory.mktemp("base") / "home"
    shutil.copytree(prepared_home / "home", home)
    loaded = recipe.load(
        prepared_home / "small.toml",
        ["pretrain.length=4 steps", "pretrain.schedule.warmup=1 steps"],
    )
    Session(Registry.open(home)).obtain("checkpoint", loaded, command=["bc2"])
    return home


@pytest.fixture
def chat(base_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with chat.toml, chats.jsonl and a home of its own with the base."""
    shutil.copytree(base_home, tmp_path / "home")
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.toml").write_text(CHAT)
    write_rows(tmp_path / "chats.jsonl", conversations(200))
    return tmp_path


@pytest.fixture
def preference(base_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with reward.toml, dpo.toml, pairs.jsonl and a home with the base."""
    shutil.copytree(base_home, tmp_path / "home")
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward.toml").write_text(REWARD)
    (tmp_path / "dpo.toml").write_text(DPO)
    write_rows(tmp_path / "pairs.jsonl", comparisons(200))
    return tmp_path
