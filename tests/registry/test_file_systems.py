"""File systems that refuse a call: played by a library that stands before libc's own functions."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bc2.registry import Registry

COMMANDS = Path(__file__).with_name("commands_in_turn.py")

#: Each call fails with the errno that the variable of its name holds, if it is set.
_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>

static int refused(const char *name) {
    const char *value = getenv(name);
    if (value == NULL) return 0;
    errno = atoi(value);
    return 1;
}

int flock(int fd, int operation) {
    if (refused("SHIM_FLOCK")) return -1;
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
}

int fsync(int fd) {
    struct stat found;
    if (fstat(fd, &found) == 0 && refused(S_ISDIR(found.st_mode) ? "SHIM_FSYNC_DIRECTORY"
                                                                : "SHIM_FSYNC_FILE"))
        return -1;
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

static int control(const char *name, int fd, int command, void *argument) {
    if ((command == F_OFD_SETLK || command == F_OFD_GETLK) && refused("SHIM_FCNTL")) return -1;
    return ((int (*)(int, int, void *))dlsym(RTLD_NEXT, name))(fd, command, argument);
}

#define CONTROL(name) \
    int name(int fd, int command, ...) { \
        va_list rest; \
        va_start(rest, command); \
        void *argument = va_arg(rest, void *); \
        va_end(rest); \
        return control(#name, fd, command, argument); \
    }
CONTROL(fcntl)
CONTROL(fcntl64)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(_SHIM)
    command = [compiler, "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"]
    subprocess.run(command, check=True)
    return folder / "shim.so"


def run(shim: Path, home: Path, *words: str, **refused: int) -> subprocess.CompletedProcess[str]:
    """Run Python with some calls refused: ``FLOCK=errno.ENOSYS``."""
    calls = {f"SHIM_{name}": str(number) for name, number in refused.items()}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False,
        env={**os.environ, "BC2_HOME": str(home), "LD_PRELOAD": str(shim), **calls},
    )  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "text.txt").write_text("text")
    return folder


def _import(source: Path) -> list[str]:
    return ["-m", "bc2", "registry", "import", str(source), "--kind", "corpus", "--name", "mine",
            "--quiet"]  # fmt: skip


def test_nothing_is_written_to_a_new_home_without_locks(shim, tmp_path, source) -> None:
    done = run(shim, tmp_path / "home", *_import(source), FLOCK=errno.ENOSYS)
    assert done.returncode == 1
    assert done.stderr.startswith("error: flock fails: function not implemented; without locks")
    assert not (tmp_path / "home" / "artifacts").exists()


@pytest.mark.parametrize(
    "number", [errno.EINVAL, pytest.param(errno.EOPNOTSUPP, marks=pytest.mark.slow)]
)
def test_directories_that_cannot_be_synced_are_said_once(shim, registry, source, number) -> None:
    done = run(shim, registry.home, *_import(source), FSYNC_DIRECTORY=number)
    assert done.returncode == 0, done.stderr
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: the file system of /")
    assert f"cannot sync directories (fsync: {os.strerror(number).lower()})" in warning
    assert "bc2 registry verify" in warning
    (artifact,) = registry.list()
    assert done.stdout == f"{artifact.ref}\n"
    registry.verify(artifact)


@pytest.mark.parametrize("what", ["FSYNC_DIRECTORY", "FSYNC_FILE"])
def test_a_disk_that_fails_to_sync_ends_the_work(shim, registry, publish, source, what) -> None:
    known = publish()
    done = run(shim, registry.home, *_import(source), **{what: errno.EIO})
    assert done.returncode == 1
    assert done.stderr.startswith("error: fsync fails: input/output error; what was written")
    assert f"where: {registry.home}" in done.stderr
    assert registry.list() == [known]
    assert list(registry.staging.iterdir()) == []


@pytest.mark.parametrize(
    "number", [errno.ENOSYS, pytest.param(errno.ENOLCK, marks=pytest.mark.slow)]
)
def test_nothing_is_written_without_locks(shim, registry, publish, source, number) -> None:
    known = publish()
    done = run(shim, registry.home, *_import(source), FLOCK=number)
    assert done.returncode == 1
    what, where, todo = done.stderr.splitlines()
    assert what.startswith(f"error: flock fails: {os.strerror(number).lower()}; without locks")
    assert where.startswith(f"  where: {registry.home}")
    assert "-o flock" in todo
    assert "BC2_HOME" in todo
    assert registry.list() == [known]


def test_reading_goes_on_without_locks(shim, registry, publish) -> None:
    artifact = publish()
    asked = ("list", "show tiny", "lineage tiny", "verify")
    words = [["registry", *command.split(), "--quiet"] for command in asked]
    done = run(shim, registry.home, str(COMMANDS), json.dumps(words), FLOCK=errno.ENOSYS)
    for command, line in zip(asked, done.stdout.splitlines(), strict=True):
        assert json.loads(line) == [0, f"{artifact.ref}\n", ""], command
    hold = (
        "from bc2.registry import Registry\n"
        "artifact = Registry.open().resolve('tiny')\n"
        "for _ in range(2):\n"
        "    with artifact.hold():\n"
        "        print(artifact.file('data.bin').name)\n"
    )
    done = run(shim, registry.home, "-c", hold, FLOCK=errno.ENOSYS)
    assert done.stdout == "data.bin\ndata.bin\n"
    (warning,) = done.stderr.splitlines()
    assert warning == (
        f"warning: the file system of {artifact.path} has no locks (flock: function not "
        "implemented): what is read is not kept from being removed"
    )


def test_a_run_needs_its_mark_and_a_watcher_does_not(shim, tmp_path) -> None:
    mark = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bc2.errors import from_os_error\n"
        "from bc2.train.logs.runs import is_running, mark_running\n"
        "folder = Path(sys.argv[1])\n"
        "try:\n"
        "    with mark_running(folder):\n"
        "        print('marked')\n"
        "except OSError as error:\n"
        "    print(from_os_error(error, 'working'))\n"
        "print(is_running(folder), is_running(folder))\n"
    )
    folder = tmp_path / "run"
    done = run(shim, tmp_path, "-c", mark, str(folder), FCNTL=errno.ENOLCK)
    said, state = done.stdout.splitlines()
    assert said.startswith(f"fcntl fails: {os.strerror(errno.ENOLCK).lower()}; without locks")
    assert str(folder / "running") in said
    assert state == "False False"
    (warning,) = done.stderr.splitlines()
    assert "whether a run is being trained is not known" in warning
    fine = run(shim, tmp_path, "-c", mark, str(folder))
    assert (fine.stdout, fine.stderr) == ("marked\nFalse False\n", "")


def test_the_shim_alone_changes_nothing(shim, registry, source) -> None:
    done = run(shim, registry.home, *_import(source))
    assert (done.returncode, done.stderr) == (0, "")
    assert [artifact.name for artifact in Registry.open(registry.home).list()] == ["mine"]
