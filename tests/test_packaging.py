"""What is installed: every room, every recipe, nothing at the top but bc2."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_no_room_is_missing_from_the_package_list() -> None:
    rooms = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("bc2", "commands", "recipes")
        for path in (ROOT / top).rglob("__init__.py")
    }
    installed = {room if room.startswith("bc2") else f"bc2.{room}" for room in rooms}
    assert installed == set(PYPROJECT["tool"]["setuptools"]["packages"])
    with_code = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for path in (ROOT / "bc2").rglob("*.py")
    }
    assert with_code <= rooms


def test_version_is_written_once() -> None:
    import bc2

    assert PYPROJECT["project"]["version"] == bc2.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A copy: building in the checkout leaves build/ and egg-info behind.
    source = tmp_path_factory.mktemp("source")
    names = ["bc2", "commands", "recipes", "pyproject.toml", "README.md", "LICENSE"]
    subprocess.run(["cp", "-r", *[str(ROOT / name) for name in names], str(source)], check=True)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_recipes_and_pollutes_nothing(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"bc2", f"bc2-{PYPROJECT['project']['version']}.dist-info"}
    recipes = {name for name in names if name.endswith(".toml")}
    expected = {f"bc2/{p.relative_to(ROOT)}" for p in (ROOT / "recipes").rglob("*.toml")}
    assert recipes == expected
    assert "bc2/py.typed" in names
    assert "bc2/report/page.html.j2" in names
    tasks = {name for name in names if name.startswith("bc2/harness/tasks/")}
    assert tasks == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "bc2" / "harness" / "tasks").rglob("*")
        if path.is_file()
    }
    assert "bc2/harness/releases/known.json" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_works_from_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Only what these two commands may import is installed beside the wheel."""
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    subprocess.run([*pip, "typer", "rich", "pydantic"], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    bc2 = str(home / "bin" / "bc2")
    shown = subprocess.run(
        [bc2, "--help"], cwd=elsewhere, capture_output=True, text=True, check=True
    )
    assert "pretrain" in shown.stdout
    listed = subprocess.run(
        [bc2, "recipe", "list", "--quiet"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(listed.stdout.split()) == 37
