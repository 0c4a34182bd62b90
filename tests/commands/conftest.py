"""What tests of `bc2 eval` share: benchmarks, checkpoints, and the command without a network."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_checkpoints
import made_releases
import pytest

from bc2.cli import main


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture(scope="session")
def bench_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``--data``: made rows of every benchmark."""
    folder = tmp_path_factory.mktemp("bench")
    made_releases.write_releases(folder)
    return folder


@pytest.fixture(scope="session")
def bench_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of prompts, with the index of lm-eval's tasks, which takes 10 s to build."""
    folder = tmp_path_factory.mktemp("cache")
    known = Path(os.environ["XDG_CACHE_HOME"], "bc2", "lm-eval")
    (folder / "lm-eval").symlink_to(known.resolve())
    return folder


@pytest.fixture(scope="module")
def eval_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with models that read 4,096 tokens (tiny, says-7, says-a, says-c) and 32 (short)."""
    home = tmp_path_factory.mktemp("home")
    made_checkpoints.register(home, "short", made_checkpoints.drawn(window=32))
    made_checkpoints.register(home, "says-7", made_checkpoints.saying("#### 7"))
    made_checkpoints.register(home, "says-a", made_checkpoints.saying("the answer is (A)."))
    made_checkpoints.register(home, "other", made_checkpoints.drawn(2))
    made_checkpoints.register(home, "tiny", made_checkpoints.drawn())
    return home


@pytest.fixture
def offline(
    eval_home: Path, bench_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty working directory, that home and cache, and no network at all."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an evaluation opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("BC2_HOME", str(eval_home))
    monkeypatch.setenv("BC2_CACHE", str(bench_cache))
    monkeypatch.delenv("BC2_BENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def bc2() -> Callable[..., Done]:
    """``bc2 ARGUMENTS`` in this process."""

    def command(*args: object) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main([str(arg) for arg in args])
            except SystemExit as ended:
                code = ended.code
        assert "Traceback" not in err.getvalue(), err.getvalue()
        number = code if isinstance(code, int) else int(code is not None)
        return Done(number, out.getvalue(), err.getvalue())

    return command
