"""What tests of imports share: an empty home, and the command in this process."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from broken_models import Case, refused
from made_hf_models import original
from weight_files import Kind

from bc2.cli import main
from bc2.registry import Registry


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$BC2_HOME, which nothing is in; and no network at all."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def bc2(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``bc2 ARGUMENTS`` in this process."""

    def command(*args: object) -> Done:
        capsys.readouterr()
        try:
            main([str(arg) for arg in args])
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        return Done(code, out, err)

    return command


@pytest.fixture
def nothing_left(home: Path) -> Callable[[], None]:
    """Checks that nothing is registered, and nothing lies where artifacts are made."""

    def check() -> None:
        registry = Registry.open()
        assert registry.list() == []
        assert registry.forgotten() == []
        assert not registry.staging.exists() or list(registry.staging.iterdir()) == []
        kept = [path for path in home.rglob("*") if path.suffix in (".safetensors", ".bin")]
        assert kept == []

    return check


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """The folder of a case's model before it is broken; made once."""
    made: dict[tuple[str, Kind, int], Path] = {}

    def get(case: Case) -> Path:
        wanted = case.model, case.kind, case.shards
        if wanted not in made:
            made[wanted] = tmp_path_factory.mktemp("whole") / case.model
            original(case.model).write(made[wanted], case.kind, case.shards)
        return made[wanted]

    return get


@pytest.fixture
def check(
    bc2: Callable[..., Done],
    nothing_left: Callable[[], None],
    whole: Callable[[Case], Path],
    tmp_path: Path,
) -> Callable[[Case], None]:
    """Breaks a copy of a model, imports it, and looks at what is said and left."""

    def run(case: Case) -> None:
        shutil.copytree(whole(case), tmp_path / "model")
        case.break_it(tmp_path / "model")
        refused(bc2, case, tmp_path / "model")
        nothing_left()

    return run
