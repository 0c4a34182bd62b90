"""What `bc2 doctor` finds wrong; that it finds nothing wrong here is in test_cli."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bc2 import doctor
from bc2.abilities import Ability
from bc2.cli import main
from bc2.errors import RunFailed
from bc2.registry import Registry

Diagnose = Callable[[], doctor.Diagnosis]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def fail_to_import(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    plain = importlib.import_module

    def imported(name: str) -> Any:
        if name == broken:
            raise OSError("libcuda.so.1: no such file\nand more")
        return plain(name)

    monkeypatch.setattr(doctor.importlib, "import_module", imported)


def test_a_package_that_is_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", {"no-such-package": None})
    found = doctor.diagnose()
    assert found.packages == {"no-such-package": "missing"}
    assert found.problems == ["no-such-package is not installed: pip install bc2"]


def test_packages_that_do_not_import(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", {"safetensors": "safetensors"})
    monkeypatch.setattr(doctor, "EXTRAS", {"some": {"safetensors": "safetensors"}})
    fail_to_import(monkeypatch, "safetensors")
    found = doctor.diagnose()
    assert found.packages["safetensors"].endswith(", does not import")
    assert found.extras["some"] == "safetensors broken"
    required, extra = found.problems
    assert required == extra
    assert required.endswith("does not import: OSError: libcuda.so.1: no such file")


def test_a_disk_that_is_nearly_full(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(free=doctor.LOW_DISK - 1)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: free)
    assert any("GiB free at" in problem for problem in doctor.diagnose().problems)


def test_a_home_that_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "why_not_writable", lambda _: "permission denied")
    (problem,) = doctor.diagnose().problems
    told = f"no right to write in {home.parent} (permission denied): set BC2_HOME to another place"
    assert problem == told


def test_artifacts_are_counted_and_a_broken_index_is_a_problem(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry.open(home)
    home.mkdir()
    _ = registry.index
    assert doctor.diagnose().registry["artifacts"] == 0
    registry.index_file.write_bytes(b"no database" * 1000)
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--json"])
    assert caught.value.code == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert "the registry does not open" in problem


def test_a_machine_where_programs_are_not_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RunFailed("no sandbox here", todo="allow user namespaces")

    assert doctor.diagnose().sandbox
    monkeypatch.setattr("bc2.sandbox.run.Sandbox.open", refuse)
    found = doctor.diagnose()
    assert found.sandbox == "none: no sandbox here; allow user namespaces"
    assert ("sandbox", found.sandbox) in found.rows()
    assert not any("sandbox" in problem for problem in found.problems)


def test_what_is_for_linux_alone_is_no_problem_elsewhere(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", {"deepspeed": "deepspeed"})
    monkeypatch.setattr(doctor, "_version", lambda *_: (None, None))
    assert len(doctor.diagnose().problems) == 1
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    found = doctor.diagnose()
    assert found.packages == {"deepspeed": "not for this system"}
    assert found.problems == []


def test_abilities_are_told_and_a_lack_of_one_is_no_problem(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [Ability("fly", False, "no wings"), Ability("walk", True, "on two legs")]
    monkeypatch.setattr(doctor, "abilities", lambda facts: told)
    found = doctor.diagnose()
    assert list(found.rows())[-2:] == [("fly", "no: no wings"), ("walk", "yes: on two legs")]
    assert found.as_json()["abilities"][0] == {"name": "fly", "able": False, "about": "no wings"}
    assert found.problems == []


def test_devices_are_told_by_index(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the type that each of them is fast in: the second is older than the current one."""
    kinds = {0: (9, 0), 1: (7, 5)}
    about = SimpleNamespace(name="a GPU", total_memory=80 << 30)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: about)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: kinds[device.index])
    monkeypatch.setattr(doctor, "REQUIRED", {})
    assert doctor.diagnose().devices[1:] == [
        {"name": "cuda:0", "about": "a GPU, 80 GiB, bf16"},
        {"name": "cuda:1", "about": "a GPU, 80 GiB, fp32"},
    ]
