"""The warmed parent's children are what the interpreter would have started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import warmed

pytestmark = pytest.mark.skipif(not warmed.SUPPORTED, reason="subreapers are Linux's")

#: Prints what a program can see of how it was started, but for its pid.
SEEN = """\
import json, os, signal, sys
main = vars(sys.modules["__main__"])
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "name": __name__,
    "file": os.path.basename(main.get("__file__") or ""),
    "cwd": os.getcwd(), "environment": dict(os.environ), "parent": os.getppid(),
    "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(),
    "signals": [str(signal.getsignal(signum)) for signum in (1, 2, 13, 15)],
    "streams": [(stream.fileno(), stream.encoding, stream.errors, stream.line_buffering)
                for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "open": [fd for fd in range(256) if os.path.exists(f"/proc/self/fd/{fd}")],
    "threads": len(os.listdir("/proc/self/task")),
}))
"""


@pytest.mark.parametrize("session", [True, False])
@pytest.mark.parametrize("how", ["-c", "-m", "script"])
def test_a_forked_program_sees_what_a_started_one_does(
    tmp_path: Path, how: str, session: bool
) -> None:
    (tmp_path / "seen.py").write_text(SEEN)
    command = {
        "-c": ["-P", "-c", SEEN],
        # Found in the working directory, which -P would leave out.
        "-m": ["-m", "seen"],
        "script": ["seen.py"],  # from the folder that it is in
    }[how]
    started, forked = (
        start.run(
            [sys.executable, *command, "one", "two words"],
            cwd=tmp_path, env={**os.environ, "BC2_HOME": "语", "RANK": "1"},
            start_new_session=session, capture_output=True, text=True, check=True,
        )
        for start in (subprocess, warmed)
    )  # fmt: skip
    assert json.loads(forked.stdout) == json.loads(started.stdout)
    assert json.loads(forked.stdout)["parent"] == os.getpid()


#: How a program ends: its code, and its exit code.
ENDS = {
    "by itself": ("print('done')", 0),
    "with a code": ("import sys; sys.exit(7)", 7),
    "with words": ("import sys; sys.exit('no')", 1),
    "of an exception": ("import atexit; atexit.register(print, 'last'); 1 / 0", 1),
    "at once": ("import os; os._exit(9)", 9),
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "terminated": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "interrupted": ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
    "crashed": ("import os; os.abort()", -signal.SIGABRT),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_forked_program_ends_as_a_started_one_does(how: str) -> None:
    code, status = ENDS[how]
    command = [sys.executable, "-P", "-c", code]
    started, forked = (
        start.run(command, capture_output=True, text=True) for start in (subprocess, warmed)
    )
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert forked.returncode == status
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def forked(code: str, **named: Any) -> warmed.Popen:
    return warmed.Popen([sys.executable, "-P", "-c", code], **named)


def test_a_signal_of_the_caller_ends_it() -> None:
    process = forked("print('up', flush=True); import time; time.sleep(60)", stdout=subprocess.PIPE)
    assert process.stdout.read(2) == b"up"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.05)
    process.terminate()
    process.communicate()
    assert process.returncode == -signal.SIGTERM


def test_more_than_a_pipe_holds_goes_in_and_comes_out() -> None:
    code = "import sys; text = sys.stdin.read(); print(text); print(text, file=sys.stderr)"
    text = "语" * 1_000_000
    done = warmed.run(
        [sys.executable, "-P", "-c", code], input=text, capture_output=True, text=True, check=True
    )
    assert done.stdout == done.stderr == text + "\n"


def test_descriptors_and_files_are_handed_on(tmp_path: Path) -> None:
    told, tell = os.pipe()
    with (tmp_path / "out").open("w") as out:
        process = forked(f"import os; os.write({tell}, b'own'); print('said')",
                         pass_fds=[tell], stdout=out)  # fmt: skip
        os.close(tell)
        assert os.read(told, 10) == b"own"
        assert os.read(told, 10) == b""
        os.close(told)
        assert process.wait() == 0
    assert (tmp_path / "out").read_text() == "said\n"


def test_no_descriptor_is_kept() -> None:
    warmed.run([sys.executable, "-P", "-c", ""], capture_output=True)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        warmed.run([sys.executable, "-P", "-c", ""], capture_output=True)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_is_not_there_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        forked("", cwd=tmp_path / "nowhere")


def test_modules_are_found_in_the_warmed_path_first(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", "import sys; print(sys.path[:2])"]
    environment = {**os.environ, "WARMED_PATH": os.pathsep.join(["/one", "/two"])}
    done = warmed.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "['/one', '/two']\n"


def test_imports_are_not_paid_for_but_by_who_needs_his_own() -> None:
    code = "import sys; print('torch' in sys.modules)"
    command = [sys.executable, "-P", "-c", code]
    assert warmed.run(command, capture_output=True).stdout == b"True\n"
    for other in (
        {"env": {**os.environ, "OMP_NUM_THREADS": "3"}},
        {"env": {**os.environ, "PYTHONPATH": "/"}},
        {"preexec_fn": os.getpid},
    ):
        assert warmed.run(command, capture_output=True, **other).stdout == b"False\n"
    assert warmed.run([sys.executable, "-X", "dev", *command[1:]], capture_output=True).stdout == (
        b"False\n"
    )


#: Starts two programs as torch's agent starts ranks, and says what each said.
STARTER = """\
import os, subprocess, sys
own = "import os, sys; print(os.environ['RANK'], os.getppid(), 'torch' in sys.modules)"
ranks = [subprocess.Popen([sys.executable, "-c", own], env={**os.environ, "RANK": rank},
                          start_new_session=True, stdout=subprocess.PIPE) for rank in "01"]
print(os.getpid(), [rank.communicate()[0].decode().split() for rank in ranks])
"""


def test_what_it_starts_is_forked_too_where_asked() -> None:
    for children in (True, False):
        out = forked(STARTER, children=children, stdout=subprocess.PIPE).communicate()[0].decode()
        pid = out.split()[0]
        assert out == f"{pid} {[[rank, pid, str(children)] for rank in '01']}\n"


#: Starts a rank that waits, and waits.
WAITING = """\
import os, subprocess, sys, time
waits = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
rank = subprocess.Popen(waits, env={**os.environ, "RANK": "3"})
time.sleep(60)
"""


def test_a_rank_has_a_name_and_outlives_a_killed_starter() -> None:
    """What ends it then is for the program to do, and for its tests to see."""
    process = forked(WAITING, children=True, stdout=subprocess.PIPE)
    assert process.stdout.read(2) == b"up"
    (rank,) = [one for one in psutil.Process(process.pid).children() if "rank" in one.name()]
    assert rank.name() == "rank 3"
    process.kill()
    process.wait()
    time.sleep(0.05)
    assert rank.status() != psutil.STATUS_ZOMBIE
    rank.kill()
    process.communicate()


def test_nothing_outlives_the_caller() -> None:
    code = """\
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
import warmed
process = warmed.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(process.pid, process.args, flush=True)
os.kill(os.getpid(), 9)
"""
    folder = str(Path(warmed.__file__).parent)
    out = subprocess.run(
        [sys.executable, "-P", "-c", code, folder], stdout=subprocess.PIPE, check=False
    ).stdout
    pid = int(out.split()[0])
    end = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.01)
