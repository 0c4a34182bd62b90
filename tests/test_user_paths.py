"""Paths that begin with ``~``, and users without a home directory or a name."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bc2 import recipe
from bc2.cache_folder import cache_folder
from bc2.cli import main
from bc2.errors import RefError, UsageError
from bc2.registry import Registry, find_home
from bc2.user_paths import expand_if_known, expand_user

NOBODY = "nosuchuser"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("BC2_HOME", raising=False)
    (tmp_path / "me").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "me"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user whom the system does not know."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(argv))
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_path_is_expanded_as_a_shell_does(home: Path) -> None:
    assert expand_user("~/x", "--out") == home / "x"
    assert expand_user("~", "--out") == home
    root = Path(pwd.getpwuid(0).pw_dir)
    assert expand_user(f"~{pwd.getpwuid(0).pw_name}/x", "--out") == root / "x"
    for plain in ("x/~", "./~x", "/~/x", "a~b"):
        assert expand_user(plain, "--out") == Path(plain)
        assert expand_if_known(plain) == Path(plain)


def test_a_user_that_is_not_there(home: Path) -> None:
    with pytest.raises(UsageError, match="--out begins with '~nosuchuser', and there is no user"):
        expand_user(f"~{NOBODY}/x", "--out")
    assert expand_if_known(f"~{NOBODY}/x") == Path(f"~{NOBODY}/x")


def test_a_user_without_a_home(homeless: None) -> None:
    with pytest.raises(UsageError, match="this user has no home directory") as caught:
        expand_user("~/x", "BC2_HOME")
    assert "set HOME" in str(caught.value)
    assert expand_if_known("~/x") == Path("~/x")


def test_the_home_of_the_registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_HOME", "~/reg")
    assert Registry.open().home == home / "reg"
    assert find_home() == home / "reg"
    monkeypatch.setenv("BC2_HOME", f"~{NOBODY}/reg")
    with pytest.raises(UsageError, match="BC2_HOME begins with '~nosuchuser'"):
        Registry.open()
    assert run("registry", "list") == 2
    assert run("bench", "--list") == 2


def test_the_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_CACHE", "~/cache")
    assert cache_folder() == home / "cache"
    monkeypatch.setenv("BC2_CACHE", f"~{NOBODY}/cache")
    with pytest.raises(UsageError, match="BC2_CACHE begins with '~nosuchuser'"):
        cache_folder()


@pytest.mark.parametrize(
    "verb", ["watch", "report", "generate", "registry show", "registry gc", "eval"]
)
@pytest.mark.parametrize("ref", [f"~{NOBODY}/x", "~/x"])
def test_a_ref_that_is_no_path_is_no_ref(
    verb: str, ref: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"generate": ["hello"], "eval": ["--bench", "mmlu"]}.get(verb, [])
    assert run(*verb.split(), ref, *more) == 4
    assert ref in capsys.readouterr().err


def test_a_ref_may_be_a_path_below_a_home(home: Path) -> None:
    from bc2.registry import Draft, stage_key

    registry = Registry.open(home / "reg")
    with registry.stage(Draft("corpus", "mine", stage_key("corpus", 1, {}, ()))) as staged:
        (staged.path / "a").write_text("a")
        made = staged.publish()
    below = f"~/{made.path.relative_to(home)}"
    assert Registry.open(home / "other").resolve(below).digest == made.digest
    with pytest.raises(RefError, match="is not a ref"):
        registry.resolve("~/nothing")


def test_recipes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "mine.toml").write_text('base = "~/below.toml"\nname = "mine"\n')
    (home / "below.toml").write_text('description = "from below"\n')
    assert recipe.load("~/mine.toml").description == "from below"
    for missing in (f"~{NOBODY}/mine.toml", "~/nothing.toml"):
        assert run("recipe", "show", missing) == 2
        assert f"no such recipe: {missing}" in capsys.readouterr().err


def test_no_other_path_is_expanded_by_pathlib() -> None:
    """pathlib's raises a RuntimeError where there is no such user; os.path's does not."""
    root = Path(__file__).parents[1]
    users = [
        path.relative_to(root).as_posix()
        for folder in ("bc2", "commands")
        for path in (root / folder).rglob("*.py")
        if re.search(r"(?<!os\.path)\.expanduser\(", path.read_text(encoding="utf-8"))
    ]
    assert users == ["bc2/user_paths.py"]


def test_options_that_are_paths(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "source").mkdir()
    (home / "source" / "a.txt").write_text("a")
    made = ["registry", "import", "~/source", "--kind", "corpus", "--name", "mine", "--quiet"]
    assert run(*made) == 0
    assert run("data", "report", "--markdown=~/card.md") != 2
    assert run("report", f"--out=~{NOBODY}/page.html") == 2
    assert f"out begins with '~{NOBODY}'" in capsys.readouterr().err
    assert run("eval", "--bench", "mmlu", f"--data=~{NOBODY}/x") == 2
    assert not Path("~").exists()
    assert not Path(f"~{NOBODY}").exists()


def test_a_run_under_a_number_without_a_name(small: Path) -> None:
    """As in a container: no entry in passwd, no HOME, no USER."""
    uid, rights = 54321, "-all,+dac_read_search"
    prefix = [
        "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
        f"--inh-caps={rights}", f"--ambient-caps={rights}",
    ]  # fmt: skip
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("needs the right to be another user: run as root")
    for path in (small, *small.rglob("*")):
        os.chown(path, uid, uid)
    gone = {"HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"}
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    commands = [
        ["pretrain", "small.toml", "--set", "pretrain.length='5 steps'", "--quiet"],
        ["generate", "--max-new-tokens", "1", "import"],
        ["report", "--quiet"],
        ["eval", "--list", "--quiet"],
    ]
    script = (
        "import getpass, json, sys\n"
        "from bc2.cli import main\n"
        "for argv in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        main(argv)\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, argv\n"
        "print(getpass.getuser())\n"
    )
    done = subprocess.run(
        [*prefix, sys.executable, "-P", "-c", script, json.dumps(commands)],
        env={**environment, "BC2_HOME": str(small / "home")}, cwd=small,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"uid{uid}"
    assert not (small / "~").exists()
